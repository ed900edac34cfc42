"""The journal of a run: every job, attempt, decision and outcome, in one SQLite file.

Only the driver writes it. It uses SQLite's rollback mode, since write-ahead logging doesn't work
between hosts on a network file system; whoever else wants to know reads status.json, or the journal
after the run.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from scheduler.execution.journal_changes import Changes
from scheduler.execution.task import OutputRecord

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE run (
    schema_version INTEGER NOT NULL, stackyard_version TEXT NOT NULL, host TEXT NOT NULL,
    started_at REAL NOT NULL, ended_at REAL, state TEXT NOT NULL, config TEXT NOT NULL,
    arrays TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE device (
    uuid TEXT PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, virtual INTEGER NOT NULL,
    total_bytes INTEGER NOT NULL, slots INTEGER NOT NULL
);
CREATE TABLE job (
    job_id TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', output TEXT,
    shape TEXT NOT NULL, dtype TEXT NOT NULL, added_at REAL NOT NULL, ended_at REAL,
    result_shape TEXT, result_dtype TEXT, outputs TEXT NOT NULL DEFAULT '[]'
);
CREATE TABLE attempt (
    job_id TEXT NOT NULL REFERENCES job, number INTEGER NOT NULL, device TEXT NOT NULL,
    plan TEXT NOT NULL, device_bytes INTEGER NOT NULL, host_bytes INTEGER NOT NULL,
    started_at REAL NOT NULL, ended_at REAL, outcome TEXT, detail TEXT,
    PRIMARY KEY (job_id, number)
);
CREATE TABLE decision (
    at REAL NOT NULL, job_id TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL, inputs TEXT NOT NULL
);
CREATE TABLE memory (
    at REAL NOT NULL, device TEXT NOT NULL, total_bytes INTEGER NOT NULL, used_bytes INTEGER,
    reserved_bytes INTEGER NOT NULL, idle_bytes INTEGER NOT NULL, external_bytes INTEGER NOT NULL
);
CREATE INDEX decision_of_job ON decision (job_id);
"""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it enters the journal: where its result will be, and the form of the stack that goes in."""

    job_id: str
    output: str | None
    shape: tuple[int, ...]
    dtype: str


# How long a reader, such as a backup, may keep the file to itself. Commits wait in a thread of their own.
BUSY_S = 60.0


@dataclass(frozen=True, slots=True)
class JournalJob:
    """One row of the job table: `state` is waiting, running, done, failed, cancelled or set_aside.

    `shape` and `dtype` are those of the stack that goes in; `result` has those of the one that came out, each
    the first one of several. `outputs` are the files that were written, tables included.
    """

    job_id: str
    state: str
    reason: str
    output: str | None
    shape: tuple[int, ...]
    dtype: str
    attempts: int
    result: tuple[tuple[int, ...], str] | None
    outputs: tuple[OutputRecord, ...] = ()


class Journal:
    """Writes and reads one run's journal. Times are seconds since the epoch.

    Notes
    -----
    Not thread-safe, but one thread may hand it on to another: the driver's loop is the one writer. Changes
    are kept until `commit` makes them durable, or until something is read; the loop sees to that once for
    each batch of events, in a thread of its own (`take`, `commit_changes`), for a commit waits for the disk.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._changes = Changes()

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        version: str,
        host: str,
        started_at: float,
        config: Mapping[str, Any],
        jobs: Iterable[NewJob] = (),
        arrays: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """Make a new journal with all its jobs; it appears whole, under a path where there is none yet.

        `arrays` has the digest of each file from which steps take an array, by path.
        """
        if path.exists():
            raise FileExistsError(f"{path} exists: one run folder holds one run")
        partial = path.with_name(f".{path.name}.part")
        journal = cls(sqlite3.connect(partial))
        journal._connection.executescript(SCHEMA)
        journal._connection.execute(
            "INSERT INTO run VALUES (?, ?, ?, ?, NULL, 'running', ?, ?)",
            (SCHEMA_VERSION, version, host, started_at, json.dumps(config), json.dumps(dict(arrays))),
        )
        for job in jobs:
            journal.add_job(job.job_id, output=job.output, shape=job.shape, dtype=job.dtype, at=started_at)
        journal.commit()
        journal.close()
        os.replace(partial, path)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the journal of a run that goes on; sqlite3.OperationalError if there is none."""
        # It is made and closed in the caller's thread, and between these written in the driver's.
        uri = f"{path.absolute().as_uri()}?mode=rw"
        return cls(sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=BUSY_S))

    @classmethod
    def open_readonly(cls, path: Path) -> Self:
        """Open an existing journal for reading.

        The file is opened for writing where that is allowed: a driver that was killed in the middle of a
        commit has left a transaction that the next one to look must roll back.
        """
        journal = cls.open(path)
        journal._connection.execute("PRAGMA query_only = ON")
        return journal

    def restart(self) -> None:
        """The run goes on."""
        self._connection.execute("UPDATE run SET state = 'running', ended_at = NULL")

    def add_device(
        self, uuid: str, name: str, kind: str, *, virtual: bool, total_bytes: int, slots: int
    ) -> None:
        """Record a device that the run may use."""
        self._changes.devices.append((uuid, name, kind, virtual, total_bytes, slots))

    def add_job(
        self, job_id: str, *, output: str | None, shape: tuple[int, ...], dtype: str, at: float
    ) -> None:
        """Record one more job before its first decision."""
        self._changes.jobs.append((job_id, output, json.dumps(shape), dtype, at))

    def start_attempt(
        self,
        job_id: str,
        number: int,
        *,
        device: str,
        plan: Mapping[str, Any],
        device_bytes: int,
        host_bytes: int,
        at: float,
    ) -> None:
        """Record that an attempt was admitted to `device`, with the bytes reserved for it."""
        self._changes.begin_attempt(
            job_id,
            number,
            device=device,
            plan=plan,
            device_bytes=device_bytes,
            host_bytes=host_bytes,
            started_at=at,
        )
        self._changes.of_job(job_id, state="running")

    def end_attempt(
        self, job_id: str, number: int, *, outcome: str, detail: Mapping[str, Any], at: float
    ) -> None:
        """Record how an attempt ended; the job waits again until `end_job` says otherwise."""
        self._changes.end_attempt(job_id, number, outcome=outcome, detail=detail, ended_at=at)
        self._changes.of_job(job_id, state="waiting")

    def end_job(self, job_id: str, *, state: str, reason: str, at: float) -> None:
        """Record a job's final state and its reason."""
        self._changes.of_job(job_id, state=state, reason=reason, ended_at=at)

    def set_result(
        self, job_id: str, *, shape: tuple[int, ...], dtype: str, outputs: Sequence[OutputRecord] = ()
    ) -> None:
        """Record the form of a job's (first) result, and its outputs, by which `resume` knows them again."""
        written = json.dumps([asdict(output) for output in outputs])
        self._changes.of_job(job_id, result_shape=json.dumps(shape), result_dtype=dtype, outputs=written)

    def wait_again(self, job_id: str) -> None:
        """A job of an earlier driver is to be done anew; what it has left is forgotten."""
        self._changes.of_job(
            job_id,
            state="waiting",
            reason="",
            ended_at=None,
            result_shape=None,
            result_dtype=None,
            outputs="[]",
        )

    def add_decision(
        self, job_id: str, *, verdict: str, reason: str, inputs: Mapping[str, Any], at: float
    ) -> None:
        """Record what the dispatcher decided about a job, in words and with the figures it used."""
        self._changes.decisions.append((at, job_id, verdict, reason, inputs))

    def add_memory(
        self,
        device: str,
        *,
        total_bytes: int,
        used_bytes: int | None,
        reserved_bytes: int,
        idle_bytes: int,
        external_bytes: int,
        at: float,
    ) -> None:
        """Record one reading of a device's memory; `used_bytes` is None where the probe had no answer."""
        self._changes.memory.append(
            (at, device, total_bytes, used_bytes, reserved_bytes, idle_bytes, external_bytes)
        )

    def end_run(self, *, state: str, at: float) -> None:
        """Record the run's final state: done, failed or interrupted."""
        self._write()
        self._connection.execute("UPDATE run SET state = ?, ended_at = ?", (state, at))
        self.commit()

    def commit(self) -> None:
        """Make everything since the last commit durable."""
        self.commit_changes(self.take())

    def take(self) -> Changes:
        """What has happened since the last commit, for `commit_changes`."""
        changes, self._changes = self._changes, Changes()
        return changes

    def commit_changes(self, changes: Changes) -> None:
        """Make `changes` durable; meanwhile others may be added, and nothing else may be called."""
        if changes:
            changes.write(self._connection)
        self._connection.commit()

    def roll_back(self) -> None:
        """Forget everything since the last commit: it could not be written."""
        self._changes = Changes()
        self._connection.rollback()

    def _write(self) -> None:
        changes = self.take()
        if changes:  # even a write of nothing begins a transaction, which keeps others from theirs
            changes.write(self._connection)

    def close(self) -> None:
        """Close the file; what was not committed is lost."""
        self._connection.close()

    def config(self) -> dict[str, Any]:
        """The run's configuration, as it was given."""
        (text,) = self._connection.execute("SELECT config FROM run").fetchone()
        config: dict[str, Any] = json.loads(text)
        return config

    def arrays(self) -> dict[str, str]:
        """The digest of each file from which steps take an array, by path."""
        (text,) = self._connection.execute("SELECT arrays FROM run").fetchone()
        arrays: dict[str, str] = json.loads(text)
        return arrays

    def jobs(self) -> Iterator[JournalJob]:
        """Every job with its last state, in the order in which they were added."""
        self._write()
        rows = self._connection.execute(
            "SELECT job_id, state, reason, output, shape, dtype, result_shape, result_dtype, outputs,"
            " (SELECT COALESCE(MAX(number), 0) FROM attempt WHERE attempt.job_id = job.job_id)"
            " FROM job ORDER BY rowid"
        )
        for (
            job_id,
            state,
            reason,
            output,
            shape,
            dtype,
            result_shape,
            result_dtype,
            outputs,
            attempts,
        ) in rows:
            result = None if result_shape is None else (tuple(json.loads(result_shape)), result_dtype)
            written = tuple(map(_output, json.loads(outputs)))
            form = tuple(json.loads(shape)), dtype
            yield JournalJob(job_id, state, reason, output, *form, attempts, result, written)

    def outcomes(self, job_id: str) -> list[str]:
        """How each attempt at a job ended, in order; "" for one that hasn't."""
        self._write()
        rows = self._connection.execute(
            "SELECT COALESCE(outcome, '') FROM attempt WHERE job_id = ? ORDER BY number", (job_id,)
        )
        return [outcome for (outcome,) in rows]

    def plans(self) -> dict[str, dict[str, Any]]:
        """By job, how each that is done was done: the plan of its last attempt."""
        self._write()
        rows = self._connection.execute(
            "SELECT job_id, plan FROM job JOIN attempt USING (job_id) WHERE job.state = 'done' AND number ="
            " (SELECT MAX(number) FROM attempt AS last WHERE last.job_id = job.job_id)"
        )
        return {job_id: json.loads(plan) for job_id, plan in rows}

    def done_by_device(self) -> dict[str, int]:
        """How many jobs each device, by uuid, has done; a job done twice counts where it was done last."""
        self._write()
        return dict(
            self._connection.execute(
                "SELECT device, COUNT(*) FROM job JOIN attempt USING (job_id)"
                " WHERE job.state = 'done' AND outcome = 'done' AND number ="
                " (SELECT MAX(number) FROM attempt AS last WHERE last.job_id = job.job_id) GROUP BY device"
            )
        )

    def decisions(self, job_id: str) -> list[tuple[str, str]]:
        """(verdict, reason) of every decision about a job, oldest first."""
        self._write()
        return self._connection.execute(
            "SELECT verdict, reason FROM decision WHERE job_id = ? ORDER BY rowid", (job_id,)
        ).fetchall()


def _output(record: Mapping[str, Any]) -> OutputRecord:
    return OutputRecord(**{**record, "shape": tuple(record["shape"])})
