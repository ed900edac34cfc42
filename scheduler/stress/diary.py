"""What the steps of a stress test write down about themselves, in files that outlive a killed process."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "stress"


class Diary:
    """Where this process's steps write: one line an event, appended by one write each.

    What was written stays when the process is killed: it is the kernel's by then.
    """

    def __init__(self, run_dir: Path) -> None:
        folder = run_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"steps-{os.getpid()}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, event: str, run: str, job: str, **figures: int) -> None:
        """Append one event of the step run `run`, which is unique in this process. Usable from any thread."""
        line = json.dumps({"event": event, "run": run, "job": job, **figures}) + "\n"
        os.write(self._descriptor, line.encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


@dataclass(slots=True)
class StepRun:
    """One run of the stress step: what it charged to its device, and what it really wrote of that, in bytes.

    `ended` is False where its process died or an error came in between.
    """

    job: str
    pid: int
    charged_bytes: int = 0
    touched_bytes: int = 0
    ended: bool = False


def read_diaries(run_dir: Path) -> list[StepRun]:
    """Every run of the stress step in any process; a line that a kill cut short is left out."""
    runs: dict[tuple[int, str], StepRun] = {}
    for path in sorted((run_dir / FOLDER).glob("steps-*.jsonl")):
        pid = int(path.stem.removeprefix("steps-"))
        for line in _lines(path):
            run = runs.setdefault((pid, line["run"]), StepRun(line["job"], pid))
            run.charged_bytes += line.get("charged", 0)
            run.touched_bytes += line.get("touched", 0)
            run.ended |= line["event"] == "ended"
    return list(runs.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_bytes().split(b"\n")[:-1]:
        line: dict[str, Any] = json.loads(text)
        yield line
