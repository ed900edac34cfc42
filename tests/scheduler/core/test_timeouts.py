"""`timeout_s` counts from when an attempt really runs, as its worker says, and not from its submission."""

from dataclasses import replace

import pytest

from scheduler.core.events import AttemptBegan, DeviceReleased, JobAdded, Refused, Tick
from scheduler.core.instructions import CancelAttempt
from tests.scheduler.core.build import World, gpu, job, on_gpu


def limited(timeout_s=30.0, **device):
    """One job with a time limit, submitted at 1 s, and one without."""
    world = World(replace(gpu(), **device))
    world.measure(on_gpu(1))
    world.tell(JobAdded(1.0, job("slow", on_gpu(1), kind="s", family="k", timeout_s=timeout_s)))
    world.tell(JobAdded(1.0, job("free", on_gpu(1), kind="f", family="k")))
    return world


def began(world, now, elapsed_s=0.0, name="slow", attempt=None):
    attempt = world.running[name].attempt if attempt is None else attempt
    return world.tell(AttemptBegan(now, name, attempt, elapsed_s))


def test_an_overdue_attempt_is_cancelled_with_its_worker():
    world = limited()
    began(world, 10.0)
    began(world, 10.0, name="free")
    assert world.tell(Tick(40.0)) == []
    (cancel,) = world.tell(Tick(41.5))
    assert isinstance(cancel, CancelAttempt)
    assert (cancel.job_id, cancel.attempt, cancel.restart_worker) == ("slow", 1, True)
    assert cancel.decision.reason == "runs for 31.5 s, and its timeout_s is 30"
    assert world.tell(Tick(90.0)) == [], "it is told once"


def test_an_attempt_that_never_began_has_no_deadline():
    world = limited()
    assert world.tell(Tick(1e6)) == []


def test_a_report_that_comes_late_says_since_when():
    world = limited()
    began(world, 25.0, elapsed_s=20.0)
    assert world.tell(Tick(35.0)) == []
    (cancel,) = world.tell(Tick(35.5))
    assert cancel.decision.reason == "runs for 30.5 s, and its timeout_s is 30"


def test_the_same_beginning_told_again_changes_nothing():
    world = limited()
    began(world, 10.0)
    for now in (20.0, 30.0, 40.0):
        assert began(world, now, elapsed_s=now - 10.0) == []
        assert began(world, now, elapsed_s=now) == [], "nor does an earlier one"
    assert len(world.tell(Tick(40.1))) == 1
    assert world.tell(Tick(90.0)) == [], "it is told once"


def test_seconds_that_it_has_waited_meanwhile_do_not_count():
    world = limited()
    began(world, 10.0)
    began(world, 20.0, elapsed_s=3.0)
    assert world.tell(Tick(47.0)) == []
    (cancel,) = world.tell(Tick(47.5))
    assert cancel.decision.reason == "runs for 30.5 s, and its timeout_s is 30"


def test_with_both_deadlines_over_at_once_it_is_stopped_once():
    world = limited()
    began(world, 10.0)
    began(world, 10.2)
    assert [type(each) for each in world.tell(Tick(60.0))] == [CancelAttempt]


def test_a_report_of_another_attempt_or_job_is_ignored():
    world = limited()
    began(world, 1.0, attempt=2)
    world.tell(AttemptBegan(1.0, "nobody", 1))
    assert world.tell(Tick(100.0)) == []


def test_the_next_attempt_has_its_own_deadline():
    world = limited()
    began(world, 10.0)
    world.end("slow", Refused("less than thought"), after=20.0)
    world.snapshot("g0")
    assert world.running["slow"].attempt == 2
    assert world.tell(Tick(45.0)) == [], "the first attempt's deadline has gone with it"
    began(world, 50.0)
    assert world.tell(Tick(80.0)) == []
    (cancel,) = world.tell(Tick(80.5))
    assert cancel.attempt == 2


def test_the_deadline_holds_after_the_device_segment_too():
    world = limited()
    began(world, 2.0)
    world.tell(DeviceReleased(10.0, "slow", 1))
    assert [type(i) for i in world.tell(Tick(32.5))] == [CancelAttempt]


@pytest.mark.parametrize("prefetch", [1, 3])
def test_time_in_the_window_does_not_count(prefetch):
    world = World(replace(gpu(slots=1), prefetch=prefetch))
    world.measure(on_gpu(1))
    for number in range(prefetch + 1):
        world.tell(JobAdded(1.0, job(f"j{number}", on_gpu(1), kind="s", family="k", timeout_s=30)))
    assert len(world.running) == prefetch + 1
    for number in range(prefetch):
        # each runs for 25 s: the last has waited for all of them in the window
        began(world, 1.0 + 25.0 * number, name=f"j{number}")
        world.now = 25.0 * number
        assert world.tell(Tick(25.0 * number + 24.0)) == []
        world.end(f"j{number}", after=26.0)
    now = 1.0 + 25.0 * prefetch
    began(world, now, name=f"j{prefetch}")
    assert world.tell(Tick(now + 30.0)) == []
    assert len(world.tell(Tick(now + 30.1))) == 1
