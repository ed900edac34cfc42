"""Bounded overtaking: a job that was passed often enough claims a device, which is then drained for it."""

from heapq import heappop, heappush

from scheduler.core.accounts import DeviceAccount
from scheduler.core.records import Group, JobRecord, JobState
from scheduler.core.state import State

# A job that needs an empty device (unmeasured, or a suspect) would meet one only by luck: it claims one soon.
PATIENCE_ALONE = 8
# Draining costs throughput: no more than one device in four at a time, and one at least.
CLAIMED_SHARE = 4


class Ageing:
    """Who has been passed how often, and who holds a claim. At most one claim on each device and for each
    job.

    Arrivals are looked at in order, so that a check costs O(1) unless a claim is made, which looks at every
    device.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._claimants: list[JobRecord] = []
        self._impatient: list[tuple[int, int, Group]] = []
        self._not_before = 0

    def watch(self, group: Group) -> None:
        """This group waits for an empty device, or on terms of its own."""
        if not group.watched:
            group.watched = True
            self._look_later(group)

    def _look_later(self, group: Group) -> None:
        patience = PATIENCE_ALONE + self._state.gpus
        heappush(self._impatient, (self._state.departures + patience, group.order, group))

    def check(self) -> list[DeviceAccount]:
        """Make the claims that are due; the devices that were claimed."""
        claimed: list[DeviceAccount] = []
        state = self._state
        while self._impatient and self._impatient[0][0] <= state.departures:
            _, _, group = heappop(self._impatient)
            if not group.count or not (group.cold or group.alone or group.rung):
                group.watched = False
                continue
            self._look_later(group)
            if group.cold and self._measuring(group.family):
                continue
            account = self._claim(group.oldest())
            if account is not None:
                claimed.append(account)
        arrivals = state.arrivals
        while arrivals and state.departures >= self._not_before:
            record = arrivals[0]
            if record.started or record.state is not JobState.WAITING:
                arrivals.popleft()
                continue
            older_waiting = 0
            if self._claimants:
                older_waiting = sum(not r.started and r.cohort is not record.cohort for r in self._claimants)
            if record.cohort.overtaken(state.departures, older_waiting) <= state.policy.overtake_limit:
                break
            account = self._claim(record)
            if account is None:
                self._not_before = state.departures + PATIENCE_ALONE
                break
            arrivals.popleft()
            claimed.append(account)
        return claimed

    def _measuring(self, family: str) -> bool:
        """True if a job of the family runs alone to be measured, or has a device drained for that."""
        return any(r.job.learns_as == family and r.group.cold for r in self._claimants if r.claim is not None)

    def release(self, record: JobRecord) -> None:
        """The job needs its claim no more."""
        if record.claim is not None:
            account = self._state.accounts[record.claim]
            account.claim = None
            record.claim = None
            self._state.unclaimed.append(account)

    def drop_hopeless(self, account: DeviceAccount) -> None:
        """Strangers took what the claim on this device needs, or its worker has gone.

        Draining it helps nobody, so the job ages anew.
        """
        record = account.claim
        if record is None:
            return
        needs = [option.need for option in record.group.options.get(account.cls.index, ())]
        fits = bool(needs) and account.slots > 0 and min(needs) <= account.available
        if fits and record.group.permits(account.device.uuid):
            return
        self._age_anew(record)

    def drop_claims(self, group: Group) -> None:
        """No device here can run the group any more: what was drained for it is for others."""
        for record in self._claimants:
            if record.claim is not None and record.group is group:
                self._age_anew(record)

    def _age_anew(self, record: JobRecord) -> None:
        self.release(record)
        if not record.started:
            self._state.arrivals.appendleft(record)

    def _claim(self, record: JobRecord) -> DeviceAccount | None:
        """Drain the device on which this job will fit soonest.

        It has the most free bytes and runs the fewest jobs.
        """
        self._claimants = [other for other in self._claimants if other.claim is not None]
        if record.claim is not None or len(self._claimants) >= max(
            1, len(self._state.accounts) // CLAIMED_SHARE
        ):
            return None
        best: DeviceAccount | None = None
        best_rank = (0, 0)
        group = record.group
        for index, choices in group.options.items():
            need = min(option.need for option in choices)
            cls = self._state.classes[index]
            if cls.is_cpu and group.area > 0.0:
                continue
            for account in cls.accounts:
                if account.claim is not None or not account.slots or not group.permits(account.device.uuid):
                    continue
                if account.available < need:
                    continue
                rank = (
                    (-len(account.running), account.free) if group.alone or group.cold else (account.free, 0)
                )
                if best is None or rank > best_rank:
                    best, best_rank = account, rank
        if best is None:
            return None
        best.claim = record
        record.claim = best.device.uuid
        self._claimants.append(record)
        best.reindex()
        return best
