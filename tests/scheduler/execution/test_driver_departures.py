"""The driver when workers leave in order, and when attempts get nowhere."""

import pytest

from scheduler.core.events import Done, TimedOut, WorkerDied
from scheduler.execution.crew import ClusterTerms
from scheduler.execution.messages import (
    Leaving,
    Pulse,
)
from tests.scheduler.execution.fake_cluster import (
    DEADLINE_S,
    MIB,
    ON_CPU,
    FakeFuture,
    World,
    job,
    nothing,
)

pytestmark = pytest.mark.usefixtures("impatient_driver")


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

    world = World(work)
    world.join("w1")
    world.replace_when_restarted("w1", by="w2")
    assert world.run(job("a", timeout_s=5.0), job("b")) == "done"
    assert [(future.task.job_id, future.address) for future in world.futures] == [("a", "w1"), ("b", "w2")]


def test_neighbours_of_an_attempt_that_took_too_long_are_requeued_without_a_strike() -> None:
    def work(future: FakeFuture) -> None:
        if len(world.futures) == 2:
            overdue(world, world.futures[0])
        elif len(world.futures) > 2:
            world.end(future)

    world = World(work)
    world.join("w1", slots=2)
    world.dispatcher.estimates.observe_host_peak("kind", "kind", ON_CPU, MIB)
    world.replace_when_restarted("w1", by="w2")
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
