"""Runs on a cluster of separate programs whose attempts wait until a test lets them go on."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml

from scheduler.config import load_config
from scheduler.execution.journal import Journal
from scheduler.execution.run import run
from scheduler.execution.status import RunStatus, RunSummary
from tests.scheduler.dask_programs import wait_for

STEP = """\
import os, time
from pathlib import Path
here = Path(__file__).parent
def step(stack, *, context):
    with (here / "began").open("a") as file:
        file.write(f"{context.job_id} {os.getpid()} {time.time()}\\n")
    while (here / f"hold-{context.job_id}").exists():
        time.sleep(0.01)
    with (here / "ended").open("a") as file:
        file.write(f"{context.job_id} {os.getpid()}\\n")
    return stack
"""


def write_gated(
    folder: Path, address: str, *, jobs: int, hold: tuple[str, ...] = (), **sections: Any
) -> Path:
    """A config of so many tiny jobs, n0, n1 and so on; the step of those in `hold` waits for `release`."""
    (folder / "many").mkdir(parents=True, exist_ok=True)
    for number in range(jobs):
        tifffile.imwrite(folder / "many" / f"{number}.tif", np.full((2, 5, 7), number, np.uint8))
    (folder / "gated.py").write_text(STEP)
    for job in hold:
        (folder / f"hold-{job}").touch()
    config = {
        "input": {"path": "many", "pattern": "{n}.tif"},
        "steps": [{"use": "gated:step", "declare": {"input": "numpy", "output": "numpy"}}],
        "output": {"path": "out", "name": "n{n}"},
        "cluster": {"kind": "address", "address": address},
    } | sections
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def release(folder: Path, job: str) -> None:
    """Let the step of a job go on."""
    (folder / f"hold-{job}").unlink()


def began(folder: Path, job: str) -> list[tuple[int, float]]:
    """(process, time) of each attempt of a job whose step has begun."""
    lines = (folder / "began").read_text().splitlines() if (folder / "began").exists() else []
    return [(int(pid), float(at)) for name, pid, at in map(str.split, lines) if name == job]


def ended(folder: Path, job: str) -> int:
    """How many attempts of a job have come to the end of its step."""
    lines = (folder / "ended").read_text().splitlines() if (folder / "ended").exists() else []
    return sum(line.split()[0] == job for line in lines)


def wait_until_begun(folder: Path, job: str, attempts: int = 1) -> int:
    """Wait for an attempt of a job; returns its process."""
    return wait_for(f"attempt {attempts} of {job}", lambda: began(folder, job)[attempts - 1 :])[0][0]


@dataclass
class GatedRun:
    """A run in a thread of this process. `statuses` are what `on_status` has been told, the last one last."""

    config: Path
    overwrite: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    statuses: list[RunStatus] = field(default_factory=list)
    _summary: "Future[RunSummary]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.folder = self.config.parent
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            config = load_config(self.config)
            summary = run(config, overwrite=self.overwrite, on_status=self.statuses.append, stop=self.stop)
            self._summary.set_result(summary)
        except BaseException as error:  # noqa: BLE001  raised again by `summary`
            self._summary.set_exception(error)

    def summary(self, timeout_s: float = 120.0) -> RunSummary:
        """How the run ended."""
        return self._summary.result(timeout_s)

    def wait_for_status(self, what: str, fits: Callable[[RunStatus], bool]) -> RunStatus:
        """Wait for a status that fits."""

        def look() -> RunStatus | None:
            if self._summary.done():
                self._summary.result()
            return next((status for status in reversed(self.statuses[-1:]) if fits(status)), None)

        try:
            found = wait_for(what, look)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last status was {self.statuses[-1:]}") from None
        assert found is not None
        return found

    def wait_for_reason(self, words: str) -> None:
        """Wait until a job waits, or the run remarks, for a reason with these words."""

        def says(status: RunStatus) -> bool:
            return any(words in text for text in (*status.remarks, *(job.reason for job in status.waiting)))

        self.wait_for_status(words, says)


def outcomes(summary: RunSummary, job: str) -> list[str]:
    """How each attempt of a job ended, by the journal."""
    journal = Journal.open_readonly(Path(summary.run_dir, "journal.sqlite"))
    try:
        return journal.outcomes(job)
    finally:
        journal.close()


def now() -> float:
    """Seconds since the epoch, as the steps note them."""
    return time.time()
