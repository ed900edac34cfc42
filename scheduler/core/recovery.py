"""What becomes of a job whose attempt didn't succeed: the out-of-memory ladder, suspects, requeues."""

from dataclasses import dataclass

from scheduler.core.events import OutOfMemory
from scheduler.core.model import JobPlan, Placement, gib
from scheduler.core.records import Group, JobRecord
from scheduler.core.state import State

# After an out of memory the retry asks for this much more than what was reserved or reached.
RAISE = 1.3
STRIKES = 2
HOST_RETRIES = 2


@dataclass(frozen=True, slots=True)
class Rung:
    """The next step of the ladder: `group` is where the job waits now; or why there is none."""

    name: str
    reason: str
    group: Group | None


def after_oom(state: State, record: JobRecord, placement: Placement, outcome: OutOfMemory) -> Rung:
    """The next rung for a job that ran out of memory: any device with a raised need, another device, blocks,
    the CPU.

    Each attempt either raises the need, excludes a device or gives up a kind of plan, so the ladder ends.
    """
    account = state.accounts[placement.device]
    said = (
        f"out of memory on {account.device.name} (reserved "
        f"{gib(placement.reserve_bytes or placement.host_bytes)}, "
        f"reached {gib(outcome.peak_bytes) if outcome.peak_bytes is not None else 'an unknown peak'})"
    )
    if outcome.on_host or account.cls.is_cpu:
        return _host_rung(state, record, placement, outcome, said)
    record.ooms += 1
    if placement.device not in record.tried:
        record.tried = (*record.tried, placement.device)
    origin = record.group
    whole = tuple(
        plan for plan in placement_plans(record, placement) if not plan.on_cpu and plan.split is None
    )
    if placement.plan.split is None and whole:
        for name, need, excluded, alone in _device_rungs(
            state, record, placement, outcome, account.cls.capacity
        ):
            group = _terms(state, record, whole, need, origin.least_host, excluded, name, alone)
            if state.enqueue(group):
                return Rung(name, f"{said}: {name}, asking for {gib(need)}", group)
            state.leave(record)
    if not state.policy.reproducible:
        for name, plans in _smaller_rungs(record, placement):
            group = _terms(state, record, plans, 0, origin.least_host, frozenset(), name)
            if state.enqueue(group):
                return Rung(name, f"{said}: {name}", group)
            state.leave(record)
    return Rung("failure", f"{said}, after {record.ooms} such ends; nothing smaller is left to try", None)


def _device_rungs(
    state: State, record: JobRecord, placement: Placement, outcome: OutOfMemory, capacity: int
) -> list[tuple[str, int, frozenset[str], bool]]:
    """Whole-stack rungs that are left, as (name, need, excluded devices, alone)."""
    if record.ooms >= state.policy.max_oom_attempts:
        return []
    base = max(placement.reserve_bytes, outcome.peak_bytes or 0)
    raised = int(base * RAISE)
    if base < 0.95 * capacity:
        # it hasn't had the whole device yet, so the whole device is worth a try
        raised = min(raised, capacity)
    rungs = [
        ("another device", placement.reserve_bytes, frozenset(record.tried), False),
        ("a device of its own", raised, frozenset(), True),
    ]
    if record.ooms == 1:
        rungs.insert(0, ("a device that has more room", raised, frozenset(), False))
    return rungs


def _smaller_rungs(record: JobRecord, placement: Placement) -> list[tuple[str, tuple[JobPlan, ...]]]:
    """Plans in smaller blocks than the one that failed, then the CPU."""
    rungs = _finer_rungs(record, placement, on_cpu=False)[:1]
    cpu = tuple(plan for plan in record.job.plans if plan.on_cpu)
    return [*rungs, ("the CPU", cpu)] if cpu else rungs


def _finer_rungs(
    record: JobRecord, placement: Placement, *, on_cpu: bool
) -> list[tuple[str, tuple[JobPlan, ...]]]:
    """Plans in smaller blocks than the one that failed, the largest blocks first."""
    blocks = placement.plan.split.blocks if placement.plan.split is not None else 1
    finer: dict[int, tuple[JobPlan, ...]] = {}
    for plan in record.job.plans:
        if plan.on_cpu == on_cpu and plan.split is not None and plan.split.blocks > blocks:
            finer[plan.split.blocks] = (*finer.get(plan.split.blocks, ()), plan)
    return [(f"in {count} blocks", finer[count]) for count in sorted(finer)]


def _host_rung(
    state: State, record: JobRecord, placement: Placement, outcome: OutOfMemory, said: str
) -> Rung:
    """Host memory ran out: the same plans with a raised host need, a bounded number of times, then blocks.

    A raise comes first, for blocks cost their halo again. What a GPU's chain needs of its host doesn't shrink
    with blocks: the whole stack and the whole result lie there.
    """
    record.host_ooms += 1
    raised = int(max(placement.host_bytes, outcome.peak_bytes or 0) * RAISE)
    if record.host_ooms <= HOST_RETRIES:
        plans = placement_plans(record, placement)
        group = _terms(
            state, record, plans, record.group.least_need, raised, record.group.excluded, "more host memory"
        )
        if state.enqueue(group):
            return Rung("more host memory", f"{said}: again, asking for {gib(raised)} of host memory", group)
        state.leave(record)
        ended = f"the {gib(raised)} of host memory that a retry would ask for are more than any host has"
    else:
        ended = f"it was tried {record.host_ooms} times"
    on_cpu = state.accounts[placement.device].cls.is_cpu and not state.policy.reproducible
    for name, plans in _finer_rungs(record, placement, on_cpu=True) if on_cpu else ():
        group = _terms(state, record, plans, record.group.least_need, 0, record.group.excluded, name)
        if state.enqueue(group):
            return Rung(name, f"{said}; {ended}: {name}", group)
        state.leave(record)
    last = f"; the last time: {outcome.error}" if outcome.error else ""
    return Rung("failure", f"{said}; {ended}{last}", None)


def placement_plans(record: JobRecord, placement: Placement) -> tuple[JobPlan, ...]:
    """The plans that a retry may use.

    Those of the group it came from, which always include the one that ran.
    """
    plans = record.group.plans
    return plans if placement.plan in plans else (placement.plan, *plans)


def suspect(state: State, record: JobRecord) -> Group:
    """A group of its own for a job whose worker died under it: it runs alone next time."""
    return _terms(
        state,
        record,
        record.group.plans,
        record.group.least_need,
        record.group.least_host,
        record.group.excluded,
        "its worker died under it, so it runs alone",
        True,
    )


def _terms(
    state: State,
    record: JobRecord,
    plans: tuple[JobPlan, ...],
    least_need: int,
    least_host: int,
    excluded: frozenset[str],
    rung: str,
    alone: bool = False,
) -> Group:
    group = state.new_group(record.job)
    group.plans = plans
    group.alone = alone or record.strikes > 0
    group.excluded = excluded
    group.least_need = least_need
    group.least_host = least_host
    group.rung = rung
    state.wait(record, group)
    return group
