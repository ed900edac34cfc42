"""The shortest possible makespan of a small case, by trying every order on every device."""

from dataclasses import dataclass

from scheduler.core.model import DeviceKind
from scheduler.core.trace import Trace

MOST_JOBS = 8
_Interval = tuple[float, float, int]


@dataclass(slots=True)
class _Place:
    total: int
    slots: int
    running: list[_Interval]


def exact_makespan(trace: Trace) -> float:
    """Seconds of an optimal schedule on the trace's GPUs, all jobs there from the start, no hogs.

    Every schedule that can't be improved by starting a single job earlier is made by some order of the jobs,
    each started on its device as early as those before it allow (Kolisch, 1996); branches that can't beat the
    best so far are cut.

    Raises
    ------
    ValueError
        There are more than `MOST_JOBS` jobs: the work grows with their factorial.
    """
    if len(trace.jobs) > MOST_JOBS:
        raise ValueError(
            f"an exact answer for {len(trace.jobs)} jobs would take too long; {MOST_JOBS} at most"
        )
    devices = [device for device in trace.devices if device.kind is not DeviceKind.CPU]
    needs: list[list[tuple[int, float, int]]] = []
    for trace_job in trace.jobs:
        options = [
            (number, trace.seconds(trace_job, plan.name, device), trace_job.truth[plan.name].device_bytes)
            for number, device in enumerate(devices)
            for plan in trace_job.job.plans
            if device.kind in plan.device_kinds
            and trace_job.truth[plan.name].device_bytes <= device.total_bytes - device.headroom_bytes
        ]
        needs.append(options)
    # long jobs first finds a good schedule early, which cuts more
    needs.sort(key=lambda options: -min((seconds for _, seconds, _ in options), default=0.0))
    places = [_Place(device.total_bytes - device.headroom_bytes, device.slots, []) for device in devices]
    return _search(needs, places, 0.0, float("inf"))


def _search(
    needs: list[list[tuple[int, float, int]]], places: list[_Place], makespan: float, best: float
) -> float:
    if not needs:
        return min(best, makespan)
    tried: set[tuple[tuple[int, float, int], ...]] = set()
    for index, options in enumerate(needs):
        # of jobs that are alike one is enough
        if tuple(options) in tried:
            continue
        tried.add(tuple(options))
        rest = needs[:index] + needs[index + 1 :]
        for number, seconds, nbytes in options:
            place = places[number]
            start = _earliest(place, seconds, nbytes)
            end = max(makespan, start + seconds)
            if end >= best or _least(rest, places) >= best:
                continue
            place.running.append((start, start + seconds, nbytes))
            best = _search(rest, places, end, best)
            place.running.pop()
    return best


def _earliest(place: _Place, seconds: float, nbytes: int) -> float:
    """The first moment from which the job fits beside those already placed, for as long as it takes."""
    for start in sorted({0.0, *(end for _, end, _ in place.running)}):
        beside = [other for other in place.running if other[0] < start + seconds and other[1] > start]
        moments = [start, *(other[0] for other in beside if other[0] > start)]
        if all(
            sum(other[2] for other in beside if other[0] <= at < other[1]) + nbytes <= place.total
            and sum(other[0] <= at < other[1] for other in beside) < place.slots
            for at in moments
        ):
            return start
    raise AssertionError("after the last end the device is empty, and the job fits on it")


def _least(rest: list[list[tuple[int, float, int]]], places: list[_Place]) -> float:
    """No schedule of the rest can end before this: memory area over all devices, jobs divided at will."""
    area = sum(
        seconds * nbytes
        for place in places
        for start, end, nbytes in place.running
        for seconds in [end - start]
    )
    for options in rest:
        area += min(seconds * nbytes for _, seconds, nbytes in options)
    return area / sum(place.total for place in places)
