"""The driver: what is cancelled, arrays that come back, and what is told of disks, memory and connections."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scheduler.core.events import Cancelled, Done, Failed, OutOfMemory, Refused, WorkerDied
from scheduler.core.model import DeviceKind, DeviceSnapshot, Footprint, JobPlan
from scheduler.execution import driver as driver_module
from scheduler.execution.messages import (
    SMALL_BYTES,
    Evicted,
    Hello,
    Readings,
    Released,
    heard,
    tell_end,
)
from scheduler.execution.task import CELL_BYTES, AttemptReport, Returned
from tests.scheduler.execution.fake_cluster import (
    CPU,
    DEADLINE_S,
    GPU,
    MIB,
    ON_CPU,
    ON_GPU,
    FakeFuture,
    World,
    job,
    killed_worker,
    nothing,
)

pytestmark = pytest.mark.usefixtures("impatient_driver")


# cancelling


def test_a_running_attempt_is_asked_to_stop_and_ends_its_job() -> None:
    def work(future: FakeFuture) -> None:
        world.driver.cancel("a", "not needed")

    world = World(work)
    world.join("w1")

    def stop_it(_state: str) -> None:
        if world.client.calls:
            world.end(world.futures[0], Cancelled("stopped before it writes"))

    world.record.on_moment = stop_it
    assert world.run(job("a")) == "done"
    assert world.record.finishes["a"] == ("cancelled", "not needed")
    assert world.client.calls[0] == ("cancel_here", ["w1"], ("a", 1, "topic"))
    assert world.futures[0].cancelled


def test_a_step_that_does_not_stop_ends_with_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.under_way.STOP_GRACE_S", 0.0)
    world = World(lambda _future: world.driver.cancel("a", "not needed"))
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.record.finishes["a"] == ("cancelled", "not needed")
    assert world.client.ended.wait(DEADLINE_S)
    assert world.client.restarted == ["w1"]


def test_a_step_that_does_not_stop_is_left_alone_for_a_while() -> None:
    world = World(lambda _future: world.driver.cancel("a", "not needed"))
    world.join("w1")
    turns = []

    def end_it(_state: str) -> None:
        turns.append(1)
        if len(turns) == 20:
            world.end(world.futures[0])

    world.record.on_moment = end_it
    assert world.run(job("a")) == "done"
    assert world.record.finishes["a"][0] == "done"
    assert world.client.restarted == []


def test_a_cancelled_attempt_whose_worker_dies_is_cancelled() -> None:
    def work(future: FakeFuture) -> None:
        world.driver.cancel("a", "not needed")
        world.leave("w1")

    world = World(work)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.record.finishes["a"] == ("cancelled", "not needed")


# arrays


def test_an_array_that_was_asked_for_comes_with_the_end_of_its_job() -> None:
    array = np.arange(24).reshape(2, 3, 4)

    def work(future: FakeFuture) -> None:
        future.array = Returned({"stack": array}, {"measure": {"area": [1]}})
        world.end(future)

    world = World(work, returns_array=True)
    world.join("w1")
    assert world.run(job("a")) == "done"
    returned = world.finishes["a"].array
    assert returned.arrays["stack"] is array
    assert returned.tables == {"measure": {"area": [1]}}


def test_an_array_that_comes_with_the_news_is_not_fetched() -> None:
    array = np.arange(24).reshape(2, 3, 4)

    def work(future: FakeFuture) -> None:
        future.array = MemoryError("fetched all the same")
        world.end(future, returned=Returned({"stack": array}))
        world.leave(future.address)

    world = World(work, returns_array=True)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.finishes["a"].array.arrays["stack"] is array
    assert world.record.outcomes["a"] == [Done()]


@pytest.mark.parametrize(
    ("nbytes", "cells", "stays"),
    [(SMALL_BYTES, 0, False), (SMALL_BYTES + 1, 0, True), (SMALL_BYTES - 10 * CELL_BYTES, 11, True)],
)
def test_only_what_is_small_goes_with_the_news(nbytes: int, cells: int, stays: bool) -> None:
    array, told = np.arange(nbytes).astype(np.uint8), []
    returned = Returned({"stack": array}, {"measure": {"area": [1.0] * cells}} if cells else {})
    worker: Any = SimpleNamespace(log_event=lambda topic, event: told.append((topic, heard((0.0, event)))))
    report = AttemptReport(Done(), worker_pid=1)
    assert tell_end(worker, "topic", ("a", 1), report, returned) is (returned if stays else None)
    [(topic, ended)] = told
    assert (topic, ended.job_id, ended.number, ended.report) == ("topic", "a", 1, report)
    assert ended.returned is None if stays else (ended.returned.arrays["stack"] == array).all()


def test_a_task_that_has_ended_without_a_word_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.under_way.UNTOLD_S", 0.0)
    monkeypatch.setattr(driver_module, "TICK_S", 0.005)

    def work(future: FakeFuture) -> None:
        future.status = "finished"
        if len(world.futures) > 1:
            world.end(future)

    world = World(work)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.record.outcomes["a"][0] == WorkerDied("its task has ended without a word", blame=False)
    assert world.record.outcomes["a"][-1] == Done()


def test_an_array_that_goes_with_its_worker_is_made_again_without_a_strike() -> None:
    def work(future: FakeFuture) -> None:
        lost = len(world.futures) <= 3
        future.array = killed_worker() if lost else Returned({"stack": np.ones((1, 1, 1))})
        world.end(future)
        if lost:
            world.leave(future.address)
            world.join(f"w{len(world.futures) + 1}")

    world = World(work, returns_array=True)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.finishes["a"].array.arrays == world.futures[3].array.arrays
    gone = WorkerDied("its worker has gone with its array", blame=False)
    assert world.record.outcomes["a"] == [gone, gone, gone, Done()]
    assert [future.task.output.overwrite for future in world.futures if future.task.output][1]


def test_an_array_that_cannot_be_fetched_fails_its_job() -> None:
    def work(future: FakeFuture) -> None:
        future.array = MemoryError("too large for here")
        world.end(future)

    world = World(work, returns_array=True)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.record.finishes["a"] == (
        "failed",
        "its array could not be fetched: MemoryError: too large for here",
    )


def test_an_array_that_lies_askew_in_its_message_comes_aligned() -> None:
    askew = np.frombuffer(bytearray(4 * 6 + 1), np.float32, 6, offset=1).reshape(1, 2, 3)
    assert not askew.flags.aligned

    def work(future: FakeFuture) -> None:
        future.array = Returned({"stack": askew})
        world.end(future)

    world = World(work, returns_array=True)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.finishes["a"].array.arrays["stack"].flags.aligned


# a full disk, the probe, the connection


def test_a_full_disk_holds_the_run_for_later() -> None:
    reason = "no space left for out/a.ome.tif"
    world = World(lambda future: world.end(future, Refused(f"{reason}: OSError"), disk_full=reason))
    world.join("w1")
    assert world.run(job("a"), job("b")) == "interrupted"
    assert len(world.futures) == 1
    assert world.record.remarks == [f"{reason}: nothing more is started; resume the run when there is room"]


def test_a_journal_without_room_holds_the_run_for_later() -> None:
    world = World(nothing)
    world.join("w1")

    def fill(_state: str) -> None:
        if world.futures and not world.record.no_room:
            world.record.no_room = "no space left for the journal"
        elif world.record.no_room:
            world.end(world.futures[0])

    world.record.on_moment = fill
    assert world.run(job("a"), job("b")) == "interrupted"
    assert world.record.finishes == {"a": ("done", "done on cpu")}


def readings(*errors: Exception) -> Callable[[], Iterator[DeviceSnapshot]]:
    """A probe that fails so often, and then answers."""
    left = iter(errors)

    def take() -> Iterator[DeviceSnapshot]:
        for error in left:
            raise error
        yield DeviceSnapshot(CPU.uuid, CPU.total_bytes, 0)

    return take


def test_a_probe_that_fails_now_and_then_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "SNAPSHOT_S", 0.001)
    take = readings(OSError("full"), OSError("busy"))
    world = World(lambda future: world.end(future), take_snapshots=take)
    world.join("w1")
    assert world.run(job("a")) == "done"


def test_a_probe_that_stays_silent_ends_the_run_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "SILENCE_S", -1.0)
    monkeypatch.setattr(driver_module, "SNAPSHOT_S", 0.001)

    def take() -> Iterator[DeviceSnapshot]:
        if world.futures:
            raise OSError("gone for good")
        yield DeviceSnapshot(CPU.uuid, CPU.total_bytes, 0)

    world = World(nothing, take_snapshots=take)
    world.join("w1")
    with pytest.raises(OSError, match="gone for good"):
        world.run(job("a"))
    assert world.futures[0].cancelled


def test_a_lost_connection_interrupts_the_run() -> None:
    def lose(_future: FakeFuture) -> None:
        world.client.status = "closed"

    world = World(lose)
    world.join("w1")
    assert world.run(job("a")) == "interrupted"
    assert world.record.remarks == [
        "the connection to the Dask scheduler is lost; resume the run when it is back"
    ]


# the rest of what is told


def test_memory_that_strangers_take_is_respected() -> None:
    world = World(lambda future: world.end(future))
    world.join("w1")
    world.driver.hear(Readings((DeviceSnapshot(CPU.uuid, CPU.total_bytes, CPU.total_bytes),)))
    turns = []

    def free_it(_state: str) -> None:
        turns.append(len(world.futures))
        if len(turns) == 10:
            world.driver.hear(Readings((DeviceSnapshot(CPU.uuid, CPU.total_bytes, 0),)))

    world.record.on_moment = free_it
    assert world.run(job("a")) == "done"
    assert turns[:10] == [0] * 10


def test_what_has_left_the_gpu_makes_room_for_the_next_before_it_has_ended() -> None:
    def work(future: FakeFuture) -> None:
        if future.task.job_id == "a":
            world.driver.hear(Released("a", 1))
        else:
            world.end(world.futures[0])
            world.end(future)

    world = World(work)
    world.join("g1", GPU)
    large = JobPlan("gpu", (DeviceKind.CUDA,), Footprint(80 * MIB, MIB))
    world.dispatcher.estimates.accept_declared("kind", large)
    assert world.run(job("a", large), job("b", large)) == "done"
    assert [future.task.job_id for future in world.futures] == ["a", "b"]


def test_out_of_memory_on_the_device_goes_to_the_cpu() -> None:
    def work(future: FakeFuture) -> None:
        if future.address == "g1":
            world.end(future, OutOfMemory(peak_bytes=99 * MIB, error="full"))
        else:
            world.end(future)

    world = World(work)
    world.join("g1", GPU)
    world.join("w1")
    assert world.run(job("a", ON_GPU, ON_CPU)) == "done"
    assert world.record.finishes["a"] == ("done", "done on cpu")


def test_evicted_state_is_heard_of() -> None:
    heard: list[Any] = []
    world = World(lambda future: world.end(future))
    handle = world.dispatcher.handle

    def listen(event: Any) -> Any:
        heard.append(event)
        return handle(event)

    world.dispatcher.handle = listen  # type: ignore[method-assign]
    world.join("w1")
    world.driver.hear(Evicted(CPU.uuid, "weights"))
    assert world.run(job("a")) == "done"
    assert [(event.uuid, event.name) for event in heard if type(event).__name__ == "ResidentEvicted"] == [
        (CPU.uuid, "weights")
    ]


def test_equal_failures_stop_the_run_and_cancel_the_rest() -> None:
    world = World(lambda future: world.end(future, Failed("no licence", key="k")), max_failures=2)
    world.join("w1")
    assert world.run(*(job(name) for name in "abcd")) == "stopped"
    outcomes = [outcome for outcome, _ in world.record.finishes.values()]
    assert sorted(outcomes) == ["cancelled", "cancelled", "failed", "failed"]
    assert "2 jobs failed alike" in world.record.remarks[0]


def test_what_a_worker_lacks_is_remarked_with_its_name() -> None:
    world = World(lambda future: world.end(future))
    world.join("w1")
    world.driver.hear(Hello("w2", "w2", "w2", 2, CPU, CPU, 1, True, problems=("it has another Python",)))
    assert world.run(job("a")) == "done"
    assert world.record.remarks == ["worker w2: it has another Python"]


def test_a_worker_that_is_held_up_with_the_table_in_hand_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "TABLE_HELD_S", 0.0)
    free = threading.Event()

    def look() -> list[DeviceSnapshot]:
        assert free.wait(DEADLINE_S)
        return []

    def work(future: FakeFuture) -> None:
        if len(world.futures) > 2:
            free.set()
            world.end(future)

    world = World(work, take_snapshots=look, table_holder=lambda: None if free.is_set() else 1)
    world.join("w1", slots=2)
    world.dispatcher.estimates.observe_host_peak("kind", "kind", ON_CPU, MIB)

    def replace_it(_state: str) -> None:
        if world.client.restarted == ["w1"] and len(world.futures) == 2:
            world.leave("w1", expected=False)
            world.join("w2", slots=2)

    world.record.on_moment = replace_it
    assert world.run(job("a"), job("b")) == "done"
    for name in ("a", "b"):
        died, done = world.record.outcomes[name]
        assert isinstance(died, WorkerDied)
        assert "has kept the reservation table" in died.reason
        assert died.blame, "it can't tell which of them holds it up"
        assert isinstance(done, Done)
