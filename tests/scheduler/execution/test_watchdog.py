"""Who is thought to be stuck, from what workers tell and don't tell. All times are the test's."""

from scheduler.execution.messages import Pulse
from scheduler.execution.watchdog import STUCK_S, Watchdog

A, B = ("a", 1), ("b", 1)
JUST_BEFORE = STUCK_S - 0.5


def pulse(*attempts: tuple[tuple[str, int], tuple[float, str, float]], address: str = "w1") -> Pulse:
    return Pulse(address, dict(attempts))


def test_an_attempt_is_told_of_once_with_its_seconds_so_far() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    assert watchdog.heard(pulse((A, (2.0, "reads", 0.0))), 103.0) == [(A, 2.0)]
    assert watchdog.heard(pulse((A, (3.0, "computes", 0.0))), 104.0) == []


def test_attempts_that_are_over_or_were_never_ours_are_not_told_of() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    watchdog.ended(A)
    assert watchdog.heard(pulse((A, (2.0, "writes", 0.0)), (B, (9.0, "reads", 0.0))), 103.0) == []
    assert watchdog.stuck(1000.0) == {}


def test_a_worker_that_says_nothing_is_named_after_a_while_and_not_before() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    watchdog.heard(pulse((A, (1.0, "computes", 0.0))), 101.0)
    assert watchdog.stuck(101.0 + JUST_BEFORE) == {}
    assert watchdog.stuck(101.0 + STUCK_S) == {"a": "its worker process has said nothing for 8 s"}


def test_one_word_from_the_worker_clears_it() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    watchdog.heard(pulse((A, (1.0, "computes", 0.0))), 101.0)
    assert watchdog.stuck(120.0)
    watchdog.heard(pulse((A, (19.0, "computes", 0.0))), 120.0)
    assert watchdog.stuck(120.0) == {}


def test_silence_before_an_attempt_was_sent_is_not_counted() -> None:
    watchdog = Watchdog()
    watchdog.heard(pulse(), 0.0)
    watchdog.submitted(A, "w1", 1000.0)
    assert watchdog.stuck(1000.0 + JUST_BEFORE) == {}
    assert watchdog.silent(1000.0 + JUST_BEFORE) == []


def test_an_attempt_of_a_silent_worker_counts_as_begun_when_it_was_sent() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    assert watchdog.silent(100.0 + JUST_BEFORE) == []
    assert watchdog.silent(100.0 + STUCK_S) == [(A, STUCK_S)]


def test_an_attempt_that_has_begun_is_not_told_of_again_when_its_worker_falls_silent() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    watchdog.heard(pulse((A, (1.0, "computes", 0.0))), 101.0)
    assert watchdog.silent(200.0) == []


def test_another_workers_word_says_nothing_of_this_one() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    watchdog.heard(pulse(address="w2"), 100.0 + STUCK_S)
    assert watchdog.silent(100.0 + STUCK_S) == [(A, STUCK_S)]


def test_a_worker_that_speaks_but_never_begins_what_it_was_given_is_named() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    watchdog.heard(pulse(), 100.0 + JUST_BEFORE)
    assert watchdog.stuck(100.0 + JUST_BEFORE) == {}
    watchdog.heard(pulse(), 100.0 + STUCK_S)
    assert watchdog.stuck(100.0 + STUCK_S) == {"a": "its worker hasn't begun it in 8 s"}


def test_waiting_behind_another_attempt_of_the_same_worker_is_in_order() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    watchdog.submitted(B, "w1", 100.0)
    watchdog.heard(pulse((A, (50.0, "computes", 0.0))), 150.0)
    assert watchdog.stuck(150.0) == {}


def test_another_worker_that_is_busy_is_no_excuse() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w2", 100.0)
    watchdog.submitted(B, "w1", 100.0)
    watchdog.heard(pulse((A, (50.0, "computes", 0.0)), address="w2"), 150.0)
    watchdog.heard(pulse(), 150.0)
    assert watchdog.stuck(150.0) == {"b": "its worker hasn't begun it in 50 s"}


def test_a_process_that_uses_no_processor_time_is_named_with_what_it_does() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    watchdog.heard(pulse((A, (30.0, "computes gaussian", JUST_BEFORE))), 130.0)
    assert watchdog.stuck(130.0) == {}
    watchdog.heard(pulse((A, (31.0, "computes gaussian", STUCK_S))), 131.0)
    assert watchdog.stuck(131.0) == {
        "a": "computes gaussian for 31 s, and its process has used no processor time for 8 s"
    }


def test_waiting_for_its_turn_on_the_device_takes_no_processor_time_and_is_in_order() -> None:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    watchdog.heard(pulse((A, (30.0, "waits for its turn", 30.0))), 130.0)
    assert watchdog.stuck(130.0) == {}
