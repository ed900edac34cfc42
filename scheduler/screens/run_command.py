"""`stackyard run`: a config file carried out, with progress and an account at the end."""

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from rich.console import Console

from scheduler.config import ConfigError, load_config
from scheduler.execution.devices import DevicesError
from scheduler.execution.errors import ClusterError
from scheduler.execution.events import Event
from scheduler.execution.slurm_commands import SlurmError
from scheduler.execution.status import RunStatus, RunSummary
from scheduler.host.estimates import EstimatesError
from scheduler.images.errors import InputError, OutputError
from scheduler.screens.check import check_steps
from scheduler.screens.consoles import output_console
from scheduler.screens.event_lines import EventLines, write_event
from scheduler.screens.exits import errors_as_messages, print_json, stop_on_signals
from scheduler.screens.progress import progress_on
from scheduler.screens.run_folder import CANCEL_FILE
from scheduler.screens.streams import lossy
from scheduler.screens.submit_command import tell_run
from scheduler.screens.summary import print_summary
from scheduler.steps.errors import StepError

UNUSABLE = (InputError, OutputError, StepError, DevicesError, EstimatesError, ClusterError, SlurmError)


class Runner(Protocol):
    """Carries a run out, telling how it stands and what happens, and ending soon after `stop` is set."""

    def __call__(
        self,
        *,
        on_status: Callable[[RunStatus], None],
        stop: threading.Event,
        on_event: Callable[[Event], None] | None,
    ) -> RunSummary: ...


def run_command(
    path: Path,
    *,
    overwrite: bool,
    as_json: bool,
    log_json: bool,
    quiet: bool,
    debug: bool,
    tell: Path | None = None,
    run_id: str | None = None,
) -> int:
    """Run the config at `path` and return the exit status.

    `submit` waits for the run's folder in `tell`, or has given it the name `run_id`.
    """
    with errors_as_messages(debug=debug, unusable=(ConfigError,), log_json=log_json):
        config = load_config(path)
        check_steps(config, log_json=log_json, quiet=quiet)
    # Dask takes a second to import: a config that can't be used is refused before that.
    from scheduler.execution.run import run

    runner = partial(run, config, overwrite=overwrite, run_id=run_id)
    return carry_out(
        runner,
        config.output.path,
        as_json=as_json,
        log_json=log_json,
        quiet=quiet,
        debug=debug,
        tell=tell,
    )


def carry_out(
    runner: Runner,
    results: Path,
    *,
    as_json: bool,
    log_json: bool,
    quiet: bool,
    debug: bool,
    unusable: tuple[type[Exception], ...] = UNUSABLE,
    tell: Path | None = None,
) -> int:
    """Let `runner` run, with progress and signals, give the account, and return the exit status."""
    errors = Console(stderr=True)
    with (
        errors_as_messages(debug=debug, unusable=unusable, log_json=log_json),
        EventLines() if log_json else progress_on(errors, quiet=quiet) as progress,
        stop_on_signals(progress.say) as stop,
    ):
        told = tell is None

        def show(status: RunStatus) -> None:
            nonlocal told
            progress.update(status)
            # Before there is a device nothing is under way, and it may end without having begun.
            if not told and tell is not None and status.devices:
                told = True
                tell_run(tell, status.run_dir)
            if not stop.is_set() and Path(status.run_dir, CANCEL_FILE).exists():
                progress.say("cancelled; what is done is kept")
                stop.set()

        summary = runner(on_status=show, stop=stop, on_event=write_event if log_json else None)
    if as_json:
        with lossy(sys.stdout):
            print_json(summary.to_json())
    if summary.failures and (quiet or as_json) and not log_json:
        print_summary(errors, summary, results)
    elif not quiet and not as_json:
        print_summary(output_console(), summary, results)
    return summary.exit_status
