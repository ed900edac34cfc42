"""The account of a worker process's attempts: who is here, who was alone, who must stop, who gets nowhere."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from scheduler.execution import activity as activity_module
from scheduler.execution.activity import WAITS, Activity, Attempts, CancelledAttemptError

A, B = ("a", 1), ("b", 1)
DEADLINE_S = 30.0


@dataclass
class Clock:
    """Time, and the seconds of processor time that the process has used, as a test says.

    `upkeep_s` of them by the main thread.
    """

    now: float = 1000.0
    used_s: float = 5.0
    upkeep_s: float = 1.0

    def pass_by(self, seconds: float, *, used_s: float = 0.0, upkeep_s: float = 0.0) -> None:
        self.now += seconds
        self.used_s += used_s + upkeep_s
        self.upkeep_s += upkeep_s

    def threads(self) -> list[SimpleNamespace]:
        rest = self.used_s - self.upkeep_s
        used = {threading.main_thread().native_id: self.upkeep_s, -1: rest}
        return [SimpleNamespace(id=key, user_time=s / 4, system_time=s * 3 / 4) for key, s in used.items()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    # Half of what is used is the kernel's.
    half = SimpleNamespace(
        cpu_times=lambda: SimpleNamespace(user=clock.used_s / 2, system=clock.used_s / 2),
        threads=clock.threads,
    )
    monkeypatch.setattr(activity_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(activity_module, "psutil", SimpleNamespace(Process=lambda: half))
    return clock


@pytest.fixture
def attempts() -> Attempts:
    return Attempts()


@contextlib.contextmanager
def here(attempts: Attempts, key: tuple[str, int]) -> Iterator[Activity]:
    """An attempt that is here and has begun."""
    with attempts.present(*key) as admitted, attempts.begin(*key) as activity:
        assert admitted
        yield activity


# who was alone


def test_an_attempt_without_another_beside_it_is_alone(attempts: Attempts) -> None:
    with attempts.begin(*A):
        pass
    with attempts.begin(*B) as activity:
        assert activity.alone
    assert activity.alone
    assert attempts.count == 0


def test_neither_of_two_that_overlap_is_alone(attempts: Attempts) -> None:
    with attempts.begin(*A) as first:
        assert first.alone
        with attempts.begin(*B) as second:
            assert attempts.count == 2
            assert not second.alone
        assert not first.alone
        assert attempts.count == 1
    assert not first.alone
    assert not second.alone


def test_one_that_ends_while_another_goes_on_leaves_it_not_alone(attempts: Attempts) -> None:
    with contextlib.ExitStack() as first:
        first.enter_context(attempts.begin(*A))
        with attempts.begin(*B) as second:
            first.close()
            assert not second.alone


def test_an_attempt_that_fails_is_not_here_any_more(attempts: Attempts) -> None:
    with pytest.raises(KeyError), attempts.begin(*A):
        raise KeyError
    assert attempts.count == 0


# cancelling


def test_a_cancelled_attempt_stops_before_what_it_would_do_next(attempts: Attempts) -> None:
    with here(attempts, A) as activity:
        activity.turn_to("reads")
        assert attempts.cancel(*A)
        with pytest.raises(CancelledAttemptError, match="stopped before it computes"):
            activity.turn_to("computes")
        assert activity.doing == "reads"


def test_an_attempt_that_is_cancelled_before_it_begins_never_does(attempts: Attempts) -> None:
    assert not attempts.cancel(*A)
    with pytest.raises(CancelledAttemptError, match="cancelled before it began"), attempts.begin(*A):
        pytest.fail("it has begun")
    assert attempts.count == 0


def test_cancelling_concerns_one_attempt_of_one_job(attempts: Attempts) -> None:
    attempts.cancel("a", 1)
    with attempts.begin("a", 2) as second, attempts.begin("b", 1) as other:
        attempts.cancel("a", 2)
        assert (second.cancelled, other.cancelled) == (True, False)


def test_an_attempt_that_is_here_and_has_not_begun_tells_its_own_end(attempts: Attempts) -> None:
    with attempts.present(*A):
        assert attempts.cancel(*A)
        with pytest.raises(CancelledAttemptError), attempts.begin(*A):
            pytest.fail("it has begun")


def test_all_are_cancelled_with_the_run(attempts: Attempts) -> None:
    with here(attempts, A) as first, here(attempts, B) as second:
        attempts.cancel_all()
        assert first.cancelled
        assert second.cancelled
    with attempts.present("c", 1) as admitted:
        assert not admitted


# leaving


def test_who_is_here_when_the_process_leaves_may_end_and_nobody_else_begins(attempts: Attempts) -> None:
    with attempts.present(*A) as admitted:
        assert admitted
        assert attempts.leave("preempted") == {A}
        with attempts.present(*B) as late:
            assert not late
            # One that wasn't let in is none of those that are waited for.
            assert attempts.leave("again") == {A}
    assert attempts.leaving == "preempted"
    assert attempts.leave("again") == frozenset()


class Noted(threading.Condition):
    """Says when somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.set()
        return super().wait(timeout)


def test_waiting_for_none_ends_with_the_last() -> None:
    condition = Noted()
    attempts = Attempts(_changed=condition)
    assert attempts.wait_for_none(0.0)
    answers: list[bool] = []
    with attempts.present(*A):
        # That it has begun and ended isn't all: its end has to be told too.
        with attempts.begin(*A):
            pass
        waiting = threading.Thread(target=lambda: answers.append(attempts.wait_for_none(None)), daemon=True)
        waiting.start()
        assert condition.waits.wait(DEADLINE_S)
        assert answers == []
    waiting.join(DEADLINE_S)
    assert answers == [True]


def test_one_that_stays_is_waited_for_as_long_as_is_said(attempts: Attempts) -> None:
    with attempts.present(*A):
        assert not attempts.wait_for_none(0.0)


def test_nobody_waits_for_those_that_were_abandoned() -> None:
    condition = Noted()
    attempts = Attempts(_changed=condition)
    with attempts.present(*A):
        waiting = threading.Thread(target=attempts.wait_for_none, args=(None,), daemon=True)
        waiting.start()
        assert condition.waits.wait(DEADLINE_S)
        attempts.abandon("it is being restarted")
        waiting.join(DEADLINE_S)
        assert not waiting.is_alive()
        with attempts.present(*B) as admitted:
            assert not admitted


# what a pulse tells


def test_a_pulse_tells_of_those_that_have_lasted_a_while(attempts: Attempts, clock: Clock) -> None:
    with attempts.begin(*A) as first:
        first.turn_to("reads")
        clock.pass_by(0.5)
        with attempts.begin(*B):
            clock.pass_by(0.5, used_s=1.0)
            assert attempts.pulse(older_than_s=0.75) == {A: (1.0, "reads", 0.0)}
            assert set(attempts.pulse(older_than_s=0.5)) == {A, B}
    assert attempts.pulse(older_than_s=0.0) == {}


def test_stillness_is_how_long_the_process_used_no_processor_time(attempts: Attempts, clock: Clock) -> None:
    attempts.pulse(older_than_s=0.0)
    clock.pass_by(5.0, used_s=5.0)
    with attempts.begin(*A):
        attempts.pulse(older_than_s=0.0)
        clock.pass_by(10.0, used_s=0.5)  # 5 % of a core
        assert attempts.pulse(older_than_s=0.0) == {A: (10.0, "begins", 10.0)}
        clock.pass_by(10.0, used_s=0.2)
        assert attempts.pulse(older_than_s=0.0) == {A: (20.0, "begins", 20.0)}
        clock.pass_by(10.0, used_s=0.51)
        assert attempts.pulse(older_than_s=0.0) == {A: (30.0, "begins", 0.0)}
        clock.pass_by(2.0)
        assert attempts.pulse(older_than_s=0.0) == {A: (32.0, "begins", 2.0)}


def test_what_a_process_uses_to_report_and_to_probe_is_stillness(attempts: Attempts, clock: Clock) -> None:
    attempts.pulse(older_than_s=0.0)
    with attempts.begin(*A):
        clock.pass_by(10.0, upkeep_s=9.0, used_s=0.1)
        assert attempts.pulse(older_than_s=0.0) == {A: (10.0, "begins", 10.0)}
        clock.pass_by(10.0, upkeep_s=8.0, used_s=1.0)
        assert attempts.pulse(older_than_s=0.0) == {A: (20.0, "begins", 0.0)}


def test_stillness_before_an_attempt_began_is_not_its_own(attempts: Attempts, clock: Clock) -> None:
    attempts.pulse(older_than_s=0.0)
    clock.pass_by(100.0)
    with attempts.begin(*A):
        clock.pass_by(3.0)
        assert attempts.pulse(older_than_s=0.0) == {A: (3.0, "begins", 3.0)}


def test_waiting_for_ones_turn_is_not_running(attempts: Attempts, clock: Clock) -> None:
    with attempts.begin(*A) as activity:
        clock.pass_by(1.0, used_s=1.0)
        activity.turn_to(WAITS)
        clock.pass_by(30.0, used_s=30.0)
        assert attempts.pulse(older_than_s=5.0) == {A: (1.0, WAITS, 0.0)}
        activity.turn_to("computes")
        clock.pass_by(2.0, used_s=2.0)
        activity.turn_to(WAITS)
        clock.pass_by(30.0, used_s=30.0)
        activity.turn_to("writes")
        assert activity.ran_s(clock.now) == 3.0
