"""`stackyard cancel`: ask the driver of a run to stop, from any shell that sees the run's folder."""

import time
from pathlib import Path

from scheduler.screens.exits import errors_as_messages
from scheduler.screens.run_folder import CANCEL_FILE, RunFolderError, find_run, is_going_on, read_status
from scheduler.screens.words import duration_text, path_text

SILENT_AFTER_S = 30.0


def cancel_command(path: Path, *, debug: bool) -> None:
    """Drop the file that the driver looks for; it stops as it does on Ctrl-C."""
    with errors_as_messages(debug=debug, unusable=(RunFolderError,)):
        run_dir = find_run(path)
        status = read_status(run_dir)
        if not is_going_on(status):
            raise RunFolderError(f"the run in {path_text(run_dir)} has ended: {status.state}")
        age_s = time.time() - (run_dir / "status.json").stat().st_mtime
        (run_dir / CANCEL_FILE).touch()
    print(f"asked the run in {path_text(run_dir)} to stop; what is done is kept")
    if age_s > SILENT_AFTER_S:
        print(
            f"but there is no news of it for {duration_text(age_s)}: its driver may have ended without a word"
        )
