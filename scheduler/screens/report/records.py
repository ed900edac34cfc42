"""What the journal of a run holds, as records to draw. Times are seconds since the run began."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pools.stats import PoolStats
from scheduler.screens.run_folder import RunFolderError


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device of the run; bytes."""

    uuid: str
    name: str
    kind: str
    virtual: bool
    total_bytes: int
    slots: int


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job, how it ended, and where its result is, the first one of several; `stacks` has all."""

    job: str
    state: str
    reason: str
    output: str | None
    shape: tuple[int, ...]
    dtype: str
    added_s: float
    ended_s: float | None
    stacks: tuple["ResultRow", ...] = ()


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A stack that a job has written: its name, and its channel where several jobs share an image."""

    name: str
    path: str
    channel: int | None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt. `reserved_bytes` and `peak_bytes` are of its device's memory; the peak None if unknown."""

    job: str
    number: int
    device: str
    plan: str
    conversions: tuple[str, ...]
    start_s: float
    end_s: float | None
    outcome: str
    reserved_bytes: int
    peak_bytes: int | None
    times: Mapping[str, float]
    worker_pid: int = 0
    pools: Mapping[str, PoolStats] = field(default_factory=dict)

    def work(self, wall_s: float) -> tuple[float, float]:
        """When it began and ended to read, compute and write.

        Before that it may have stood in its worker's queue. One that says nothing of its times counts from
        when it was submitted, and one that hasn't ended goes on until `wall_s`.
        """
        end_s = wall_s if self.end_s is None else self.end_s
        return max(self.start_s, end_s - sum(self.times.values())) if self.times else self.start_s, end_s


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """Why a job went where it went."""

    at_s: float
    job: str
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """One reading of a device; `used_bytes` None where the probe had no answer."""

    at_s: float
    device: str
    used_bytes: int | None
    reserved_bytes: int
    idle_bytes: int
    external_bytes: int


@dataclass(frozen=True, slots=True)
class RunRows:
    """Everything about one run; `started_at` in seconds since the epoch."""

    version: str
    host: str
    state: str
    started_at: float
    wall_s: float
    config: Mapping[str, Any]
    devices: tuple[DeviceRow, ...]
    jobs: tuple[JobRow, ...]
    attempts: tuple[AttemptRow, ...]
    decisions: tuple[DecisionRow, ...]
    memory: tuple[MemoryRow, ...]

    def pools(self) -> dict[tuple[str, str], PoolStats]:
        """What pools did, by device and pool, all worker processes added up, each as it told last."""
        told: dict[tuple[str, int, str], PoolStats] = {}
        for attempt in sorted(self.attempts, key=lambda row: row.end_s or 0.0):
            told |= {
                (attempt.device, attempt.worker_pid, name): stats for name, stats in attempt.pools.items()
            }
        found: dict[tuple[str, str], PoolStats] = {}
        for (device, _, name), stats in told.items():
            found[device, name] = found.get((device, name), PoolStats()) + stats
        return found

    def device(self, uuid: str) -> DeviceRow:
        """The device with that uuid."""
        return next(device for device in self.devices if device.uuid == uuid)


def read_run(run_dir: Path) -> RunRows:
    """Read the journal in a run's folder, of a run that has ended or goes on.

    Raises
    ------
    RunFolderError
        It is no journal, or one of another version.
    """
    path = run_dir / "journal.sqlite"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return _read(connection)
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{path} can't be read: {error}") from error


def _read(connection: sqlite3.Connection) -> RunRows:
    run = connection.execute("SELECT * FROM run").fetchone()
    if run is None:
        raise ValueError("it holds no run")
    began = run["started_at"]

    def since(at: float | None) -> float | None:
        return None if at is None else at - began

    devices = tuple(
        DeviceRow(
            row["uuid"], row["name"], row["kind"], bool(row["virtual"]), row["total_bytes"], row["slots"]
        )
        for row in connection.execute("SELECT * FROM device ORDER BY rowid")
    )
    on_cpu = {device.uuid for device in devices if device.kind == "cpu"}
    attempts = tuple(
        _attempt(row, began, on_host=row["device"] in on_cpu)
        for row in connection.execute("SELECT * FROM attempt ORDER BY started_at")
    )
    jobs = tuple(
        JobRow(
            row["job_id"],
            row["state"],
            row["reason"],
            row["output"],
            tuple(json.loads(row["shape"])),
            row["dtype"],
            row["added_at"] - began,
            since(row["ended_at"]),
            tuple(
                ResultRow(each["name"], each["path"], each["channel"])
                for each in json.loads(row["outputs"])
                if each["dtype"]  # a table has none
            ),
        )
        for row in connection.execute("SELECT * FROM job ORDER BY rowid")
    )
    decisions = tuple(
        DecisionRow(row["at"] - began, row["job_id"], row["verdict"], row["reason"])
        for row in connection.execute("SELECT * FROM decision ORDER BY rowid")
    )
    memory = tuple(
        MemoryRow(
            row["at"] - began,
            row["device"],
            row["used_bytes"],
            row["reserved_bytes"],
            row["idle_bytes"],
            row["external_bytes"],
        )
        for row in connection.execute("SELECT * FROM memory ORDER BY at")
    )
    last = max([0.0, *(row.at_s for row in memory), *(row.at_s for row in decisions)])
    wall_s = last if run["ended_at"] is None else run["ended_at"] - began
    config = json.loads(run["config"])
    attempts = tuple(_without_end(attempts, wall_s, going_on=run["ended_at"] is None))
    head = run["stackyard_version"], run["host"], run["state"], began, wall_s, config
    return RunRows(*head, devices, jobs, attempts, decisions, memory)


def _without_end(attempts: Sequence[AttemptRow], wall_s: float, *, going_on: bool) -> Iterator[AttemptRow]:
    """Attempts whose driver died under them end where the job's next one begins, or with the run."""
    next_start: dict[str, float] = {}
    found = []
    for attempt in reversed(attempts):
        later = next_start.get(attempt.job)
        next_start[attempt.job] = attempt.start_s
        if attempt.end_s is None and not (going_on and later is None):
            end_s = wall_s if later is None else later
            attempt = replace(attempt, end_s=end_s, outcome="driver_died")
        found.append(attempt)
    return reversed(found)


def _attempt(row: sqlite3.Row, began: float, *, on_host: bool) -> AttemptRow:
    plan = json.loads(row["plan"])
    detail = json.loads(row["detail"]) if row["detail"] else {}
    return AttemptRow(
        job=row["job_id"],
        number=row["number"],
        device=row["device"],
        plan=plan["name"],
        conversions=tuple(plan.get("conversions", ())),
        start_s=row["started_at"] - began,
        end_s=None if row["ended_at"] is None else row["ended_at"] - began,
        outcome=row["outcome"] or "running",
        reserved_bytes=row["host_bytes"] if on_host else row["device_bytes"],
        peak_bytes=detail.get("host_peak_bytes" if on_host else "device_peak_bytes"),
        times=detail.get("times", {}),
        worker_pid=detail.get("worker_pid", 0),
        pools={name: PoolStats(**figures) for name, figures in detail.get("pools", {}).items()},
    )
