"""What the dispatcher's decisions cost, in processor time of one thread."""

import gc
import random
from heapq import heappop, heappush
from time import thread_time
from typing import Any

from scheduler.core.dispatcher import Dispatcher
from scheduler.core.engine import Engine
from scheduler.core.events import AttemptEnded, Done, Event, JobAdded, JobsAdded, SnapshotTaken
from scheduler.core.instructions import Instruction, Start
from scheduler.core.model import Device, DeviceKind, DeviceSnapshot, Footprint, Job, JobPlan, Placement
from scheduler.core.trace import Trace, TraceJob, TruePlan

GIB = 1 << 30
KINDS, FAMILIES = 96, 8
CUDA, CPU = (DeviceKind.CUDA,), (DeviceKind.CPU,)


def devices(count: int) -> tuple[Device, ...]:
    """GPUs of two sizes and speeds, eight to a host, with the CPUs of the hosts."""
    gpus = [
        Device(
            f"g{n}", f"gpu{n}", CUDA[0], (24 if n % 2 else 48) * GIB, 4, "AB"[n % 2], f"h{n // 8}", GIB // 2
        )
        for n in range(count)
    ]
    hosts = range((count + 7) // 8)
    return (*gpus, *(Device(f"c{h}", f"cpu{h}", CPU[0], 512 * GIB, 8, "cpu", f"h{h}") for h in hosts))


class Kinds:
    """Kinds of jobs with random footprints and times, and jobs drawn from them."""

    def __init__(self, seed: int = 0) -> None:
        self._choose = random.Random(seed)
        self._plans = []
        for _ in range(KINDS):
            nbytes, seconds = int(GIB * self._choose.uniform(1, 16)), self._choose.uniform(10, 60)
            self._plans.append((
                JobPlan("gpu", CUDA, Footprint(nbytes, nbytes // 4), cost=seconds),
                JobPlan("cpu", CPU, Footprint(0, nbytes // 4), cost=12 * seconds),
            ))  # fmt: skip
        self._made = 0

    def job(self) -> Job:
        """One more job."""
        self._made += 1
        kind = self._choose.randrange(KINDS)
        return Job(f"j{self._made}", f"kind{kind}", self._plans[kind], family=f"family{kind % FAMILIES}")

    def trace_job(self) -> TraceJob:
        """One more job whose declared footprints are the true ones."""
        job = self.job()
        truth = {
            plan.name: TruePlan(plan.footprint.device_bytes, plan.footprint.host_bytes, plan.cost)
            for plan in job.plans
        }
        return TraceJob(job, truth)


class _Feeder:
    """Keeps a dispatcher's devices full and its queue at one length, and times every event."""

    def __init__(self, count: int, queued: int) -> None:
        self.devices = devices(count)
        self.kinds = Kinds()
        self.dispatcher = Dispatcher(devices=self.devices)
        self.now = 0.0
        self.ends: list[tuple[float, int, Placement]] = []
        self.starts = 0
        self.times: dict[str, list[float]] = {}
        for device in self.devices:
            self.take(
                self.dispatcher.handle(SnapshotTaken(0.0, DeviceSnapshot(device.uuid, device.total_bytes, 0)))
            )
        self.take(self.dispatcher.handle(JobsAdded(0.0, tuple(self.kinds.job() for _ in range(queued)))))

    def take(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Start):
                self.starts += 1
                placement = instruction.placement
                heappush(self.ends, (self.now + placement.plan.cost, self.starts, placement))

    def tell(self, event: Event) -> None:
        began = thread_time()
        instructions = self.dispatcher.handle(event)
        self.times.setdefault(type(event).__name__, []).append(thread_time() - began)
        self.take(instructions)

    def round(self) -> None:
        """An attempt ends, a job arrives, and the device is probed."""
        self.now, _, placement = heappop(self.ends)
        need = placement.plan.footprint
        done = Done(need.device_bytes or None, need.host_bytes, placement.plan.cost)
        self.tell(AttemptEnded(self.now, placement.job_id, placement.attempt, done))
        self.tell(JobAdded(self.now, self.kinds.job()))
        device = next(device for device in self.devices if device.uuid == placement.device)
        self.tell(SnapshotTaken(self.now, DeviceSnapshot(device.uuid, device.total_bytes, 0)))


def events(queued: int, rounds: int) -> dict[str, Any]:
    """Ends, arrivals and snapshots, one of each a round, at 16 devices and a queue of constant length."""
    feeder = _Feeder(16, queued)
    for _ in range(rounds // 10):
        feeder.round()
    feeder.times.clear()
    for _ in range(rounds):
        feeder.round()
    every = sorted(time for times in feeder.times.values() for time in times)
    deciding = sorted(
        time for name, times in feeder.times.items() if name != "SnapshotTaken" for time in times
    )
    return {
        "queued": queued,
        "events": len(every),
        "events_per_s": len(every) / sum(every),
        "events_per_s_without_snapshots": len(deciding) / sum(deciding),
        "p50_ms": 1e3 * deciding[len(deciding) // 2],
        "p99_ms": 1e3 * deciding[int(0.99 * len(deciding))],
        "worst_ms": 1e3 * deciding[-1],
        "mean_us": {name: 1e6 * sum(times) / len(times) for name, times in feeder.times.items()},
    }


def queue_curve(lengths: tuple[int, ...], rounds: int) -> list[dict[str, float]]:
    """Mean cost of a decision against the queue's length: an end with the start that follows, an arrival."""
    curve = []
    for length in lengths:
        feeder = _Feeder(16, length)
        gc.collect()
        for _ in range(rounds // 10):
            feeder.round()
        feeder.times.clear()
        for _ in range(rounds):
            feeder.round()
        times = feeder.times["AttemptEnded"] + feeder.times["JobAdded"]
        curve.append({"queued": length, "us": 1e6 * sum(times) / len(times)})
    return curve


def placements(device_count: int, job_count: int) -> dict[str, Any]:
    """A whole simulated run, virtual cluster included."""
    kinds = Kinds()
    jobs = tuple(kinds.trace_job() for _ in range(job_count))
    trace = Trace("large", devices(device_count), jobs, {"A": 1.5}, load_fraction=0.0)
    gc.collect()
    began = thread_time()
    outcome = Engine(trace, Dispatcher(devices=trace.devices)).run()
    seconds = thread_time() - began
    return {
        "devices": device_count,
        "jobs": job_count,
        "placements": outcome.attempts,
        "processor_s": seconds,
        "placements_per_s": outcome.attempts / seconds,
        "done": outcome.done,
        "lost": outcome.lost,
    }
