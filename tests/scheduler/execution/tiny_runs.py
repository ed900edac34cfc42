"""Runs of tiny stacks through one step of a test's own, and what their journals say."""

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from scheduler.config import RunConfig
from scheduler.execution.status import RunSummary

MakeConfig = Callable[..., RunConfig]


def stacks(folder: Path, count: int) -> Path:
    """So many stacks of 2 x 5 x 7 voxels, each a file of its own: n00, n01, … hold their numbers."""
    folder.mkdir()
    for number in range(count):
        tifffile.imwrite(folder / f"n{number:02}.tif", np.full((2, 5, 7), number, np.uint8))
    return folder


def step_config(
    make_config: MakeConfig, folder: Path, module: str, memory_type: str = "numpy", **sections: Any
) -> RunConfig:
    """A config whose only step is the function `step` of a module beside it; jobs are called name-n00, …"""
    return make_config(
        input={"path": str(folder), "pattern": "{name}.tif"},
        steps=[{"use": f"{module}:step", "declare": {"input": memory_type}}],
        output={"path": "out", "name": "{name}"},
        **sections,
    )


@dataclass(frozen=True, slots=True)
class Tried:
    """One attempt: where, when in seconds since the epoch, by which plan, and how it ended."""

    job: str
    number: int
    device: str
    began: float
    ended: float
    outcome: str
    plan: Mapping[str, Any]
    detail: Mapping[str, Any]


def tried(summary: RunSummary, job: str = "") -> list[Tried]:
    """Every attempt of a run, or at one job, in the order in which they were submitted."""
    with closing(sqlite3.connect(Path(summary.run_dir, "journal.sqlite"))) as journal:
        rows = journal.execute(
            "SELECT job_id, number, device.name, started_at, ended_at, outcome, plan, detail FROM attempt"
            " JOIN device ON attempt.device = device.uuid WHERE ? IN ('', job_id) ORDER BY attempt.rowid",
            (job,),
        ).fetchall()
    return [
        Tried(*row, plan=json.loads(plan), detail=json.loads(detail or "{}")) for *row, plan, detail in rows
    ]


def outcomes(summary: RunSummary) -> dict[str, tuple[str, ...]]:
    """How the attempts at each job ended, in order."""
    found: dict[str, tuple[str, ...]] = {}
    for each in tried(summary):
        found[each.job] = (*found.get(each.job, ()), each.outcome)
    return found


def decided(summary: RunSummary, job: str) -> str:
    """The decisions about a job, one on each line: the verdict, and the reason in words."""
    with closing(sqlite3.connect(Path(summary.run_dir, "journal.sqlite"))) as journal:
        rows = journal.execute("SELECT verdict, reason FROM decision WHERE job_id = ? ORDER BY rowid", (job,))
        return "\n".join(f"{verdict}: {reason}" for verdict, reason in rows)
