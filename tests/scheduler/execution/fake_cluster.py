"""A Dask cluster for the driver whose workers do what a test says: no processes, no clock, one thread."""

import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from distributed.scheduler import KilledWorker

from scheduler.core.dispatcher import Dispatcher
from scheduler.core.events import Done, Outcome
from scheduler.core.instructions import JobOutcome
from scheduler.core.model import Device, DeviceKind, DeviceSnapshot, Footprint, Job, JobPlan, Placement
from scheduler.core.policy import Policy
from scheduler.execution.batch import Batch
from scheduler.execution.crew import ClusterTerms
from scheduler.execution.driver import Driver, TakeSnapshots, nobody
from scheduler.execution.fleet import Fleet
from scheduler.execution.messages import Ended, Hello, Left, Readings
from scheduler.execution.task import AttemptKey, AttemptReport, AttemptTask, OutputTarget

MIB = 1 << 20
CPU = Device("CPU-localhost", "cpu", DeviceKind.CPU, 100 * MIB, slots=2)
GPU = Device("GPU-1", "gpu0", DeviceKind.CUDA, 100 * MIB)
ON_CPU = JobPlan("cpu", (DeviceKind.CPU,), Footprint(0, MIB))
ON_GPU = JobPlan("gpu", (DeviceKind.CUDA,), Footprint(MIB, MIB))
TOPIC = "topic"
DEADLINE_S = 30.0


class FakeFuture:
    """A Dask task in a worker, and the attempts that are a part of it; `task` is the first one."""

    def __init__(self, tasks: Sequence[AttemptTask], address: str) -> None:
        self.tasks = tasks
        self.task = tasks[0]
        self.address = address
        self.status = "pending"
        self.cancelled = False
        self.array: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)
        if self.status != "pending":
            callback(self)

    def fail(self, error: BaseException) -> None:
        """Dask couldn't run the task, or gave it up."""
        self._error = error
        self.drop("error")

    def drop(self, status: str) -> None:
        """Dask knows nothing more of the task: it is error, lost or cancelled."""
        self.status = status
        for callback in self._callbacks:
            callback(self)

    def exception(self) -> BaseException | None:
        return self._error

    def result(self) -> Any:
        if isinstance(self.array, BaseException):
            raise self.array
        return {(self.task.job_id, self.task.number): self.array}

    def cancel(self, force: bool = False) -> None:
        self.cancelled = True


class FakeClient:
    """Hands what is submitted to `work`, and remembers what else was asked for."""

    def __init__(self, work: Callable[[FakeFuture], None]) -> None:
        self.work = work
        self.status = "running"
        self.scheduler_comm = object()
        self.futures: list[FakeFuture] = []
        self.submitted: list[dict[str, Any]] = []
        self.calls: list[tuple[str, list[str], tuple[Any, ...]]] = []
        self.restarted: list[str] = []
        self.let_go: list[str] = []
        self.ended = threading.Event()
        """Set when a worker process was restarted or let go, which happens in a thread of its own."""

    def submit(self, function: Any, batch: Batch, topic: str, **terms: Any) -> FakeFuture:
        (address,) = terms["workers"]
        packed = batch.attempts.values()
        tasks = [pickle.loads(each) if isinstance(each, bytes) else each for each in packed]
        future = FakeFuture(tasks, address)
        self.futures.append(future)
        self.submitted.append(terms)
        self.work(future)
        return future

    def run(self, function: Any, *arguments: Any, workers: list[str], **_: Any) -> None:
        self.calls.append((function.__name__, workers, arguments))

    def run_on_scheduler(self, function: Any, *arguments: Any) -> None:
        self.calls.append((function.__name__, [], arguments))
        self.ended.set()

    def restart_workers(self, workers: list[str], **_: Any) -> None:
        self.restarted += workers
        self.ended.set()

    def retire_workers(self, workers: list[str], **_: Any) -> None:
        self.let_go += workers
        self.ended.set()


class FakeRecord:
    """Remembers what is written down; `on_moment` is called in each of the driver's turns."""

    def __init__(self) -> None:
        self.finishes: dict[str, tuple[str, str]] = {}
        self.outcomes: dict[str, list[Outcome]] = {}
        self.remarks: list[str] = []
        self.stuck: dict[str, str] = {}
        self.devices: list[Device] = []
        self.no_room = ""
        self.on_moment: Callable[[str], None] = lambda _state: None

    def moment(self, state: str, *_: Any, stuck: dict[str, str]) -> None:
        self.stuck = stuck
        self.on_moment(state)

    def finished(self, job_id: str, outcome: str, reason: str) -> None:
        self.finishes[job_id] = str(outcome), reason

    def ended(self, placement: Placement, outcome: Outcome, _report: AttemptReport | None) -> None:
        self.outcomes.setdefault(placement.job_id, []).append(outcome)

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def add_devices(self, devices: Sequence[Device]) -> None:
        self.devices += devices

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name in ("decided", "started", "add_jobs"):
            return lambda *_: None
        raise AttributeError(name)


@dataclass
class Finish:
    """What the driver told of a job's end."""

    outcome: JobOutcome
    reason: str
    placement: Placement | None
    report: AttemptReport | None
    array: Any


@dataclass
class World:
    """A driver, its fleet, and the fakes around them. Everything heard before `run` is taken in first."""

    work: Callable[[FakeFuture], None]
    terms: ClusterTerms = field(default_factory=ClusterTerms)
    take_snapshots: TakeSnapshots | None = None
    returns_array: bool = False
    max_failures: int = 10
    table_holder: Callable[[], int | None] = nobody

    def __post_init__(self) -> None:
        client = self.client = FakeClient(self.work)
        self.record = FakeRecord()
        self.finishes: dict[str, Finish] = {}
        fake: Any = client
        book: Any = self.record
        self.fleet = Fleet(fake, TOPIC)
        policy = Policy(elastic=self.terms.elastic, max_failures=self.max_failures)
        self.dispatcher = Dispatcher(policy)
        self.driver = Driver(
            self.fleet,
            self.dispatcher,
            book,
            make_task=self._make_task,
            on_finished=self._finished,
            take_snapshots=self.take_snapshots,
            terms=self.terms,
            table_holder=self.table_holder,
        )

    @property
    def futures(self) -> list[FakeFuture]:
        """The attempts so far, in order."""
        return self.client.futures

    def join(
        self,
        address: str,
        device: Device = CPU,
        *,
        slots: int = 1,
        has_nanny: bool = True,
        process_bytes: int = 0,
    ) -> None:
        """A worker process says hello, and what its device's memory is like: all free."""
        hello = Hello(
            address, address, address, 1, device, CPU, slots, has_nanny, process_bytes=process_bytes
        )
        self.driver.hear(hello)
        known = {each.uuid: each for each in (device, CPU)}
        free = [DeviceSnapshot(each.uuid, each.total_bytes, 0) for each in known.values()]
        self.driver.hear(Readings(tuple(free)))

    def leave(self, address: str, *, expected: bool = False) -> None:
        """The scheduler has removed a worker process."""
        self.driver.hear(Left(address, address, expected))

    def end(
        self,
        future: FakeFuture,
        outcome: Outcome | None = None,
        *,
        task: AttemptTask | None = None,
        returned: Any = None,
        **report: Any,
    ) -> None:
        """The worker tells how an attempt, or that `task`, ended; what it returned goes with the news."""
        task = task or future.task
        outcome = outcome or Done()
        report.setdefault("began_to_write", isinstance(outcome, Done))
        told = AttemptReport(outcome, worker_pid=1, **report)
        self.driver.hear(Ended(task.job_id, task.number, told, returned))

    def replace_when_restarted(self, address: str, by: str) -> None:
        """Once the driver has restarted a worker process, another one comes in its place."""

        def look(_state: str) -> None:
            if self.client.restarted and self.fleet.get(by) is None:
                self.leave(address)
                self.join(by)

        self.record.on_moment = look

    def run(self, *jobs: Job) -> str:
        """Run the jobs to their end; returns the state of the run."""
        self.driver.add(jobs)
        self.driver.finish()
        return self.driver.run()

    def _make_task(self, placement: Placement) -> AttemptTask:
        output = OutputTarget("out", "ome-tiff", False, {})
        source: Any = SimpleNamespace(nbytes=1)
        return AttemptTask(
            placement.job_id,
            "kind",
            placement.attempt,
            source,
            (),
            (),
            placement.reserve_bytes,
            placement.host_bytes,
            output,
            returns_array=self.returns_array,
        )

    def _finished(
        self,
        job_id: str,
        outcome: JobOutcome,
        reason: str,
        placement: Placement | None,
        report: AttemptReport | None,
        array: Any,
    ) -> None:
        self.finishes[job_id] = Finish(outcome, reason, placement, report, array)


def killed_worker() -> KilledWorker:
    """What Dask says of a task that was in a worker that died."""
    address: Any = SimpleNamespace(address="tcp://here:1")
    return KilledWorker("job", address, 0)


def job(name: str, *plans: JobPlan, **rest: Any) -> Job:
    """A job of the kind that all of a test's have."""
    return Job(name, "kind", plans or (ON_CPU,), **rest)


def keys(*names: str) -> list[AttemptKey]:
    """The first attempts at jobs."""
    return [(name, 1) for name in names]


def nothing(_future: FakeFuture) -> None:
    """A worker that doesn't come to an end by itself."""
