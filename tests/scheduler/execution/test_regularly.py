"""A thread that does the same few things again and again."""

import logging
import threading

import pytest

from scheduler.execution.regularly import Regularly


def test_what_raises_is_tried_again_and_each_problem_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    enough = threading.Event()

    def fail() -> None:
        done.append("failed")
        raise OSError("full" if len(done) < 20 else "broken")

    def fail_too() -> None:
        raise ValueError("always")

    def go_on() -> None:
        if done.count("failed") >= 30:
            enough.set()

    tasks = {"report": fail, "look": fail_too, "go on": go_on}
    with caplog.at_level(logging.WARNING):
        thread = Regularly(0.001, tasks, name="stackyard-test")
        assert enough.wait(30.0)
        thread.close()
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "this worker can't report now: OSError('full')",
        "this worker can't look now: ValueError('always')",
        "this worker can't report now: OSError('broken')",
    ]
