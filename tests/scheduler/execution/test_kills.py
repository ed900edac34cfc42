"""A driver that is killed at any moment, and again while it resumes, loses nothing and does nothing twice.

The suite kills a few times; for long:
`STACKYARD_KILLS=20 pytest tests/scheduler/execution/test_kills.py`.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import tifffile

from scheduler.execution.journal import Journal
from scheduler.execution.resume import resume
from scheduler.execution.status import RunSummary

KILLS = int(os.environ.get("STACKYARD_KILLS", "4"))
JOBS_A_KILL = 3
WAIT_S = 180


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    folder = tmp_path / "stacks"
    folder.mkdir()
    random = np.random.default_rng(11)
    for number in range(KILLS * JOBS_A_KILL + 4):
        tifffile.imwrite(
            folder / f"n{number:03}.tif",
            random.integers(0, 60000, (3, 21, 17), np.uint16),
            photometric="minisblack",
        )
    return folder


def expected(stack: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return stack[:, ::-1, :] // 3


def done_jobs(run_dir: Path) -> dict[str, str]:
    """Output by job, of those that the journal calls done."""
    journal = Journal.open_readonly(run_dir / "journal.sqlite")
    try:
        return {job.job_id: job.output or "" for job in journal.jobs() if job.state == "done"}
    finally:
        journal.close()


def identity(path: str) -> tuple[int, int]:
    """Changes if the file is written again."""
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "scheduler.screens", *arguments, "--quiet"]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)


def kill_at_a_moment(driver: "subprocess.Popen[bytes]", out: Path, random: Random) -> bool:
    """Kill the driver at once, or after some more outputs and a little; False if it ended before that."""
    there = len(list(out.glob("*.ome.tif")))
    while_it_starts = random.random() < 0.25
    more = random.randint(1, JOBS_A_KILL)
    deadline = time.monotonic() + (random.uniform(0.0, 4.0) if while_it_starts else WAIT_S)
    while driver.poll() is None:
        if time.monotonic() > deadline:
            break
        if not while_it_starts and len(list(out.glob("*.ome.tif"))) >= there + more:
            time.sleep(random.uniform(0.0, 0.2))
            break
        time.sleep(0.005)
    if driver.poll() is not None:
        return False
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    return True


def test_a_driver_killed_again_and_again(
    tmp_path: Path, stacks: Path, write_config: Callable[..., Path]
) -> None:
    (tmp_path / "slowly.py").write_text(
        "import time\ndef step(stack):\n    time.sleep(0.15)\n    return stack[:, ::-1, :] // 3\n"
    )
    config = write_config(
        input={"path": str(stacks), "pattern": "{name}.tif"},
        steps=[{"use": "slowly:step", "declare": {"input": "numpy"}}],
        output={"path": "out", "name": "{name}"},
        memory={"reproducible": True},
    )
    out, random, seen = tmp_path / "out", Random(20), dict[str, tuple[int, int]]()
    killed = 0
    driver = start("run", str(config))
    while killed < KILLS:
        if not kill_at_a_moment(driver, out, random):
            _, said = driver.communicate()
            raise AssertionError(f"ended with {driver.returncode} after {killed} kills: {said.decode()}")
        killed += 1
        runs = [journal.parent for journal in out.glob(".stackyard/*/journal.sqlite")]
        if not runs:  # it had not begun: there is nothing to resume
            driver = start("run", str(config))
            continue
        for job, path in done_jobs(runs[0]).items():
            assert seen.setdefault(job, identity(path)) == identity(path), f"{job} was written again"
        driver = start("resume", str(runs[0]))
    _, said = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == 0, said.decode()
    (run_dir,) = (journal.parent for journal in out.glob(".stackyard/*/journal.sqlite"))
    again: RunSummary = resume(run_dir)
    names = sorted(path.stem for path in stacks.glob("*.tif"))
    assert (again.jobs, again.done, again.failed, again.lost) == (len(names), len(names), 0, 0)
    assert sorted(path.name for path in out.iterdir() if path.name != ".stackyard") == [
        f"{name}.ome.tif" for name in names
    ]
    for job, path in done_jobs(run_dir).items():
        assert seen.setdefault(job, identity(path)) == identity(path), f"{job} was written again"
    for name in names:
        made = tifffile.imread(out / f"{name}.ome.tif")
        np.testing.assert_array_equal(made, expected(tifffile.imread(stacks / f"{name}.tif")), strict=True)
