"""The driver against a cluster whose workers do what a test says."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scheduler.core.events import Cancelled, Done, Failed, OutOfMemory, Refused, TimedOut, WorkerDied
from scheduler.core.model import Device, DeviceKind, DeviceSnapshot, Footprint, JobPlan
from scheduler.execution import crew as crew_module
from scheduler.execution import driver as driver_module
from scheduler.execution.crew import ClusterTerms
from scheduler.execution.messages import (
    SMALL_BYTES,
    Evicted,
    Hello,
    Leaving,
    Left,
    Pulse,
    Readings,
    Released,
    heard,
    tell_end,
)
from scheduler.execution.task import CELL_BYTES, AttemptReport, Returned
from tests.scheduler.execution.fake_cluster import (
    CPU,
    GPU,
    MIB,
    ON_CPU,
    ON_GPU,
    FakeFuture,
    World,
    job,
    killed_worker,
)

DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a real cluster is given seconds for, is over at once here."""
    monkeypatch.setattr(driver_module, "TICK_S", 0.005)
    for module in (driver_module, crew_module):
        monkeypatch.setattr(module, "JUDGEMENT_S", 0.0)


def nothing(_future: FakeFuture) -> None:
    """A worker that doesn't come to an end by itself."""


def test_a_run_whose_last_jobs_finish_while_it_is_being_stopped_is_done() -> None:
    world = World(lambda _future: world.driver.stop("enough", 60.0))
    world.join("w1")

    def let_it_end(state: str) -> None:
        if state == "stopping":
            world.end(world.futures[0])

    world.record.on_moment = let_it_end
    assert world.run(job("a")) == "done"
    assert world.record.finishes["a"] == ("done", "done on cpu")


def test_a_worker_whose_end_is_told_before_its_hello_gets_nothing() -> None:
    world = World(lambda future: world.end(future))
    world.leave("w1")
    world.join("w1")
    world.join("w2")
    assert world.run(job("a"), job("b")) == "done"
    assert {future.address for future in world.futures} == {"w2"}


def test_the_end_of_a_process_is_not_that_of_the_next_one_at_its_address() -> None:
    world = World(lambda future: world.end(future))
    world.join("w1")
    world.driver.hear(Left("w1", "another"))
    assert world.run(job("a")) == "done"
    assert len(world.futures) == 1


def test_an_attempt_whose_process_outgrew_its_memory_limit_ran_out_of_memory() -> None:
    reason = "its nanny ends it, for it had 240 MiB, and its memory limit is 225 MiB"

    def outgrow_and_die(future: FakeFuture) -> None:
        if len(world.futures) > 1:
            world.end(future)
            return
        world.driver.hear(Leaving("w1", reason, frozenset({("a", 1)}), outgrown=True))
        world.leave("w1")
        world.join("w2")

    world = World(outgrow_and_die)
    world.join("w1")
    assert world.run(job("a")) == "done"
    first, second = world.record.outcomes["a"]
    assert first == OutOfMemory(None, None, on_host=True, error=reason)
    assert isinstance(second, Done)
    assert world.futures[1].task.host_bytes > world.futures[0].task.host_bytes


def test_one_that_a_departing_process_still_ends_counts_though_it_has_outgrown_its_limit() -> None:
    def outgrow_and_end(future: FakeFuture) -> None:
        world.driver.hear(Leaving("w1", "outgrown", frozenset({("a", 1)}), outgrown=True))
        world.end(future)
        world.leave("w1")

    world = World(outgrow_and_end)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert [type(outcome) for outcome in world.record.outcomes["a"]] == [Done]


def test_a_run_that_is_stopped_leaves_what_waits_to_be_resumed() -> None:
    world = World(lambda _future: world.driver.stop("enough", 0.0))
    world.join("w1")
    assert world.run(job("a"), job("b")) == "interrupted"
    assert world.record.finishes == {}
    assert world.futures[0].cancelled


def test_an_attempt_is_pinned_to_its_worker_and_tried_by_us_alone() -> None:
    world = World(lambda future: world.end(future))
    world.join("w1")
    assert world.run(job("a")) == "done"
    (terms,) = world.client.submitted
    assert (terms["workers"], terms["allow_other_workers"], terms["retries"]) == (["w1"], False, 0)
    assert terms["key"] == "topic-a-1"


def test_attempts_go_where_least_is_in_flight() -> None:
    world = World(nothing)
    world.join("w1")
    world.join("w2")

    def end_them(_state: str) -> None:
        for future in world.futures if len(world.futures) == 2 else ():
            world.end(future)

    world.record.on_moment = end_them
    world.dispatcher.estimates.observe_host_peak("kind", "kind", ON_CPU, MIB)  # else the first runs alone
    assert world.run(job("a"), job("b")) == "done"
    assert {future.address for future in world.futures} == {"w1", "w2"}


def test_an_attempt_that_ended_before_its_worker_died_counts() -> None:
    def end_and_die(future: FakeFuture) -> None:
        world.end(future)
        world.leave("w1")

    world = World(end_and_die)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert len(world.futures) == 1


def test_news_of_an_attempt_that_was_given_up_is_ignored() -> None:
    def die_then_live(future: FakeFuture) -> None:
        if len(world.futures) == 1:
            world.leave("w1")
            world.join("w2")
        else:
            world.end(world.futures[0], Failed("too late"))
            world.end(future)

    world = World(die_then_live)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert [type(outcome) for outcome in world.record.outcomes["a"]] == [WorkerDied, Done]


def test_a_retry_after_a_death_may_replace_what_the_dead_worker_wrote() -> None:
    def die_once(future: FakeFuture) -> None:
        if future.address == "w1":
            world.leave("w1")
            world.join("w2")
        else:
            world.end(future)

    world = World(die_once)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert [future.task.output.overwrite for future in world.futures if future.task.output] == [False, True]


@pytest.mark.parametrize("wrote", [True, False])
def test_a_retry_may_replace_what_an_attempt_wrote_that_failed_but_nobody_elses(wrote: bool) -> None:
    def work(future: FakeFuture) -> None:
        if len(world.futures) == 1:
            world.end(future, OutOfMemory(on_host=True), began_to_write=wrote)
        else:
            world.end(future)

    world = World(work)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert [future.task.output.overwrite for future in world.futures if future.task.output] == [False, wrote]


def test_jobs_whose_worker_dies_twice_under_them_are_set_aside() -> None:
    def die(future: FakeFuture) -> None:
        world.leave(future.address)
        world.join(f"w{len(world.futures) + 1}")

    world = World(die)
    world.join("w1")
    assert world.run(job("a")) == "done"
    outcome, reason = world.record.finishes["a"]
    assert outcome == "set_aside"
    assert "its worker process died on cpu" in reason
    assert len(world.futures) == 2


def test_jobs_of_a_device_whose_worker_never_comes_back_go_elsewhere() -> None:
    def work(future: FakeFuture) -> None:
        if future.address == "g1":
            world.leave("g1")
        else:
            world.end(future)

    world = World(work)
    world.join("g1", GPU)
    world.join("w1")
    assert world.run(job("a", ON_GPU, ON_CPU)) == "done"
    assert world.record.finishes["a"] == ("done", "done on cpu")
    assert [(future.address, future.cancelled) for future in world.futures] == [("g1", True), ("w1", False)]


def test_a_worker_that_comes_back_late_gets_jobs_again() -> None:
    large = JobPlan("gpu", (DeviceKind.CUDA,), Footprint(50 * MIB, MIB))

    def work(future: FakeFuture) -> None:
        if future.address == "g1":
            world.leave("g1")
        else:
            world.end(future)

    world = World(work)
    world.join("g1", GPU)
    world.join("g2", Device("GPU-2", "gpu1", DeviceKind.CUDA, 10 * MIB))
    world.join("w1")

    def back(_state: str) -> None:
        if world.futures and world.futures[0].cancelled and world.fleet.get("g3") is None:
            world.join("g3", GPU)

    world.record.on_moment = back
    assert world.run(job("a", large)) == "done"
    assert [future.address for future in world.futures] == ["g1", "g3"]


def test_without_any_worker_left_the_run_stops_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.crew.ABSENCE_S", 0.0)
    world = World(lambda future: world.leave(future.address))
    world.join("w1")
    assert world.run(job("a"), job("b"), job("c")) == "stopped"
    assert set(world.record.finishes) == {"a", "b", "c"}
    assert world.record.finishes["c"] == (
        "cancelled",
        "not started: no worker process is left, and none comes back",
    )


@pytest.mark.parametrize("slots", [1, 2])
def test_a_job_whose_large_process_has_left_waits_for_another(slots: int) -> None:
    larger = iter(["larger"])

    def work(future: FakeFuture) -> None:
        if future.address == "large":
            world.join("small", slots=slots, process_bytes=20 * MIB)
            world.leave("large", expected=True)
        else:
            world.end(future)

    def join_once_it_waits(_state: str) -> None:
        if "j1" in world.record.outcomes:
            for address in larger:
                world.join(address, process_bytes=60 * MIB)

    world = World(work, ClusterTerms(elastic=True))
    world.record.on_moment = join_once_it_waits
    world.join("large", process_bytes=60 * MIB)
    assert world.run(job("j1", JobPlan("cpu", (DeviceKind.CPU,), Footprint(0, 30 * MIB)))) == "done"
    assert [future.address for future in world.futures] == ["large", "larger"]
    lost, done = world.record.outcomes["j1"]
    assert isinstance(lost, WorkerDied)
    assert isinstance(done, Done)


def test_while_a_nanny_may_bring_its_process_back_the_run_goes_on() -> None:
    turns = []

    def work(future: FakeFuture) -> None:
        if future.address == "w1":
            world.leave("w1")
        else:
            world.end(future)

    world = World(work)
    world.join("w1")

    def back(_state: str) -> None:
        turns.append(1)
        if len(turns) == 20:
            world.join("w2")

    world.record.on_moment = back
    assert world.run(job("a")) == "done"


def test_an_elastic_cluster_is_waited_for_as_long_as_somebody_is_expected() -> None:
    expected = iter([True] * 20)
    terms = ClusterTerms(elastic=True, expected=lambda: next(expected, False))
    world = World(lambda future: world.leave(future.address), terms)
    world.join("w1")
    assert world.run(job("a")) == "stopped"
    assert next(expected, None) is None
    assert world.record.finishes["a"][1] == "not started: no worker process is left, and none comes back"


def test_what_comes_to_an_elastic_cluster_late_is_used() -> None:
    def work(future: FakeFuture) -> None:
        if future.address == "w1":
            world.driver.hear(Leaving("w1", "preempted"))
            world.leave("w1")
            world.join("w2")
        else:
            world.end(future)

    world = World(work, ClusterTerms(elastic=True))
    world.join("w1")
    assert world.run(job("a")) == "done"


# what can't be run


def test_a_task_that_dask_cannot_run_fails_its_job_with_the_reason() -> None:
    world = World(lambda future: future.fail(ModuleNotFoundError("No module named 'scheduler'")))
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.record.finishes["a"] == (
        "failed",
        "the worker can't run the attempt: ModuleNotFoundError: No module named 'scheduler'",
    )


def test_dasks_word_on_a_dead_worker_is_left_to_the_scheduler_plugins() -> None:
    def die(future: FakeFuture) -> None:
        if future.address == "w1":
            future.fail(killed_worker())
            world.leave("w1")
            world.join("w2")
        else:
            world.end(future)

    world = World(die)
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert [type(outcome) for outcome in world.record.outcomes["a"]] == [WorkerDied, Done]


def test_a_task_that_dask_drops_is_sent_again_without_a_strike() -> None:
    def drop(future: FakeFuture) -> None:
        if len(world.futures) <= 3:
            future.drop("lost")
        else:
            world.end(future)

    world = World(drop)
    world.join("w1")
    assert world.run(job("a")) == "done"
    dropped = WorkerDied("Dask dropped its task (lost)", blame=False)
    assert world.record.outcomes["a"] == [dropped, dropped, dropped, Done()]


def test_a_task_that_we_have_cancelled_is_not_taken_for_a_dropped_one() -> None:
    world = World(lambda _future: world.driver.cancel("a", "not needed"))
    world.join("w1")

    def end_it(_state: str) -> None:
        if world.futures[0].cancelled and world.futures[0].status == "pending":
            world.futures[0].drop("cancelled")
            world.end(world.futures[0])

    world.record.on_moment = end_it
    assert world.run(job("a")) == "done"
    assert world.record.outcomes["a"] == [Done()]


def test_a_job_that_never_gets_on_is_given_up_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.under_way.MAX_REQUEUES", 3)
    world = World(lambda future: future.drop("lost"))
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.record.finishes["a"] == (
        "failed",
        "given up after 3 attempts, the last one ended: Dask dropped its task (lost)",
    )


# workers that leave in order


def test_a_worker_that_leaves_in_order_is_given_time_to_tell_how_its_attempts_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leave(future: FakeFuture) -> None:
        world.leave("w1", expected=True)
        world.driver.hear(Leaving("w1", "it is being closed"))

    world = World(leave, ClusterTerms(elastic=True, drain_s=1e9))
    world.join("w1")
    turns = []

    def tell_late(_state: str) -> None:
        turns.append(1)
        if len(turns) == 20:
            world.end(world.futures[0])

    world.record.on_moment = tell_late
    assert world.run(job("a")) == "done"
    assert len(world.futures) == 1


def test_an_attempt_that_a_leaving_worker_did_not_end_is_no_strike() -> None:
    def leave(future: FakeFuture) -> None:
        if len(world.futures) <= 3:
            world.driver.hear(Leaving(future.address, "preempted"))
            world.leave(future.address)
            world.join(f"w{len(world.futures) + 1}")
        else:
            world.end(future)

    world = World(leave, ClusterTerms(elastic=True))
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.record.outcomes["a"][:3] == [WorkerDied("preempted", blame=False)] * 3
    assert world.record.finishes["a"][0] == "done"


def test_a_worker_that_leaves_gets_nothing_more() -> None:
    def work(future: FakeFuture) -> None:
        if future.task.job_id == "a":
            world.driver.hear(Leaving("w1", "its time is nearly over"))
            world.join("w2")
        world.end(future)

    world = World(work, ClusterTerms(elastic=True))
    world.join("w1")
    assert world.run(job("a"), job("b")) == "done"
    assert [(future.task.job_id, future.address) for future in world.futures] == [("a", "w1"), ("b", "w2")]


def test_a_process_whose_memory_grows_is_replaced_once_it_is_empty() -> None:
    world = World(lambda future: world.end(future, retire="its memory keeps growing"))
    world.join("w1")
    assert world.run(job("a")) == "done"
    assert world.client.ended.wait(DEADLINE_S)
    assert world.client.restarted == ["w1"]
    assert world.record.remarks == ["worker w1 is replaced: its memory keeps growing"]


def test_a_process_that_nobody_would_replace_is_kept_though_it_grows() -> None:
    world = World(lambda future: world.end(future, retire="its memory keeps growing"))
    world.join("w1", has_nanny=False)
    assert world.run(job("a"), job("b")) == "done"
    assert [future.address for future in world.futures] == ["w1", "w1"]
    assert world.record.remarks == []


def test_a_broken_process_is_let_go_even_without_a_nanny() -> None:
    def work(future: FakeFuture) -> None:
        if future.address == "w1":
            world.end(future, WorkerDied("cupy is broken"), retire="cupy is broken")
            world.join("w2", has_nanny=False)
        else:
            world.end(future)

    world = World(work)
    world.join("w1", has_nanny=False)
    assert world.run(job("a")) == "done"
    assert world.client.ended.wait(DEADLINE_S)
    assert (world.client.restarted, world.client.let_go) == ([], ["w1"])


def test_a_process_is_not_replaced_under_an_attempt_that_is_still_in_it() -> None:
    world = World(nothing)
    world.join("w1", slots=2)
    world.dispatcher.estimates.observe_host_peak("kind", "kind", ON_CPU, MIB)
    turns = []

    def one_by_one(_state: str) -> None:
        turns.append(1)
        if len(turns) == 5:
            world.end(world.futures[0], retire="it is broken")
        if len(turns) == 20:
            assert not world.client.ended.is_set()
            world.end(world.futures[1])

    world.record.on_moment = one_by_one
    assert world.run(job("a"), job("b")) == "done"
    assert world.client.ended.wait(DEADLINE_S)
    assert world.client.restarted == ["w1"]


def test_a_process_is_restarted_once_for_two_reasons() -> None:
    world = World(nothing)
    world.join("w1", slots=2)
    world.dispatcher.estimates.observe_host_peak("kind", "kind", ON_CPU, MIB)
    told: list[str] = []

    def one_by_one(_state: str) -> None:
        if len(world.futures) == 2 and not told:
            told.append("broken")
            world.end(world.futures[0], retire="it is broken")
        elif told == ["broken"]:
            told.append("overdue")
            overdue(world, world.futures[1])

    world.record.on_moment = one_by_one
    assert world.run(job("a"), job("b", timeout_s=5.0)) == "done"
    assert world.client.ended.wait(DEADLINE_S)
    assert world.client.restarted == ["w1"]


# attempts that get nowhere


def overdue(world: World, future: FakeFuture) -> None:
    """The worker says that an attempt has lasted longer than any timeout of these tests."""
    attempts = {(future.task.job_id, future.task.number): (10.0, "computes", 0.0)}
    world.driver.hear(Pulse(future.address, attempts))


def test_an_attempt_that_takes_too_long_ends_with_its_worker() -> None:
    world = World(lambda future: overdue(world, future))
    world.join("w1")
    assert world.run(job("a", timeout_s=5.0)) == "done"
    assert world.client.ended.wait(DEADLINE_S)
    assert world.client.restarted == ["w1"]
    outcome, reason = world.record.finishes["a"]
    assert outcome == "failed"
    assert "its timeout_s is 5" in reason
    assert [type(each) for each in world.record.outcomes["a"]] == [TimedOut]


def test_nothing_is_given_to_a_worker_that_ends_with_its_attempt() -> None:
    def work(future: FakeFuture) -> None:
        if future.task.job_id == "a":
            overdue(world, future)
        else:
            world.end(future)

    def back(_state: str) -> None:
        if world.client.restarted and world.fleet.get("w2") is None:
            world.leave("w1")
            world.join("w2")

    world = World(work)
    world.join("w1")
    world.record.on_moment = back
    assert world.run(job("a", timeout_s=5.0), job("b")) == "done"
    assert [(future.task.job_id, future.address) for future in world.futures] == [("a", "w1"), ("b", "w2")]


def test_neighbours_of_an_attempt_that_took_too_long_are_requeued_without_a_strike() -> None:
    def work(future: FakeFuture) -> None:
        if len(world.futures) == 2:
            overdue(world, world.futures[0])
        elif len(world.futures) > 2:
            world.end(future)

    def gone(_state: str) -> None:
        if world.client.restarted and world.fleet.get("w2") is None:
            world.leave("w1")
            world.join("w2")

    world = World(work)
    world.join("w1", slots=2)
    world.dispatcher.estimates.observe_host_peak("kind", "kind", ON_CPU, MIB)
    world.record.on_moment = gone
    assert world.run(job("a", timeout_s=5.0), job("b")) == "done"
    died, done = world.record.outcomes["b"]
    assert isinstance(died, WorkerDied)
    assert not died.blame
    assert isinstance(done, Done)


def test_an_attempt_of_a_worker_that_fell_silent_counts_as_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.watchdog.STUCK_S", 0.0)
    world = World(nothing)
    world.join("w1")
    assert world.run(job("a", timeout_s=0.01)) == "done"
    assert world.record.outcomes["a"] == [TimedOut(world.record.finishes["a"][1])]


def test_attempts_that_seem_stuck_are_shown_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.watchdog.STUCK_S", 0.0)
    world = World(nothing)
    world.join("w1")
    shown: list[str] = []

    def look(_state: str) -> None:
        if world.record.stuck:
            shown.append(world.record.stuck["a"])
            world.end(world.futures[0])

    world.record.on_moment = look
    assert world.run(job("a")) == "done"
    assert shown[0].startswith("its worker process has said nothing for")


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
