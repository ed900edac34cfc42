"""Lower bounds of the makespan: no scheduler can be faster, whatever it knows."""

from typing import Any

from scheduler.core.model import Device, DeviceKind
from scheduler.core.trace import Trace, TraceJob

_LP_JOBS = 5000
_Class = tuple[DeviceKind, str, int, int]


def makespan_bound(trace: Trace) -> float:
    """The largest of three relaxations, in seconds: memory area, slots, and the longest job.

    Memory area and slots are combined exactly for unlike devices: jobs may be divided among classes of
    devices, and each class works off memory-seconds and slot-seconds at its capacity; the least such time is
    a linear program. Hogs and deaths are left out, which keeps it a bound.
    """
    classes = _classes(trace)
    longest = 0.0
    for trace_job in trace.jobs:
        options = _options(trace, trace_job, classes)
        if options:
            fastest = min(seconds for _, seconds, _ in options)
            longest = max(longest, trace_job.arrival_s + fastest)
    if len(trace.jobs) > _LP_JOBS:
        return max(longest, _area(trace, classes))
    return max(longest, _program(trace, classes))


def _classes(trace: Trace) -> dict[_Class, int]:
    counts: dict[_Class, int] = {}
    for device in trace.devices:
        if device.slots:
            key = _class_of(device)
            counts[key] = counts.get(key, 0) + 1
    return counts


def _class_of(device: Device) -> _Class:
    return device.kind, device.model, device.total_bytes, device.slots


def _options(trace: Trace, trace_job: TraceJob, classes: dict[_Class, int]) -> list[tuple[int, float, float]]:
    """(class, seconds, share of memory) of every class that could run it.

    The faster plan where there are two.
    """
    options = []
    for index, (kind, model, total, _) in enumerate(classes):
        best: tuple[float, float] | None = None
        for plan in trace_job.job.plans:
            truth = trace_job.truth.get(plan.name)
            if kind not in plan.device_kinds or truth is None:
                continue
            need = truth.host_bytes if kind is DeviceKind.CPU else truth.device_bytes
            if need <= total:
                seconds = truth.seconds / trace.speeds.get(model, 1.0)
                if best is None or seconds < best[0]:
                    best = seconds, need / total
        if best is not None:
            options.append((index, *best))
    return options


def _area(trace: Trace, classes: dict[_Class, int]) -> float:
    """Each job at its cheapest, all devices together.

    Weaker than the program, and quick for a million jobs.
    """
    memory = slots = 0.0
    known: dict[str, tuple[float, float]] = {}
    for trace_job in trace.jobs:
        cheapest = known.get(trace_job.job.kind)
        if cheapest is None:
            options = _options(trace, trace_job, classes)
            cheapest = (
                min((seconds * share for _, seconds, share in options), default=0.0),
                min((seconds for _, seconds, _ in options), default=0.0),
            )
            known[trace_job.job.kind] = cheapest
        memory += cheapest[0]
        slots += cheapest[1]
    devices = sum(classes.values())
    all_slots = sum(count * key[3] for key, count in classes.items())
    return max(memory / max(1, devices), slots / max(1, all_slots))


def _program(trace: Trace, classes: dict[_Class, int]) -> float:
    import numpy as np
    from scipy import optimize
    from scipy.sparse import coo_array

    counts = list(classes.values())
    slots = [key[3] for key in classes]
    rows, columns, values, memberships = [], [], [], []
    variable = 0
    jobs = 0
    for trace_job in trace.jobs:
        options = _options(trace, trace_job, classes)
        if not options:
            continue
        for index, seconds, share in options:
            rows += [2 * index, 2 * index + 1]
            columns += [variable, variable]
            values += [seconds * share, seconds]
            memberships.append((jobs, variable))
            variable += 1
        jobs += 1
    if not jobs:
        return 0.0
    for index, count in enumerate(counts):
        rows += [2 * index, 2 * index + 1]
        columns += [variable, variable]
        values += [-float(count), -float(count * slots[index])]
    capacity = coo_array((values, (rows, columns)), shape=(2 * len(counts), variable + 1))
    member_rows, member_columns = zip(*memberships, strict=True)
    whole = coo_array((np.ones(len(memberships)), (member_rows, member_columns)), shape=(jobs, variable + 1))
    objective = np.zeros(variable + 1)
    objective[-1] = 1.0
    solve: Any = optimize.linprog  # its stubs know no sparse matrices
    result = solve(
        objective,
        A_ub=capacity.tocsr(),
        b_ub=np.zeros(2 * len(counts)),
        A_eq=whole.tocsr(),
        b_eq=np.ones(jobs),
    )
    if not result.success:
        raise ArithmeticError(f"the bound's linear program failed: {result.message}")
    return float(result.fun)
