"""The driver against a fleet whose workers do what a test says."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.scheduler import KilledWorker

from scheduler.core.dispatcher import Dispatcher
from scheduler.core.events import Done
from scheduler.core.model import Device, DeviceKind, DeviceSnapshot, Footprint, Job, JobPlan
from scheduler.execution.attempt import AttemptReport, AttemptTask, OutputTarget
from scheduler.execution.driver import Driver

MIB = 1 << 20
CPU = Device("CPU-localhost", "cpu", DeviceKind.CPU, 100 * MIB, slots=2)
GPU = Device("GPU-1", "gpu0", DeviceKind.CUDA, 100 * MIB)
ON_CPU = JobPlan("cpu", (DeviceKind.CPU,), Footprint(0, MIB))
ON_GPU = JobPlan("gpu", (DeviceKind.CUDA,), Footprint(MIB, MIB))
DONE = AttemptReport(Done(), worker_pid=1)


class FakeFuture:
    """A Dask future that ends when it is told how."""

    def __init__(self, task: AttemptTask, device: str) -> None:
        self.task = task
        self.device = device
        self.status = "pending"
        self._callbacks: list[Callable[[Any], None]] = []
        self._ended = False
        self._error: Any = None
        self.report: AttemptReport | None = None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)
        if self._ended:
            callback(self)

    def end(self, outcome: Any) -> None:
        self.report = None if isinstance(outcome, Exception) else outcome
        self._error = outcome
        self.status = "finished" if self.report else "error"
        self._ended = True
        for callback in self._callbacks:
            callback(self)

    def exception(self) -> Any:
        return self._error

    def cancel(self, force: bool = False) -> None:
        self.status = "cancelled"


class FakeFleet:
    """Hands what is submitted to `work`; has no workers on `absent` devices."""

    client = None

    def __init__(self, work: Callable[[FakeFuture], None], *devices: Device) -> None:
        self.devices = {device.uuid: device for device in devices}
        self.futures: list[FakeFuture] = []
        self.absent: set[str] = set()
        self._work = work

    def submit_attempt(self, task: AttemptTask, *, device: str) -> FakeFuture:
        future = FakeFuture(task, device)
        self.futures.append(future)
        self._work(future)
        return future

    def take_report(self, job_id: str, attempt: int) -> AttemptReport | None:
        futures = {(each.task.job_id, each.task.number): each for each in self.futures}
        return futures[job_id, attempt].report

    def without_workers(self) -> set[str]:
        return self.absent

    def died_by_itself(self, _address: str) -> bool:
        return True


class FakeRecord:
    """Remembers how jobs ended; `on_moment` is called with the state of the run."""

    def __init__(self) -> None:
        self.finishes: dict[str, tuple[str, str]] = {}
        self.on_moment: Callable[[str], None] = lambda _state: None

    def moment(self, state: str, *_: Any) -> None:
        self.on_moment(state)

    def finished(self, job_id: str, outcome: str, reason: str) -> None:
        self.finishes[job_id] = str(outcome), reason

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name in ("decided", "started", "ended", "remark"):
            return lambda *_: None
        raise AttributeError(name)


def make_driver(fleet: FakeFleet, record: FakeRecord) -> Driver:
    devices = tuple(fleet.devices.values())

    def snapshots() -> list[DeviceSnapshot]:
        return [DeviceSnapshot(device.uuid, device.total_bytes, 0) for device in devices]

    def make_task(placement: Any) -> Any:
        output = OutputTarget("out", "ome-tiff", False, {})
        source: Any = None
        return AttemptTask(placement.job_id, "kind", placement.attempt, source, (), (), 0, 0, output)

    fake: Any = fleet
    book: Any = record
    return Driver(fake, Dispatcher(devices=devices), book, make_task=make_task, take_snapshots=snapshots)


def killed() -> KilledWorker:
    address: Any = SimpleNamespace(address="tcp://here:1")
    return KilledWorker("job", address, 0)


def test_a_run_whose_last_jobs_finish_while_it_is_being_stopped_is_done() -> None:
    fleet, record, stop = FakeFleet(lambda _future: stop.set(), CPU), FakeRecord(), threading.Event()

    def let_it_end(state: str) -> None:
        if state == "stopping":
            fleet.futures[0].end(DONE)

    record.on_moment = let_it_end
    assert make_driver(fleet, record).run([Job("a", "kind", (ON_CPU,))], stop) == "done"
    assert record.finishes["a"] == ("done", "done on cpu")


def test_an_attempt_that_ended_before_its_worker_died_counts() -> None:
    def end_and_die(future: FakeFuture) -> None:
        future.end(DONE)
        future.status = "pending"  # as Dask has it while it makes the lost result again

    fleet, record = FakeFleet(end_and_die, CPU), FakeRecord()
    assert make_driver(fleet, record).run([Job("a", "kind", (ON_CPU,))]) == "done"
    assert len(fleet.futures) == 1


def test_a_retry_after_a_death_may_replace_what_the_dead_worker_wrote() -> None:
    outcomes = iter([killed(), DONE])
    fleet, record = FakeFleet(lambda future: future.end(next(outcomes)), CPU), FakeRecord()
    assert make_driver(fleet, record).run([Job("a", "kind", (ON_CPU,))]) == "done"
    assert record.finishes["a"][0] == "done"
    assert [future.task.output.overwrite for future in fleet.futures] == [False, True]


def test_jobs_of_a_device_whose_worker_never_comes_back_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.driver.WORKERS_S", 0.0)
    monkeypatch.setattr("scheduler.execution.driver.ABSENCE_S", 0.0)

    def work(future: FakeFuture) -> None:
        if future.device == GPU.uuid:
            fleet.absent = {GPU.uuid}
        else:
            future.end(DONE)

    fleet, record = FakeFleet(work, GPU, CPU), FakeRecord()
    assert make_driver(fleet, record).run([Job("a", "kind", (ON_GPU, ON_CPU))]) == "done"
    assert record.finishes["a"] == ("done", "done on cpu")
    assert [(future.device, future.status) for future in fleet.futures] == [
        (GPU.uuid, "cancelled"),
        (CPU.uuid, "finished"),
    ]


def test_a_worker_that_comes_back_late_gets_jobs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.driver.WORKERS_S", 0.0)
    monkeypatch.setattr("scheduler.execution.driver.ABSENCE_S", 0.0)
    two = (GPU, Device("GPU-2", "gpu1", DeviceKind.CUDA, 10 * MIB))

    def work(future: FakeFuture) -> None:
        if len(fleet.futures) == 1:
            fleet.absent = {GPU.uuid}
        else:
            future.end(DONE)

    fleet, record = FakeFleet(work, *two, CPU), FakeRecord()

    def back(_state: str) -> None:
        if fleet.futures and fleet.futures[0].status == "cancelled":
            fleet.absent = set()

    record.on_moment = back
    large = JobPlan("gpu", (DeviceKind.CUDA,), Footprint(50 * MIB, MIB))
    assert make_driver(fleet, record).run([Job("a", "kind", (large,))]) == "done"
    assert [future.device for future in fleet.futures] == [GPU.uuid, GPU.uuid]


def test_without_any_worker_left_the_run_stops_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.driver.WORKERS_S", 0.0)
    monkeypatch.setattr("scheduler.execution.driver.ABSENCE_S", 0.0)
    fleet, record = FakeFleet(lambda _future: fleet.absent.add(CPU.uuid), CPU), FakeRecord()
    assert make_driver(fleet, record).run([Job(name, "kind", (ON_CPU,)) for name in "abc"]) == "stopped"
    assert set(record.finishes) == {"a", "b", "c"}
    assert record.finishes["c"] == (
        "cancelled",
        "not started: no worker process is left, and none comes back",
    )
