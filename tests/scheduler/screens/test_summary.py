"""The account at the end of a run."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from scheduler.execution.status import JobFailure, RunSummary
from scheduler.screens.summary import print_summary

SUMMARY = RunSummary(
    jobs=48,
    done=48,
    failed=0,
    lost=0,
    oom_attempts=0,
    wall_s=12.0,
    run_dir="/data/out/.stackyard/1",
    devices={
        "gpu0": {"uuid": "GPU-1", "kind": "cuda", "virtual": False, "jobs": 30},
        "cpu": {"uuid": "host", "kind": "cpu", "virtual": False, "jobs": 18},
    },
)


def printed(summary: RunSummary) -> str:
    console = Console(file=io.StringIO(), width=60)
    print_summary(console, summary, Path("/data/out"))
    return console.file.getvalue()


def test_all_done():
    assert printed(SUMMARY) == (
        "48 of 48 jobs done in 12 s\n"
        "device  kind  jobs  \n"
        "gpu0    cuda    30  \n"
        "cpu     cpu     18  \n"
        "Results  /data/out\n"
        "Run      /data/out/.stackyard/1\n"
    )


def test_failures_are_named_once_for_each_reason():
    failures = (
        JobFailure("A", "z2 is missing\nin /data"),
        JobFailure("B", "z2 is missing\nin /data"),
        JobFailure("C", "[b]"),
    )
    text = printed(replace(SUMMARY, done=44, failed=3, lost=1, oom_attempts=1, failures=failures))
    assert text.startswith("44 of 48 jobs done in 12 s, 3 failed, 1 lost, 1 attempt out of memory\n")
    assert "Failed   A, B\n         z2 is missing\n         in /data\nFailed   C\n         [b]\n" in text


def test_remarks_about_the_run():
    assert "gpu0: torch isn't used\n" in printed(replace(SUMMARY, remarks=("gpu0: torch isn't used",)))
    assert "remarks" not in SUMMARY.to_json()


def test_interrupted_before_anything_was_done():
    text = printed(replace(SUMMARY, done=0, wall_s=0.4, interrupted=True, devices={}))
    assert text.startswith("Interrupted: 0 of 48 jobs done in 0.4 s\nResults")
    assert text.endswith("stackyard resume /data/out/.stackyard/1 finishes it\n")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["gpu0"], "gpu0 is a virtual device: an account"),
        (["gpu0", "gpu1"], "gpu0, gpu1 are virtual devices: an"),
    ],
)
def test_virtual_devices_are_called_virtual(names, said):
    devices = {name: {"uuid": name, "kind": "virtual", "virtual": True, "jobs": 1} for name in names}
    assert said in printed(replace(SUMMARY, devices=devices))


def test_long_paths_stay_on_one_line_outside_a_terminal():
    long = Path("/data") / ("x" * 100)
    console = Console(file=io.StringIO(), width=60)
    print_summary(console, SUMMARY, long)
    assert f"Results  {long}\n" in console.file.getvalue()
