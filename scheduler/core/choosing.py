"""Which waiting job a device takes next.

Claims, jobs that need it empty, what fits best, what is warm there.
"""

from collections.abc import Iterator
from heapq import heappop, heappush

from scheduler.core.accounts import DeviceAccount
from scheduler.core.pressure import best_for_cpu, cpu_may_take, why_on_cpu, worth_it
from scheduler.core.records import Group, JobRecord, Option
from scheduler.core.state import State

# Groups of particular devices are few (retries, users' restrictions); looking at more of them in one decision
# would make its cost grow with their number.
RESTRICTED_LOOKED_AT = 64
# The end of a run is near when what is left would take this many times a job's own time.
CRITICAL = 3.0
Choice = tuple[Group, Option, bool, str]


class Chooser:
    """Reads the queues of a `State` for one device at a time.

    What it finds is (group, option, alone, why).
    """

    def __init__(self, state: State) -> None:
        self.state = state

    def choose(self, account: DeviceAccount) -> Choice | None:
        """What this device should start now; None if nothing that waits can or should start there."""
        if account.claim is not None:
            return self._claimed(account, account.claim)
        cls = account.cls
        if not account.running and not cls.is_cpu and self.state.alone[cls.index]:
            choice = self._lonely(account)
            if choice is not None:
                return choice
        if cls.restricted:
            for group in list(cls.restricted.values())[:RESTRICTED_LOOKED_AT]:
                choice = self._permitted(account, group)
                if choice is not None and cls.is_cpu and group.area > 0.0:
                    choice = self._taken_over(choice)
                if choice is not None:
                    return choice
        choice = self._fitting(account)
        if account.residents or account.device.uuid in self.state.preferring:
            warm = self._warm(account)
            if warm is not None and (choice is None or warm[0].priority >= choice[0].priority):
                return warm
        return choice

    def _claimed(self, account: DeviceAccount, record: JobRecord) -> Choice | None:
        group = record.group
        if (group.alone or group.cold) and account.running and not account.cls.is_cpu:
            return None
        return self._permitted(account, group)

    def _permitted(self, account: DeviceAccount, group: Group) -> Choice | None:
        """The first of the group's options that this device could start at once."""
        if not group.permits(account.device.uuid):
            return None
        free = account.for_one
        for option in group.options.get(account.cls.index, ()):
            if option.need - self.warmth(account, option) <= free and self._host_has(account, option):
                alone = (group.alone or group.cold) and not account.cls.is_cpu
                return group, option, alone, ""
        return None

    def _taken_over(self, choice: Choice) -> Choice | None:
        """A job of particular devices, one of them a CPU: the rules of `on_pressure` are the same for it."""
        group, option, alone, _ = choice
        if not cpu_may_take(self.state, group, option):
            return None
        return group, option, alone, why_on_cpu(self.state, group, option)

    def _lonely(self, account: DeviceAccount) -> Choice | None:
        """A group that needs an empty device.

        By priority, then the shortest, which measures its family soonest.
        """
        heap = self.state.alone[account.cls.index]
        passed: list[tuple[int, float, int, int, Group]] = []
        found = None
        while heap and len(passed) < RESTRICTED_LOOKED_AT:
            entry = heap[0]
            group = entry[4]
            if entry[3] != group.version:
                heappop(heap)
                continue
            found = self._permitted(account, group)
            if found is not None:
                break
            passed.append(heappop(heap))
        for entry in passed:
            heappush(heap, entry)
        return found

    def _fitting(self, account: DeviceAccount) -> Choice | None:
        cls = account.cls
        state = self.state
        if cls.is_cpu:
            for group, option in cls.fit.candidates(account.for_one):
                return group, option, False, ""
            better = best_for_cpu(state, account)
            return None if better is None else (better[0], better[1], False, better[2])
        found: tuple[Group, Option] | None = None
        soon = -1.0
        for group, option in cls.fit.candidates(account.free):
            if not self._host_has(account, option) or not worth_it(state, group, option):
                continue
            if found is None:
                found = group, option
                soon = state.drain_seconds()
                if option.seconds * CRITICAL <= soon:
                    break
            elif group.priority < found[0].priority:
                break
            elif option.seconds > found[1].seconds:
                found = group, option
        # the largest that fits leaves the fewest gaps; near the end the longest decides when all is done
        return None if found is None else (*found, False, "")

    def _warm(self, account: DeviceAccount) -> Choice | None:
        """A group whose resident state or input is already here."""
        for name in account.residents:
            for group in list(account.cls.warm.get(name, {}).values())[:4]:
                if not group.cold and not group.alone:
                    choice = self._permitted(account, group)
                    if choice is not None:
                        return choice
        for group in list(self.state.preferring.get(account.device.uuid, {}).values())[:4]:
            if account.cls.index in group.options and not group.cold and not group.alone:
                choice = self._permitted(account, group)
                if choice is not None and (not account.cls.is_cpu or group.area == 0.0):
                    return choice
        return None

    def warmth(self, account: DeviceAccount, option: Option) -> int:
        """Resident bytes of an option that are on the device already."""
        resident = option.plan.resident
        return option.resident if resident is not None and resident.name in account.residents else 0

    def _host_has(self, account: DeviceAccount, option: Option) -> bool:
        if account.cls.is_cpu or option.host_need <= account.host_for_one:
            return True
        account.host.starved = True
        return False

    def wants(self, account: DeviceAccount, room: int) -> Iterator[tuple[Group, Option]]:
        """Groups that could start on this device if it had `room` bytes free."""
        cls = account.cls
        if account.claim is not None:
            groups = [account.claim.group]
        else:
            lonely = [] if account.running else self.state.alone[cls.index][:RESTRICTED_LOOKED_AT]
            groups = [entry[4] for entry in lonely if entry[3] == entry[4].version]
            groups += list(cls.restricted.values())[:RESTRICTED_LOOKED_AT]
        for group in groups:
            if group.permits(account.device.uuid) and not (account.running and (group.alone or group.cold)):
                for option in group.options.get(cls.index, ()):
                    if option.need <= room and self._host_has(account, option):
                        yield group, option
        if account.claim is None:
            for group, option in cls.fit.candidates(room):
                if self._host_has(account, option) and worth_it(self.state, group, option):
                    yield group, option
