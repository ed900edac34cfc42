"""Whether a job that a GPU can't take now should run on the CPU: the rules behind `on_pressure`."""

from scheduler.core.accounts import DeviceAccount, DeviceClass
from scheduler.core.model import gib
from scheduler.core.policy import OnPressure
from scheduler.core.queues import microseconds
from scheduler.core.records import Group, Option
from scheduler.core.state import State

# A long job on the CPU that ends late holds up the whole run, and what the GPUs need is only an estimate.
CAUTION = 0.9
# While only the declared cost speaks for it, one job of the family is tried if it should end well before.
TRIAL = 0.5


def best_for_cpu(state: State, account: DeviceAccount) -> tuple[Group, Option, str] | None:
    """The group that gains most by running on this CPU device now, with the reason; None if none does.

    Among the families, the one whose work the CPU takes off the GPUs at the best price comes first. Under
    `earliest-finish` the job must end before the GPUs would have worked off the queue; the longest of those
    that do is taken, so that short ones are left for the end.
    """
    mode = state.policy.on_pressure
    if mode is OnPressure.WAIT or mode is OnPressure.FAIL:
        return None
    free = account.for_one
    best: tuple[Group, Option] | None = None
    best_gain = (-(1 << 62), -1.0)
    limit = -1
    for queue, group, option in account.cls.takeover.families():
        unknown = not option.measured or not _measured_on_gpu(state, group)
        gain = (group.priority, float("inf") if unknown else group.area / max(option.seconds, 1e-9))
        if gain <= best_gain:
            continue
        if mode is OnPressure.EARLIEST_FINISH and not _strangers_hold(state, group):
            if limit < 0:
                limit = microseconds(CAUTION * state.drain_seconds())
            if unknown:
                # the first of a family tells how long the CPU takes, if by its declared cost that is worth
                # the try: the others wait for that figure
                if group.family in state.exploring or option.seconds > TRIAL * state.drain_seconds():
                    continue
            else:
                longest = next(queue.candidates(limit), None)
                if longest is not None:
                    group, option = longest
                elif option.seconds > group.best_seconds:
                    continue
        if option.need <= free and not group.room_is_made(state.now):
            best, best_gain = (group, option), gain
    return None if best is None else (*best, why_on_cpu(state, *best))


def cpu_may_take(state: State, group: Group, option: Option) -> bool:
    """The same rules for one group that has options on GPUs."""
    mode = state.policy.on_pressure
    if mode is OnPressure.WAIT or mode is OnPressure.FAIL or group.room_is_made(state.now):
        return False
    if mode is OnPressure.CPU or _strangers_hold(state, group):
        return True
    if not option.measured or not _measured_on_gpu(state, group):
        return group.family not in state.exploring and option.seconds <= TRIAL * state.drain_seconds()
    return option.seconds <= max(CAUTION * state.drain_seconds(), group.best_seconds)


def why_on_cpu(state: State, group: Group, option: Option) -> str:
    """Why the CPU takes a job over from the GPUs, in words."""
    if _strangers_hold(state, group):
        return _strangers(state, group)
    if state.policy.on_pressure is OnPressure.CPU:
        return f"on_pressure is cpu and {_fullest(state, group)}"
    if not option.measured or not _measured_on_gpu(state, group):
        return f"{_fullest(state, group)}, and how long it takes isn't measured on both yet"
    wait = max(state.drain_seconds(), group.best_seconds)
    return (
        f"{_fullest(state, group)}: done there in about {wait:.3g} s, on the CPU in about "
        f"{option.seconds:.3g} s"
    )


def worth_it(state: State, group: Group, option: Option) -> bool:
    """False if a faster class of devices would finish the job earlier than this one, the queue included.

    Only classes count that will have room for it: else it would wait for what never comes.
    """
    if option.seconds <= group.best_seconds or not option.measured or state.policy.reproducible:
        return True
    best = min(
        (
            choices[0].seconds
            for index, choices in group.options.items()
            if choices[0].measured and _will_have_room(state.classes[index], choices[0], group)
        ),
        default=option.seconds,
    )
    return option.seconds <= max(state.drain_seconds(), best)


def _will_have_room(cls: DeviceClass, option: Option, group: Group) -> bool:
    return not cls.is_cpu and not group.restricted and cls.available() >= option.need


def why_not_cpu(state: State, group: Group, cpu: DeviceClass) -> str | None:
    """Why the CPU doesn't take a waiting job over, in words.

    None if only a free slot or memory there is lacking.
    """
    mode = state.policy.on_pressure
    if mode is OnPressure.WAIT or mode is OnPressure.FAIL:
        return f"on_pressure is {mode.value}, so it waits for a device"
    option = group.options[cpu.index][0]
    if mode is OnPressure.CPU or _strangers_hold(state, group):
        return None
    if not option.measured or not _measured_on_gpu(state, group):
        first = state.exploring.get(group.family)
        if first:
            return f"how long the CPU takes is being measured with {first}"
        if option.seconds > TRIAL * state.drain_seconds():
            return "by its declared cost the CPU would take longer than the devices need for all that waits"
        return None
    wait = max(CAUTION * state.drain_seconds(), group.best_seconds)
    if option.seconds > wait:
        return f"a device is expected to finish it in {wait:.3g} s, the CPU would take {option.seconds:.3g} s"
    return None


def out_of_reach(state: State, group: Group) -> str | None:
    """Under pressure from strangers: the figures, if no GPU has room even after all our own jobs end.

    Else None. A device without an answer isn't known to be full for good, so it keeps hope alive.
    """
    best: tuple[int, Option, DeviceAccount] | None = None
    for index, choices in group.options.items():
        cls = state.classes[index]
        if cls.is_cpu:
            continue
        option = choices[-1]
        for account in cls.accounts:
            if not group.permits(account.device.uuid) or not account.online:
                continue
            if not account.known or account.available >= option.need:
                return None
            if best is None or account.available - option.need > best[0]:
                best = (account.available - option.need, option, account)
    if best is None:
        return None
    _, option, account = best
    return (
        f"needs {gib(option.need)}, and the roomiest device, {account.device.name}, has "
        f"{gib(max(0, account.available))} of {gib(account.total)}: other programs use "
        f"{gib(account.external)}, "
        f"other runs have reserved {gib(account.foreign)}, headroom is {gib(account.device.headroom_bytes)}"
    )


def _strangers_hold(state: State, group: Group) -> bool:
    """True if no GPU has room even after all our own jobs end, or none answers its probe."""
    return all(
        state.classes[index].is_cpu or state.classes[index].available() < choices[-1].need
        for index, choices in group.options.items()
    )


def _strangers(state: State, group: Group) -> str:
    roomiest, need = -1, 0
    for index, choices in group.options.items():
        cls = state.classes[index]
        if not cls.is_cpu:
            need = choices[-1].need
            roomiest = max(roomiest, cls.available())
    if roomiest < 0:
        return f"no device that could take it answers its probe (it needs {gib(need)})"
    return f"needs {gib(need)} and other programs leave {gib(roomiest)} at most on any device"


def _measured_on_gpu(state: State, group: Group) -> bool:
    return any(
        choices[0].measured for index, choices in group.options.items() if not state.classes[index].is_cpu
    )


def _fullest(state: State, group: Group) -> str:
    """What the device with the most room offers against what the job needs, in words."""
    best: DeviceAccount | None = None
    need = 0
    for index, choices in group.options.items():
        cls = state.classes[index]
        if cls.is_cpu:
            continue
        account = cls.open[-1][2] if cls.open else cls.accounts[0]
        if best is None or account.free > best.free:
            best, need = account, choices[-1].need
    if best is None:
        return "no device could take it"
    return (
        f"no device can take it now (it needs {gib(need)}; {best.device.name} has {gib(max(0, best.free))} "
        "free)"
    )
