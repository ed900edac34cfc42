"""A plugin for pytest that writes each test's end as a line of JSON: a run cut short tells what it did."""

from __future__ import annotations

import json
import os
from typing import Any

RESULTS_VARIABLE = "STACKYARD_GPU_TESTS"
REASON_CHARACTERS = 2000


def pytest_runtest_logreport(report: Any) -> None:
    """Called for setup, call and teardown of each test."""
    if report.when == "call" or (report.when == "setup" and not report.passed) or report.failed:
        _write(report.nodeid, report.outcome, report.duration, _reason(report))


def pytest_collectreport(report: Any) -> None:
    """A module that can't be imported has tests that nobody counts."""
    if report.failed:
        _write(report.nodeid, "failed", 0.0, _reason(report))
    elif report.skipped:
        _write(report.nodeid, "skipped", 0.0, _reason(report))


def pytest_collection_finish(session: Any) -> None:
    """How many tests there are to be."""
    _write("", "collected", float(len(session.items)), "")


def _reason(report: Any) -> str:
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (str(report.longrepr) if crash is None else str(crash))[-REASON_CHARACTERS:]


def _write(test: str, outcome: str, seconds: float, reason: str) -> None:
    path = os.environ.get(RESULTS_VARIABLE)
    if path is None:
        return
    with open(path, "a") as file:
        file.write(
            json.dumps({"test": test, "outcome": outcome, "seconds": seconds, "reason": reason}) + "\n"
        )
