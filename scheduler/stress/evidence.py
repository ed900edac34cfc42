"""What was seen of a stress run from outside, and what the run itself says; nothing is judged here."""

import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from scheduler.host.table_file import default_path
from scheduler.stress.diary import StepRun
from scheduler.stress.kills import Kill
from scheduler.stress.watch import WatchReport


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job's future said that it ended, and what is wrong with its result, "" if nothing is."""

    outcome: str
    reason: str = ""
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A job in the journal: its state, and the outcome of each attempt."""

    state: str
    outcomes: tuple[str, ...] = ()


@dataclass(slots=True)
class Evidence:
    """What is known of a stress run after its end. Jobs are named; bytes and seconds.

    Attributes
    ----------
    ends
        By job, one for each time that it was reported as ended.
    missing, changed
        Jobs whose result wasn't there, or became another one, after they were reported as done.
    replaced
        Jobs whose result was put in place anew before they were reported as done.
    step_runs
        What the steps wrote down.
    left
        Promises and charges, in words, that were still there when all jobs had ended.
    given_up
        Why the run was ended before all of its jobs had; "" if it wasn't.
    """

    ends: dict[str, list[JobEnd]] = field(default_factory=lambda: defaultdict(list))
    journal: Mapping[str, JournalEntry] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)
    step_runs: list[StepRun] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    watch: WatchReport = field(default_factory=WatchReport)
    probe_faults: int = 0
    wall_s: float = 0.0
    interrupted: bool = False
    given_up: str = ""


def read_journal(path: Path) -> dict[str, JournalEntry]:
    """Every job of a run's journal."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        states = dict(connection.execute("SELECT job_id, state FROM job").fetchall())
        outcomes: dict[str, list[str]] = {job: [] for job in states}
        for job, outcome in connection.execute(
            "SELECT job_id, COALESCE(outcome, '') FROM attempt ORDER BY job_id, number"
        ):
            outcomes[job].append(outcome)
    return {job: JournalEntry(state, tuple(outcomes[job])) for job, state in states.items()}


def rows_left(run: str, path: Path | None = None) -> list[str]:
    """Promises of a run as the table's file has them, without asking anybody to reap those of the dead."""
    path = path if path is not None else default_path()
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT device, pid, nbytes, job FROM reservation WHERE run = ?", (run,)
        ).fetchall()
    return [f"{nbytes} bytes of {device} for {job} by process {pid}" for device, pid, nbytes, job in rows]
