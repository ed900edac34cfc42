"""What the next commit brings into the journal: of each row its last state, so that each is written once."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

_ATTEMPT = ("device", "plan", "device_bytes", "host_bytes", "started_at", "outcome", "detail", "ended_at")


class Changes:
    """Rows that are new, and columns of others that have changed, since the last commit.

    A job passes through several states between two commits: only the last one matters, and an attempt that
    began and ended is one row. Keeping them costs a list or two; SQL is for `write`.
    """

    def __init__(self) -> None:
        self.devices: list[tuple[Any, ...]] = []
        self.jobs: list[tuple[Any, ...]] = []
        self.decisions: list[tuple[float, str, str, str, Mapping[str, Any]]] = []
        self.memory: list[tuple[Any, ...]] = []
        self._of_jobs: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        self._begun: dict[tuple[str, int], dict[str, Any]] = {}
        self._of_attempts: dict[tuple[str, int], dict[str, Any]] = {}

    def __bool__(self) -> bool:
        """False while nothing has happened."""
        return any(vars(self).values())

    def of_job(self, job_id: str, **columns: Any) -> None:
        """Columns of a job that has a row."""
        self._of_jobs[job_id].update(columns)

    def begin_attempt(self, job_id: str, number: int, **columns: Any) -> None:
        """An attempt's new row."""
        self._begun[job_id, number] = columns

    def end_attempt(self, job_id: str, number: int, **columns: Any) -> None:
        """The columns that tell of an attempt's end."""
        begun = self._begun.get((job_id, number))
        if begun is not None:
            begun.update(columns)
        else:
            self._of_attempts[job_id, number] = columns

    def write(self, connection: sqlite3.Connection) -> None:
        """Bring all of it into the open transaction."""
        connection.executemany("INSERT OR REPLACE INTO device VALUES (?, ?, ?, ?, ?, ?)", self.devices)
        connection.executemany(
            "INSERT INTO job (job_id, state, output, shape, dtype, added_at)"
            " VALUES (?, 'waiting', ?, ?, ?, ?)",
            self.jobs,
        )
        alike: defaultdict[tuple[str, ...], list[tuple[Any, ...]]] = defaultdict(list)
        for job_id, columns in self._of_jobs.items():
            alike[tuple(columns)].append((*columns.values(), job_id))
        for names, rows in alike.items():
            assigned = ", ".join(f"{name} = ?" for name in names)
            connection.executemany(f"UPDATE job SET {assigned} WHERE job_id = ?", rows)
        connection.executemany(
            f"INSERT INTO attempt (job_id, number, {', '.join(_ATTEMPT)})"
            f" VALUES (?, ?{', ?' * len(_ATTEMPT)})",
            [(*key, *map(_as_text(columns).get, _ATTEMPT)) for key, columns in self._begun.items()],
        )
        connection.executemany(
            "UPDATE attempt SET outcome = ?, detail = ?, ended_at = ? WHERE job_id = ? AND number = ?",
            [
                (columns["outcome"], json.dumps(columns["detail"]), columns["ended_at"], *key)
                for key, columns in self._of_attempts.items()
            ],
        )
        connection.executemany(
            "INSERT INTO decision VALUES (?, ?, ?, ?, ?)",
            [(*row, json.dumps(dict(inputs))) for *row, inputs in self.decisions],
        )
        connection.executemany("INSERT INTO memory VALUES (?, ?, ?, ?, ?, ?, ?)", self.memory)


def _as_text(columns: Mapping[str, Any]) -> dict[str, Any]:
    """An attempt's columns with plan and detail as JSON."""
    return {
        name: json.dumps(value) if name in ("plan", "detail") else value for name, value in columns.items()
    }
