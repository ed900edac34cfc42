"""Cancelling: jobs that wait end at once, those that run when their attempt has really stopped."""

import pytest

from scheduler.core.events import (
    AttemptBegan,
    Cancel,
    Cancelled,
    Done,
    Failed,
    OutOfMemory,
    Refused,
    Tick,
    TimedOut,
    WorkerDied,
    WorkerLost,
)
from scheduler.core.instructions import CancelAttempt, FinishJob, JobOutcome, Start
from scheduler.core.model import Verdict
from tests.scheduler.core.build import GIB, World, cpu, gpu, job, jobs, on_cpu, on_gpu


def one_runs_one_waits():
    world = World(gpu(slots=1), cpu(slots=0))
    world.measure(on_gpu(1))
    world.add(*jobs(2, on_gpu(1)))
    return world


def reserved(world):
    return [view.reserved_bytes for view in world.dispatcher.device_view()]


def test_a_waiting_job_ends_at_once_and_a_running_one_is_asked_to_stop():
    world = one_runs_one_waits()
    out = world.tell(Cancel(1.0, None, "the user said so"))
    assert [type(i) for i in out] == [CancelAttempt, FinishJob]
    stop, finish = out
    assert (stop.job_id, stop.attempt, stop.restart_worker) == ("k0", 1, False)
    assert stop.decision.reason == "the user said so"
    assert (finish.job_id, finish.outcome) == ("k1", JobOutcome.CANCELLED)
    assert finish.decision.reason == "the user said so"


def test_its_bytes_and_its_slot_are_held_until_the_attempt_has_ended():
    world = one_runs_one_waits()
    before = reserved(world)
    assert min(before) > 0
    world.tell(Cancel(1.0, "k0", "the user said so"))
    world.tell(Tick(2.0))
    assert reserved(world) == before
    assert "k1" not in world.running
    (finish, start) = world.end("k0", Cancelled())
    assert isinstance(finish, FinishJob)
    assert isinstance(start, Start)
    assert start.placement.job_id == "k1"
    world.end("k1")
    assert reserved(world) == [0, 0]


@pytest.mark.parametrize(
    "outcome",
    [
        Cancelled("stopped by its worker"),
        OutOfMemory(GIB),
        Failed("the connection was closed"),
        Refused("less than thought"),
        WorkerDied(),
        WorkerDied("retired", blame=False),
        TimedOut("too long"),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_however_the_attempt_ends_the_job_ends_with_the_reason_of_the_cancel(outcome):
    world = one_runs_one_waits()
    world.tell(Cancel(1.0, "k0", "the user said so"))
    world.tell(Cancel(1.5, "k0", "and again"))
    (finish, _) = world.end("k0", outcome)
    assert (finish.outcome, finish.decision.verdict) == (JobOutcome.CANCELLED, Verdict.CANCEL)
    assert finish.decision.reason == "the user said so"


def test_a_lost_worker_ends_a_cancelled_job_too():
    world = one_runs_one_waits()
    world.tell(Cancel(1.0, "k0", "the user said so"))
    out = world.tell(WorkerLost(2.0, "g0"))
    assert [(i.job_id, i.outcome) for i in out] == [("k0", JobOutcome.CANCELLED)]
    assert reserved(world) == [0, 0]


def test_a_job_that_was_done_before_it_could_be_stopped_is_done():
    world = one_runs_one_waits()
    world.tell(Cancel(1.0, "k0", "the user said so"))
    (finish, _) = world.end("k0", Done(GIB))
    assert finish.outcome is JobOutcome.DONE
    assert finish.decision.reason == "done on gpu0, before it could be stopped (the user said so)"
    assert world.dispatcher.device_view()[0].done == 2


def test_an_attempt_stopped_without_a_cancel_ends_its_job_with_its_own_reason():
    world = one_runs_one_waits()
    (finish, _) = world.end("k0", Cancelled("stopped at the worker"))
    assert (finish.outcome, finish.decision.reason) == (JobOutcome.CANCELLED, "stopped at the worker")


def test_cancelled_jobs_are_no_equal_failures():
    world = World(cpu(slots=4), max_failures=2)
    world.add(*jobs(4, on_cpu()))
    for number in range(3):
        world.tell(Cancel(1.0, f"k{number}", "the user said so"))
        world.end(f"k{number}", Cancelled())
    assert world.dispatcher.running == 1
    world.add(*jobs(1, on_cpu(), start=9))
    assert "k9" in world.running


def test_a_cancelled_attempt_that_does_not_stop_is_stopped_with_its_worker_when_overdue():
    world = World(cpu(slots=1))
    world.add(job("j", on_cpu(), timeout_s=30))
    world.tell(AttemptBegan(1.0, "j", 1))
    world.tell(Cancel(2.0, "j", "the user said so"))
    (stop,) = world.tell(Tick(31.5))
    assert stop.restart_worker
    (finish,) = world.end("j", TimedOut(stop.decision.reason))
    assert (finish.outcome, finish.decision.reason) == (JobOutcome.CANCELLED, "the user said so")


def test_what_is_over_or_unknown_is_not_cancelled():
    world = one_runs_one_waits()
    world.end("k0")
    assert world.tell(Cancel(3.0, "k0")) == []
    assert world.tell(Cancel(3.0, "nobody")) == []
