"""A plugin for pytest that writes each test's end as a line of JSON: a run cut short tells what it did."""

from __future__ import annotations

import json
import os
import re
from typing import Any

RESULTS_VARIABLE = "STACKYARD_GPU_TESTS"
LACKING_VARIABLE = "STACKYARD_GPU_LACKING"
"""Set where dependencies of ours are missing: what can't be imported then is no failure."""
OURS = ("memcore", "pools", "scheduler", "tests", "benchmarks")
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
    absent = re.search(r"No module named '([^'.]+)", reason)
    if outcome == "failed" and absent and absent[1] not in OURS and os.environ.get(LACKING_VARIABLE):
        outcome, reason = "skipped", f"needs {absent[1]}"
    with open(path, "a") as file:
        file.write(
            json.dumps({"test": test, "outcome": outcome, "seconds": seconds, "reason": reason}) + "\n"
        )
