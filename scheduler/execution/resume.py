"""`resume(run_dir)`: finish a run that was interrupted, or whose driver died, doing only what isn't done."""

import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from scheduler.config.model import RunConfig
from scheduler.core.policy import Pin
from scheduler.execution.cluster import check_main
from scheduler.execution.events import Event
from scheduler.execution.journal import Journal, JournalJob
from scheduler.execution.prepare import PreparedRun, look, write_plates
from scheduler.execution.record import JOURNAL, JournalRecord
from scheduler.execution.run import carry_out
from scheduler.execution.run_lock import run_lock
from scheduler.execution.status import RunStatus, RunSummary
from scheduler.execution.task import OutputRecord
from scheduler.execution.worker_plugin import read_worker_pids
from scheduler.images.errors import InputError
from scheduler.images.outputs import check_output_folder, remove_partials, verify_stack
from scheduler.images.tables import table_digest


class ResumeError(ValueError):
    """The folder holds no run that can be resumed."""


def resume(
    run_dir: Path | str,
    *,
    on_status: Callable[[RunStatus], None] | None = None,
    stop: threading.Event | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunSummary:
    """Finish the run in `run_dir` with the config that it was started with.

    Jobs that failed are tried again. A job counts as done if the journal says so, each of its outputs has the
    shape and dtype that were written and is this run's own, and its tables are as they were written; the
    others are done anew, replacing what is there.
    The summary counts all jobs of the run; its seconds are this part's.

    Raises
    ------
    ResumeError
        There is no run in the folder, or its journal can't be read.
    InputError, OutputError, StepError, DevicesError, ClusterError
        As `run`; and an input of a job that isn't done is gone, or an array from a file is another one.
    """
    check_main()
    run_dir = Path(run_dir).absolute()
    config, rows = _read(run_dir)
    with run_lock(config, run_dir.name):
        # Read again: until now another driver may have been at work.
        config, rows = _read(run_dir)
        whole = look(config)
        _refuse_other_arrays(whole, run_dir)
        prepared = _unfinished(whole, rows, run_dir.name)
        check_output_folder(config.output.path)
        remove_partials(prepared.folders(), read_worker_pids(run_dir))

        def go_on() -> JournalRecord:
            if prepared.jobs:
                write_plates(whole, overwrite=True, jobs=prepared.jobs)
            return JournalRecord.go_on(run_dir, [job.job_id for job in prepared.jobs])

        if not prepared.jobs:
            return go_on().end("done", (), interrupted=False)
        return carry_out(
            prepared,
            run_dir,
            go_on,
            overwrite=True,
            on_status=on_status,
            stop=stop,
            pins=_pins(whole, run_dir) if config.memory.reproducible else None,
            on_event=on_event,
        )


def _read(run_dir: Path) -> tuple[RunConfig, dict[str, JournalJob]]:
    try:
        journal = Journal.open_readonly(run_dir / JOURNAL)
        try:
            config = RunConfig.model_validate(journal.config())
            return config, {job.job_id: job for job in journal.jobs()}
        finally:
            journal.close()
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise ResumeError(f"no run that can be resumed in {run_dir}: {error}") from error


def _refuse_other_arrays(prepared: PreparedRun, run_dir: Path) -> None:
    """InputError if a file with an array for a step isn't what it was: results would be of two kinds."""
    journal = Journal.open_readonly(run_dir / JOURNAL)
    try:
        before = journal.arrays()
    finally:
        journal.close()
    for file in prepared.chain.array_files:
        if before.get(file.path, file.digest) != file.digest:
            raise InputError(
                f"{file.path} has changed since the run began, and what is done was made with what it held: "
                "put that back, or start a new run"
            )


def _pins(prepared: PreparedRun, run_dir: Path) -> dict[str, Pin]:
    """By kind of job, how those that are done were done: the rest of a reproducible run is done so too."""
    journal = Journal.open_readonly(run_dir / JOURNAL)
    try:
        plans = journal.plans()
    finally:
        journal.close()
    requests = [prepared.request(job, run_id=run_dir.name, overwrite=True) for job in prepared.jobs]
    return {
        request.kind: Pin(plans[request.job_id]["name"], plans[request.job_id].get("model", ""))
        for request in requests
        if request.job_id in plans
    }


def _unfinished(prepared: PreparedRun, rows: Mapping[str, JournalJob], run_id: str) -> PreparedRun:
    """The jobs of the run that aren't done, as the input shows them now."""
    jobs = {job.job_id: job for job in prepared.jobs}
    left = {job_id: row for job_id, row in rows.items() if not is_done(row, run_id)}
    gone = [job_id for job_id in left if job_id not in jobs]
    if gone:
        raise InputError(
            f"the input of {len(gone)} unfinished jobs isn't in {prepared.config.input.path} any more: "
            f"{', '.join(gone[:3])}{' …' * (len(gone) > 3)}"
        )
    return replace(prepared, jobs=tuple(jobs[job_id] for job_id in left))


def is_done(row: JournalJob, run_id: str) -> bool:
    """Whether the journal calls the job done, and all that it has written in this run is there.

    Another run may have put results of another kind in their place.
    """
    if row.state != "done" or not row.outputs:
        return False
    made_by = {"run": run_id, "job": row.job_id}
    return all(_is_there(output, made_by) for output in row.outputs)


def _is_there(output: OutputRecord, made_by: Mapping[str, str]) -> bool:
    if output.is_table:
        return _is_table(output)
    z, y, x = output.shape
    return verify_stack(output.path, (z, y, x), output.dtype, channel=output.channel, provenance=made_by)


def _is_table(output: OutputRecord) -> bool:
    try:
        return table_digest(output.path) == output.digest
    except OSError:
        return False
