"""Attempts that travel as one Dask task: which do, and who is to blame when its worker dies."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scheduler.core.events import Cancelled, Done, WorkerDied
from scheduler.core.model import Device
from scheduler.execution import crew as crew_module
from scheduler.execution import driver as driver_module
from scheduler.execution.activity import BEHIND
from scheduler.execution.driver import LONG_S
from scheduler.execution.fleet import Fleet
from scheduler.execution.messages import Hello, Leaving, Pulse
from scheduler.execution.task import AttemptTask
from scheduler.execution.under_way import MAX_REQUEUES
from scheduler.execution.worker_process import WorkerProcess
from tests.scheduler.execution.fake_cluster import (
    CPU,
    GPU,
    MIB,
    ON_CPU,
    FakeClient,
    FakeFuture,
    World,
    job,
    keys,
)

TOPIC = "topic"
LARGE = np.zeros((1, 1024, 2048), np.uint8)


def plain_task(name: str, array: Any = None, **rest: Any) -> AttemptTask:
    array = np.zeros((1, 1, 1), np.uint8) if array is None else array
    return AttemptTask(name, "k", 1, array, (), (), 0, 0, None, **rest)


class Sent:
    """A fleet of one process, and the Dask tasks that its attempts became, each by the jobs in it."""

    def __init__(self, *, device: Device = CPU, slots: int = 1, process_bytes: int = 0) -> None:
        self.client = FakeClient(lambda _: None)
        client: Any = self.client
        self.fleet = Fleet(client, TOPIC)
        hello = Hello("a", "a", "a", 1, device, CPU, slots, has_nanny=True, process_bytes=process_bytes)
        self.process = self.fleet.add(hello)
        self.device = device.uuid

    def give(self, *tasks: AttemptTask) -> None:
        for task in tasks:
            assert self.fleet.give(task, device=self.device) is None
        self.fleet.send()

    @property
    def tasks(self) -> list[list[str]]:
        return [[task.job_id for task in future.tasks] for future in self.client.futures]


def test_what_would_wait_anyhow_goes_as_one_task() -> None:
    sent = Sent()
    sent.give(*map(plain_task, "abcd"))
    assert sent.tasks == [["a", "b", "c", "d"]]


def test_more_is_sent_when_one_runs_and_one_is_ready() -> None:
    sent = Sent()
    sent.give(*map(plain_task, "abcd"))
    sent.give(*map(plain_task, "efg"))
    assert sent.tasks == [["a", "b", "c", "d"]]
    sent.fleet.ended(("a", 1))
    sent.fleet.send()
    assert sent.tasks == [["a", "b", "c", "d"]]
    sent.fleet.ended(("b", 1))
    sent.fleet.send()
    assert sent.tasks == [["a", "b", "c", "d"], ["e", "f", "g"]]


def test_a_process_of_several_slots_gets_a_task_for_each() -> None:
    sent = Sent(slots=3)
    sent.give(*map(plain_task, "abcdefgh"))
    assert sent.tasks == [["a", "d", "g"], ["b", "e", "h"], ["c", "f"]]


def test_attempts_on_a_gpu_overlap_so_each_is_a_task() -> None:
    sent = Sent(device=GPU)
    sent.give(*map(plain_task, "abc"))
    assert sent.tasks == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    "task",
    [
        plain_task("large", LARGE),
        plain_task("back", returns_array=True),
    ],
    ids=["large arrays travel with it", "arrays come back"],
)
def test_what_carries_arrays_goes_by_itself_and_at_once(task: AttemptTask) -> None:
    sent = Sent()
    sent.give(*map(plain_task, "abc"))
    sent.give(plain_task("d"), task, plain_task("e"))
    assert sent.tasks == [["a", "b", "c"], [task.job_id]]


def test_what_was_never_sent_is_cancelled_without_a_word() -> None:
    sent = Sent()
    sent.give(*map(plain_task, "abcd"))
    sent.give(plain_task("e"))
    assert not sent.fleet.cancel(("e", 1))
    assert sent.client.calls == []


def test_cancelling_one_of_a_batch_leaves_the_others() -> None:
    sent = Sent()
    sent.give(*map(plain_task, "ab"))
    assert sent.fleet.cancel(("a", 1))
    (future,) = sent.client.futures
    assert not future.cancelled
    sent.fleet.ended(("a", 1))
    assert sent.fleet.cancel(("b", 1))
    assert future.cancelled, "it is the last one of its task"


@pytest.mark.parametrize(
    ("slots", "batches", "suspects"),
    [
        (1, ["abcdef"], "abc"),
        (1, ["ab", "cdef"], "abcd"),
        (2, ["ac", "bdfg"], "acbdf"),
        (1, ["a", "b", "c"], "ab"),
    ],
)
def test_those_at_the_head_of_what_was_sent_may_have_begun(
    slots: int, batches: list[str], suspects: str
) -> None:
    process = WorkerProcess(Hello("a", "a", "a", 1, CPU, CPU, slots, has_nanny=True))
    for batch in batches:
        future: Any = FakeFuture([plain_task(batch)], "a")
        process.in_flight.update(dict.fromkeys(keys(*batch), future))
    process.in_flight["unsent", 1] = None
    assert process.may_have_begun == set(keys(*suspects))


def test_one_that_has_ended_and_waits_to_be_fetched_hides_nobody() -> None:
    sent = Sent()
    sent.give(*(plain_task(name, returns_array=True) for name in "abcd"))
    sent.process.unfetched.update(keys("a", "b"))
    assert sent.process.may_have_begun == set(keys("c", "d"))


def test_a_free_thread_is_given_work_whatever_waits_in_another_ones_task() -> None:
    sent = Sent(slots=2)
    sent.give(*map(plain_task, "abcdefghijkl"))
    assert sent.tasks == [[*"acegik"], [*"bdfhjl"]]
    for name in "bdfhjl":
        sent.fleet.ended((name, 1))
    sent.give(plain_task("m"))
    assert sent.tasks[2:] == [["m"]]


def test_nothing_is_sent_to_a_process_that_has_gone() -> None:
    sent = Sent()
    sent.give(*map(plain_task, "abcd"))
    sent.give(plain_task("e"))
    sent.process.left_at = 1.0
    for name in "abc":
        sent.fleet.ended((name, 1))
    assert sent.fleet.send() == []
    assert sent.fleet.unsent == [(sent.process, ("e", 1))]


def test_a_process_is_asked_once_to_give_an_attempt_back() -> None:
    sent = Sent()
    sent.give(*map(plain_task, "abcd"))
    for names in ("cd", "cd", "d"):
        sent.fleet.take_back(sent.process, keys(*names))
    time.sleep(0.1)  # it is asked in a thread of its own
    assert [(name, arguments[0]) for name, _, arguments in sent.client.calls] == [
        ("give_back_here", keys("c", "d"))
    ]


def test_a_process_holds_what_can_run_there_at_one_time() -> None:
    sent = Sent(process_bytes=100)
    sent.give(*(plain_task(name) for name in "abcd"))
    sent.process.host_bytes |= dict.fromkeys(sent.process.host_bytes, 40)
    assert sent.process.holds_beside(60)
    assert not sent.process.holds_beside(61)


# the driver


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A process for short jobs, of which it gets nine at first, as one Dask task."""
    monkeypatch.setattr(driver_module, "TICK_S", 0.005)
    for module in (driver_module, crew_module):
        monkeypatch.setattr(module, "JUDGEMENT_S", 0.0)
    made = World(lambda future: None)
    made.join("w1")
    for _ in range(3):
        made.dispatcher.estimates.observe_host_peak("kind", "kind", ON_CPU, MIB // 10)
        made.dispatcher.estimates.observe_seconds("kind", ON_CPU, CPU.model, 0.001)
    return made


JOBS = "abcdefghijklmnopqrstuvwxyz"


def run_all(world: World) -> str:
    return world.run(*map(job, JOBS))


def in_turn(world: World, *acts: Callable[[], None]) -> None:
    """Do one thing after another, each in a turn of the driver's own."""
    left = list(acts)

    def act(_state: str) -> None:
        if left and world.futures:
            left.pop(0)()

    world.record.on_moment = act


def end_all(world: World, *futures: FakeFuture) -> None:
    for future in futures or world.futures:
        for task in future.tasks:
            world.end(future, task=task)


def test_short_jobs_are_sent_together(world: World) -> None:
    def go_on() -> None:
        world.client.work = lambda future: end_all(world, future)
        end_all(world)

    in_turn(world, go_on)
    assert run_all(world) == "done"
    assert [task.job_id for task in world.futures[0].tasks] == [*"abcdefghi"]
    assert sum(len(future.tasks) for future in world.futures) == len(JOBS)


def test_only_those_that_may_have_begun_are_to_blame_for_their_processs_end(world: World) -> None:
    def die() -> None:
        world.leave("w1")
        world.join("w2")

    world.client.work = lambda future: end_all(world, future) if future.address == "w2" else None
    in_turn(world, die)
    assert run_all(world) == "done"
    blamed = {name: outcomes[0] for name, outcomes in world.record.outcomes.items()}
    died = {name: outcome for name, outcome in blamed.items() if isinstance(outcome, WorkerDied)}
    assert [*died] == [*"abcdefghi"]
    assert [name for name in died if died[name].blame] == ["a", "b", "c"]


def test_a_process_that_leaves_gives_back_what_it_has_not_begun(world: World) -> None:
    def leave() -> None:
        world.driver.hear(Leaving("w1", "preempted", frozenset(keys("a"))))
        world.join("w2")

    def end_first() -> None:
        world.end(world.futures[0])

    world.client.work = lambda future: end_all(world, future) if future.address == "w2" else None
    in_turn(world, leave, end_first)
    assert run_all(world) == "done"
    assert [len(world.record.outcomes[name]) for name in "abcdefghij"] == [1, *[2] * 8, 1]
    assert not world.futures[0].cancelled, "its first attempt was still under way"


def test_a_job_that_was_started_and_not_yet_sent_can_be_cancelled(world: World) -> None:
    def end_one_and_cancel_the_next() -> None:
        world.end(world.futures[0])
        world.driver.cancel("j", "no more")
        world.client.work = lambda future: end_all(world, future)

    in_turn(world, end_one_and_cancel_the_next, lambda: end_all(world))
    assert run_all(world) == "done"
    assert world.record.finishes["j"] == ("cancelled", "no more")
    assert world.record.outcomes["j"] == [Cancelled("no more")]
    assert all(task.job_id != "j" for future in world.futures for task in future.tasks)


def test_what_waits_behind_one_that_takes_long_goes_elsewhere(world: World) -> None:
    def report_a_long_one() -> None:
        world.join("w2")
        world.driver.hear(Pulse("w1", {("a", 1): (LONG_S, "computes", 0.0)}))

    def give_back() -> None:
        assert [(name, arguments[0]) for name, _, arguments in world.client.calls] == [
            ("give_back_here", keys(*"bcdefghi"))
        ]
        for task in world.futures[0].tasks[1:]:
            world.end(world.futures[0], WorkerDied("behind", blame=False), task=task)

    def end_it() -> None:
        assert {future.address for future in world.futures[1:]} == {"w2"}
        world.client.work = lambda future: end_all(world, future)
        end_all(world, world.futures[0])

    world.client.work = lambda future: end_all(world, future) if future.address == "w2" else None
    in_turn(world, report_a_long_one, lambda: time.sleep(0.1), give_back, *[lambda: None] * 9, end_it)
    assert run_all(world) == "done"
    assert [len(world.record.outcomes[name]) for name in "abcdefghi"] == [1, *[2] * 8]


def test_what_no_other_process_could_take_stays_behind_the_long_one(world: World) -> None:
    def report_a_long_one() -> None:
        world.driver.hear(Pulse("w1", {("a", 1): (LONG_S, "computes", 0.0)}))

    def go_on() -> None:
        assert world.client.calls == []
        world.client.work = lambda future: end_all(world, future)
        end_all(world)

    in_turn(world, report_a_long_one, lambda: time.sleep(0.1), go_on)
    assert run_all(world) == "done"
    assert all(len(outcomes) == 1 for outcomes in world.record.outcomes.values())


def test_a_job_is_not_given_up_for_having_waited_behind_others(world: World) -> None:
    back = WorkerDied(BEHIND, blame=False)

    def give_back_or_end(future: FakeFuture) -> None:
        for task in future.tasks:
            world.end(future, Done() if task.number > 2 * MAX_REQUEUES else back, task=task)

    world.client.work = give_back_or_end
    assert world.run(job("a")) == "done"
    assert len(world.record.outcomes["a"]) == 2 * MAX_REQUEUES + 1


def test_what_is_unsent_when_the_run_is_stopped_is_left_for_resume(world: World) -> None:
    def end_one_and_stop() -> None:
        world.end(world.futures[0])
        world.driver.stop("enough", 60.0)

    in_turn(world, end_one_and_stop, lambda: end_all(world))
    assert run_all(world) == "interrupted"
    assert len(world.futures) == 1
    assert set(world.record.finishes) == set("abcdefghi")


def test_an_attempt_that_was_never_sent_leaves_nothing_to_overwrite(world: World) -> None:
    world.client.work = lambda future: end_all(world, future) if future.address == "w2" else None
    in_turn(world, lambda: world.end(world.futures[0]), lambda: (world.leave("w1"), world.join("w2")))
    assert run_all(world) == "done"
    (again,) = [task for future in world.futures[1:] for task in future.tasks if task.job_id == "j"]
    assert (again.number, again.output.overwrite) == (2, False)
    (behind,) = [task for future in world.futures[1:] for task in future.tasks if task.job_id == "i"]
    assert (behind.number, behind.output.overwrite) == (2, True)


def test_the_error_of_a_task_is_no_failure_of_the_attempts_that_share_it(world: World) -> None:
    def fail() -> None:
        world.client.work = lambda future: end_all(world, future)
        world.futures[0].fail(RuntimeError("no thread"))

    in_turn(world, fail)
    assert run_all(world) == "done"
    first = world.record.outcomes["a"][0]
    reason = "the worker can't run the attempt: RuntimeError: no thread"
    assert first == WorkerDied(reason, blame=False)
