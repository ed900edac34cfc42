"""`stackyard status`: how a run stands, from any shell that sees its folder."""

import time
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from scheduler.execution.slurm_driver import DriverJob, queued
from scheduler.screens.consoles import output_console
from scheduler.screens.exits import errors_as_messages, print_json
from scheduler.screens.progress import draw_status, status_line
from scheduler.screens.run_folder import (
    CANCEL_FILE,
    RunFolderError,
    driver_waited_for,
    find_run,
    is_going_on,
    read_failures,
    read_status,
)
from scheduler.screens.summary import draw_failures
from scheduler.screens.words import duration_text, path_text, printable

# The driver writes once a second; on a busy network folder that may take a while to be seen.
SILENT_AFTER_S = 30.0


def status_command(path: Path, *, as_json: bool, debug: bool) -> None:
    """Show the last state of the run at `path`, and once it has ended what failed."""
    with errors_as_messages(debug=debug, unusable=(RunFolderError,)):
        run_dir = find_run(path)
        job = driver_waited_for(run_dir)
        if job is not None:
            _show_queued(run_dir, job, as_json=as_json)
            return
        status = read_status(run_dir)
        going_on = is_going_on(status)
        # While the driver writes its journal nobody else opens it.
        failures = () if going_on else read_failures(run_dir)
        age_s = max(0.0, time.time() - (run_dir / "status.json").stat().st_mtime)
    if as_json:
        print_json({**asdict(status), "age_s": age_s, "failures": [asdict(failure) for failure in failures]})
        return
    console = output_console()
    console.print(Text.assemble(("Run ", "bold"), path_text(run_dir)), soft_wrap=True)
    if console.is_terminal:
        console.print(draw_status(status, ascii_only=console.options.ascii_only))
    else:
        print(*map(printable, status.remarks), status_line(status), sep="\n")
    if failures:
        console.print(draw_failures(failures), soft_wrap=not console.is_terminal)
    if going_on and age_s > SILENT_AFTER_S:
        said = f"No news for {duration_text(age_s)}: the run's driver may have ended without a word."
        console.print(Text(said, style="yellow"))


def _show_queued(run_dir: Path, job: DriverJob, *, as_json: bool) -> None:
    """Say how the Slurm job of a driver stands that hasn't begun its run."""
    found = queued(job)
    state = "cancelled" if found.state == "ended" and (run_dir / CANCEL_FILE).exists() else found.state
    if as_json:
        record = {"run_dir": str(run_dir), "state": state, "reason": found.reason}
        print_json({**record, "slurm_job": job.job_id, "log": job.log})
        return
    why = f" ({printable(found.reason)})" if found.reason else ""
    said = {
        "queued": f"queued in Slurm as job {job.job_id}{why}",
        "starting": f"Slurm has started job {job.job_id}; its driver has yet to begin the run",
        "ended": f"Slurm job {job.job_id} has ended before the run began; {path_text(job.log)} may say why",
        "cancelled": f"cancelled before it began, as Slurm job {job.job_id}",
        "unknown": f"submitted to Slurm as job {job.job_id}; how it stands is unknown here{why}",
    }
    print(f"{path_text(run_dir)}: {said[state]}")
