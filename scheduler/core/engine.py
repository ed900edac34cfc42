"""Virtual time and virtual memory: carries out instructions on a trace's cluster and tells what happened."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import groupby
from math import inf, nextafter
from typing import Protocol

from scheduler.core.events import (
    AttemptBegan,
    AttemptEnded,
    Cancelled,
    Done,
    Event,
    JobsAdded,
    OutOfMemory,
    ResidentEvicted,
    SnapshotTaken,
    Tick,
    TimedOut,
    WorkerJoined,
    WorkerLost,
)
from scheduler.core.instructions import (
    CancelAttempt,
    Evict,
    FinishJob,
    Instruction,
    JobOutcome,
    Start,
    StopRun,
)
from scheduler.core.model import Device, DeviceSnapshot, Placement, ProcessMemory
from scheduler.core.trace import Death, Hog, Trace, TraceJob

# A simulated cluster that can't go on is told the time this often, and given up after as many quiet tellings.
TICK_S = 10.0
PATIENCE = 1000


class Scheduler(Protocol):
    """What drives a cluster: the dispatcher, or one of the baselines."""

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event in and return what to do now."""
        ...


@dataclass(slots=True)
class _Attempt:
    placement: Placement
    job: TraceJob
    started_s: float
    ends_s: float
    allocated: int = 0
    shared: bool = False
    over: bool = False


@dataclass(slots=True)
class Span:
    """One attempt in the picture of a run: where, when, and whether it ran out of memory."""

    job_id: str
    uuid: str
    start_s: float
    end_s: float
    nbytes: int
    oom: bool


@dataclass(slots=True)
class Outcome:
    """What a simulated run came to. Times in seconds of virtual time; `lost` jobs have no ending at all."""

    makespan_s: float = 0.0
    done: int = 0
    failed: int = 0
    lost: int = 0
    oom_attempts: int = 0
    attempts: int = 0
    overcommitted_bytes: int = 0
    events: int = 0
    on_cpu: int = 0
    spans: list[Span] | None = None


class _Device:
    __slots__ = ("attempts", "device", "hog", "reserved", "residents", "used")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.attempts: dict[str, _Attempt] = {}
        self.used = 0
        self.hog = 0
        self.reserved = 0
        self.residents: dict[str, int] = {}


class Engine:
    """Runs one trace under one scheduler. `used(uuid)` is what NVML would say of a device at this moment."""

    def __init__(self, trace: Trace, scheduler: Scheduler, *, keep_spans: bool = False) -> None:
        self.trace = trace
        self.now = 0.0
        self.outcome = Outcome(spans=[] if keep_spans else None)
        self._scheduler = scheduler
        self._devices = {device.uuid: _Device(device) for device in trace.devices}
        self._cpus = {
            device.host: device.uuid for device in trace.devices if not device.slots or _is_cpu(device)
        }
        self._jobs = {trace_job.job.job_id: trace_job for trace_job in trace.jobs}
        self._unfinished = len(trace.jobs)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._stopped = False

    def used(self, uuid: str) -> int:
        """Physically used bytes of a device, strangers included."""
        device = self._devices[uuid]
        return device.used + device.hog

    def run(self) -> Outcome:
        """Until every job has an ending, or nothing moves any more."""
        for device in self._devices.values():
            self._tell(SnapshotTaken(0.0, self._snapshot(device)))
        arrivals = sorted(self.trace.jobs, key=lambda trace_job: trace_job.arrival_s)
        for at, jobs in groupby(arrivals, key=lambda trace_job: trace_job.arrival_s):
            added = tuple(trace_job.job for trace_job in jobs)
            self._later(at, lambda added=added: self._tell(JobsAdded(self.now, added)))  # type: ignore[misc]
        for hog in self.trace.hogs:
            self._later(hog.at_s, lambda hog=hog: self._hog_comes(hog))  # type: ignore[misc]
        for death in self.trace.deaths:
            self._later(death.at_s, lambda death=death: self._worker_dies(death))  # type: ignore[misc]
        quiet = 0
        while self._unfinished and not self._stopped:
            if self._heap:
                self.now, _, action = heappop(self._heap)
                action()
                quiet = 0
                continue
            quiet += 1
            if quiet > PATIENCE:
                break
            self.now += TICK_S
            self._tell(Tick(self.now))
        self.outcome.lost = self._unfinished
        return self.outcome

    # the world

    def _later(self, at_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._heap, (at_s, self._count, action))

    def _tell(self, event: Event) -> None:
        self.outcome.events += 1
        for instruction in self._scheduler.handle(event):
            if type(instruction) is Start:
                self._start(instruction.placement)
            elif type(instruction) is FinishJob:
                self._finish(instruction)
            elif type(instruction) is CancelAttempt:
                self._cancel(instruction)
            elif type(instruction) is Evict:
                self._evict(instruction)
            elif type(instruction) is StopRun:
                self._stopped = True

    def _finish(self, instruction: FinishJob) -> None:
        self._unfinished -= 1
        if instruction.outcome is JobOutcome.DONE:
            self.outcome.done += 1
            self.outcome.makespan_s = self.now
        else:
            self.outcome.failed += 1

    def _start(self, placement: Placement) -> None:
        device = self._devices[placement.device]
        job = self._jobs[placement.job_id]
        seconds = self.trace.seconds(job, placement.plan.name, device.device)
        attempt = _Attempt(placement, job, self.now, self.now + seconds)
        self.outcome.attempts += 1
        if device.attempts:
            attempt.shared = True
            for other in device.attempts.values():
                other.shared = True
        device.attempts[placement.job_id] = attempt
        device.reserved += placement.host_bytes if _is_cpu(device.device) else placement.reserve_bytes
        resident = placement.plan.resident
        if placement.resident_bytes and resident is not None:
            device.residents[resident.name] = placement.resident_bytes
            device.used += placement.resident_bytes
            device.reserved += placement.resident_bytes
        if job.job.timeout_s is not None:
            self._watch(placement, job.job.timeout_s)
        loading = self.trace.load_fraction * seconds
        if loading > 0:
            self._later(self.now + loading, lambda: self._allocate(device, attempt))
        else:
            self._allocate(device, attempt)

    def _watch(self, placement: Placement, timeout_s: float) -> None:
        """Here an attempt begins at once; a Tick comes when it is overdue, lest nothing else happens then."""
        began = AttemptBegan(self.now, placement.job_id, placement.attempt)
        self._later(self.now, lambda: self._tell(began))
        self._later(nextafter(self.now + timeout_s, inf), lambda: self._tell(Tick(self.now)))

    def _allocate(self, device: _Device, attempt: _Attempt) -> None:
        if attempt.over:
            return
        truth = attempt.job.truth[attempt.placement.plan.name]
        need = truth.host_bytes if _is_cpu(device.device) else truth.device_bytes
        if device.used + device.hog + need > device.device.total_bytes:
            attempt.ends_s = self.now + self.trace.oom_cost_s
            self._later(attempt.ends_s, lambda: self._end(device, attempt, oom=True))
            return
        attempt.allocated = need
        device.used += need
        self._later(attempt.ends_s, lambda: self._end(device, attempt, oom=False))

    def _end(self, device: _Device, attempt: _Attempt, *, oom: bool) -> None:
        if attempt.over:
            return
        self._vacate(device, attempt)
        placement = attempt.placement
        truth = attempt.job.truth[placement.plan.name]
        outcome = self.outcome
        if outcome.spans is not None:
            span = Span(
                placement.job_id, placement.device, attempt.started_s, self.now, attempt.allocated, oom
            )
            outcome.spans.append(span)
        result: Done | OutOfMemory
        if oom:
            outcome.oom_attempts += 1
            # what it held when it failed: all that it needed, or as far as others left room
            reached = min(truth.device_bytes, device.device.total_bytes - device.used - device.hog)
            result = OutOfMemory(max(0, reached), self._snapshot(device), on_host=_is_cpu(device.device))
        else:
            cpu = _is_cpu(device.device)
            outcome.on_cpu += cpu
            result = Done(
                None if cpu else truth.device_bytes,
                truth.host_bytes,
                attempt.ends_s - attempt.started_s,
                attributed=cpu or not attempt.shared,
            )
        self._tell(AttemptEnded(self.now, placement.job_id, placement.attempt, result))

    def _vacate(self, device: _Device, attempt: _Attempt) -> None:
        attempt.over = True
        placement = attempt.placement
        device.attempts.pop(placement.job_id, None)
        device.used -= attempt.allocated
        device.reserved -= placement.host_bytes if _is_cpu(device.device) else placement.reserve_bytes

    def _cancel(self, instruction: CancelAttempt) -> None:
        device = self._devices[instruction.device]
        attempt = device.attempts.get(instruction.job_id)
        if attempt is not None:
            self._vacate(device, attempt)
            reason = instruction.decision.reason
            ended = TimedOut(reason) if instruction.restart_worker else Cancelled(reason)
            event = AttemptEnded(self.now, instruction.job_id, instruction.attempt, ended)
            self._later(self.now, lambda: self._tell(event))

    def _evict(self, instruction: Evict) -> None:
        device = self._devices[instruction.device]
        nbytes = device.residents.pop(instruction.name, 0)
        device.used -= nbytes
        device.reserved -= nbytes
        event = ResidentEvicted(self.now, instruction.device, instruction.name)
        self._later(self.now, lambda: self._tell(event))

    def _hog_comes(self, hog: Hog) -> None:
        device = self._devices[hog.uuid]
        taken = max(0, min(hog.nbytes, device.device.total_bytes - device.used - device.hog))
        device.hog += taken
        self._later(self.now + hog.for_s, lambda: self._hog_goes(device, taken))
        self._look_later(device)

    def _hog_goes(self, device: _Device, taken: int) -> None:
        device.hog -= taken
        self._look_later(device)

    def _look_later(self, device: _Device) -> None:
        at = self.now + self.trace.staleness_s
        self._later(at, lambda: self._tell(SnapshotTaken(self.now, self._snapshot(device))))

    def _snapshot(self, device: _Device) -> DeviceSnapshot:
        ours = (ProcessMemory(1, device.used, 0, max(device.reserved, device.used)),)
        return DeviceSnapshot(device.device.uuid, device.device.total_bytes, device.used + device.hog, ours)

    def _worker_dies(self, death: Death) -> None:
        device = self._devices[death.uuid]
        for attempt in list(device.attempts.values()):
            self._vacate(device, attempt)
        held = sum(device.residents.values())
        device.residents.clear()
        device.used -= held
        device.reserved -= held
        self._tell(WorkerLost(self.now, death.uuid, blame=False))
        self._later(self.now + death.back_s, lambda: self._tell(WorkerJoined(self.now, device.device)))


def _is_cpu(device: Device) -> bool:
    return device.kind == "cpu"


def concurrency(spans: list[Span]) -> dict[str, list[tuple[float, int]]]:
    """Bytes in use over time for each device, as steps: (from this second, bytes)."""
    changes: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for span in spans:
        changes[span.uuid] += [(span.start_s, span.nbytes), (span.end_s, -span.nbytes)]
    levels: dict[str, list[tuple[float, int]]] = {}
    for uuid, steps in changes.items():
        level = 0
        levels[uuid] = [(at, level := level + change) for at, change in sorted(steps)]
    return levels
