"""`stackyard cancel`: ask the driver of a run to stop, from any shell that sees the run's folder."""

import time
from dataclasses import asdict
from pathlib import Path

from scheduler.execution.slurm_commands import SlurmError
from scheduler.execution.slurm_driver import DriverJob, Queued, cancel_queued
from scheduler.screens.exits import errors_as_messages, print_json
from scheduler.screens.run_folder import (
    CANCEL_FILE,
    RunFolderError,
    driver_waited_for,
    find_run,
    is_going_on,
    read_status,
)
from scheduler.screens.words import duration_text, path_text, printable

SILENT_AFTER_S = 30.0


def cancel_command(path: Path, *, as_json: bool, debug: bool) -> None:
    """Drop the file that the driver looks for; it stops as it does on Ctrl-C."""
    with errors_as_messages(debug=debug, unusable=(RunFolderError,)):
        run_dir = find_run(path)
        job = driver_waited_for(run_dir)
        if job is not None:
            found, said = _cancel_queued(run_dir, job)
            if as_json:
                print_json({"run_dir": str(run_dir), "slurm_job": job.job_id, **asdict(found)})
            else:
                print(said)
            return
        status = read_status(run_dir)
        if not is_going_on(status):
            raise RunFolderError(f"the run in {path_text(run_dir)} has ended: {status.state}")
        age_s = time.time() - (run_dir / "status.json").stat().st_mtime
        (run_dir / CANCEL_FILE).touch()
    if as_json:
        print_json({"run_dir": str(run_dir), "state": status.state, "age_s": age_s})
        return
    print(f"asked the run in {path_text(run_dir)} to stop; what is done is kept")
    if age_s > SILENT_AFTER_S:
        print(
            f"but there is no news of it for {duration_text(age_s)}: its driver may have ended without a word"
        )


def _cancel_queued(run_dir: Path, job: DriverJob) -> tuple[Queued, str]:
    """Take the driver's job out of Slurm's queue; how it stands then, and what came of it in words."""
    run = f"the run in {path_text(run_dir)}"
    # First, for a driver that begins just now.
    (run_dir / CANCEL_FILE).touch()
    try:
        found = cancel_queued(job)
    except SlurmError as error:
        return Queued("unknown", str(error)), (
            f"{run} is to stop as soon as it begins: Slurm job {job.job_id} can't be cancelled here, "
            f"{printable(str(error))}"
        )
    match found.state:
        case "ended":
            said = f"cancelled Slurm job {job.job_id}; {run} had not begun"
        case "starting":
            said = f"asked {run} to stop as soon as it begins: Slurm has just started job {job.job_id}"
        case _:
            why = f" ({printable(found.reason)})" if found.reason else ""
            said = f"asked Slurm to cancel job {job.job_id} of {run}; it is {found.state} still{why}"
    return found, said
