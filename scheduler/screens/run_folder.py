"""A run's folder, read by whoever wants to know how it stands: while it runs, or after it."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scheduler.config import RunConfig
from scheduler.execution.journal import Journal
from scheduler.execution.slurm_driver import JOB_FILE, DriverJob, read_driver_job
from scheduler.execution.status import DeviceStatus, JobFailure, RunStatus, WaitingJob

CANCEL_FILE = "cancel"
"""A file of this name in a run's folder asks its driver to stop."""


class RunFolderError(ValueError):
    """There is no run in a folder, or what is there can't be read."""


def find_run(path: Path) -> Path:
    """The run folder that `path` is, or the newest run under it where it is an output folder.

    Raises
    ------
    RunFolderError
        Neither; it names where a run was looked for.
    """
    if _is_run(path):
        return path
    for folder in (path / ".stackyard", path):
        runs = sorted((run for run in folder.glob("*") if _is_run(run)), key=lambda run: run.name)
        if runs:
            # A run that was cancelled before it began is nobody's newest.
            begun = [run for run in runs if not ((run / CANCEL_FILE).exists() and driver_waited_for(run))]
            return (begun or runs)[-1]
    raise RunFolderError(
        f"no run in {path}: neither a run's folder, nor an output folder with .stackyard in it"
    )


def driver_waited_for(run_dir: Path) -> DriverJob | None:
    """The Slurm job of a driver that hasn't begun the run yet; None if it has, or is no Slurm job.

    Raises
    ------
    RunFolderError
        The file that names the job can't be read.
    """
    if (run_dir / "status.json").exists():
        return None
    try:
        return read_driver_job(run_dir)
    except ValueError as error:
        raise RunFolderError(str(error)) from error


def read_status(run_dir: Path) -> RunStatus:
    """The last state that the run's driver wrote; it is renamed into place, so it is always whole.

    Raises
    ------
    RunFolderError
        The run hasn't written a state yet, or another version has written one that this can't read.
    """
    path = run_dir / "status.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return RunStatus(
            **{
                **record,
                "devices": tuple(DeviceStatus(**_tuples(device)) for device in record["devices"]),
                "remarks": tuple(record.get("remarks", ())),
                "waiting": tuple(WaitingJob(**job) for job in record["waiting"]),
                "stuck": tuple(JobFailure(**job) for job in record.get("stuck", ())),
            }
        )
    except FileNotFoundError:
        raise RunFolderError(f"the run in {run_dir} has no status yet") from None
    except (ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{path} can't be read: {error}") from error


def is_going_on(status: RunStatus) -> bool:
    """Whether the run hadn't ended when its driver wrote this."""
    return status.state in ("running", "stopping")


def read_failures(run_dir: Path) -> tuple[JobFailure, ...]:
    """The jobs that have failed so far, in the order in which they were added."""
    with _journal(run_dir) as journal:
        return tuple(
            JobFailure(job.job_id, job.reason)
            for job in journal.jobs()
            if job.state not in ("waiting", "running", "done")
        )


def read_config(run_dir: Path) -> RunConfig:
    """The config that the run was started with."""
    with _journal(run_dir) as journal:
        return RunConfig.model_validate(journal.config())


@contextmanager
def _journal(run_dir: Path) -> Iterator[Journal]:
    path = run_dir / "journal.sqlite"
    if not path.exists() and (job := driver_waited_for(run_dir)):
        raise RunFolderError(f"the run in {run_dir} hasn't begun: its driver is Slurm job {job.job_id}")
    try:
        journal = Journal.open_readonly(path)
        try:
            yield journal
        finally:
            journal.close()
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{path} can't be read: {error}") from error


def _is_run(path: Path) -> bool:
    return (path / "journal.sqlite").is_file() or (path / JOB_FILE).is_file()


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
