"""The driver against a cluster whose workers do what a test says: which get what, and how attempts end."""

import pytest

from scheduler.core.events import Done, Failed, OutOfMemory, WorkerDied
from scheduler.core.model import Device, DeviceKind, Footprint, JobPlan
from scheduler.execution.crew import ClusterTerms
from scheduler.execution.messages import (
    Leaving,
    Left,
)
from tests.scheduler.execution.fake_cluster import (
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
