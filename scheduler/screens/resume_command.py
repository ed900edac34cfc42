"""`stackyard resume`: finish a run that was interrupted, or whose driver died."""

from functools import partial
from pathlib import Path

from scheduler.screens.check import import_steps
from scheduler.screens.exits import errors_as_messages
from scheduler.screens.run_command import UNUSABLE, carry_out
from scheduler.screens.run_folder import CANCEL_FILE, RunFolderError, find_run, read_config


def resume_command(path: Path, *, as_json: bool, log_json: bool, quiet: bool, debug: bool) -> int:
    """Finish the run at `path` and return the exit status."""
    with errors_as_messages(debug=debug, unusable=(RunFolderError,), log_json=log_json):
        run_dir = find_run(path)
        config = read_config(run_dir)
        # What asked the earlier driver to stop isn't meant for this one.
        (run_dir / CANCEL_FILE).unlink(missing_ok=True)
        import_steps(config, log_json=log_json, quiet=quiet)
    from scheduler.execution.resume import ResumeError, resume

    return carry_out(
        partial(resume, run_dir),
        config.output.path,
        as_json=as_json,
        log_json=log_json,
        quiet=quiet,
        debug=debug,
        unusable=(*UNUSABLE, ResumeError),
    )
