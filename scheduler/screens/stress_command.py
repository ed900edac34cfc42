"""`stackyard stress`: the scheduler under hogs, kills and faults, and what became of its promises."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from memcore.info import bytes_text
from scheduler.config.errors import ConfigError
from scheduler.screens.consoles import output_console
from scheduler.screens.exits import errors_as_messages, print_json, stop_on_signals
from scheduler.screens.progress import progress_on
from scheduler.screens.words import count_text, duration_text, path_text, printable
from scheduler.stress.account import StressAccount
from scheduler.stress.options import StressError, load_options


def stress_command(
    config: Path | None, given: Mapping[str, Any], *, folder: Path | None, as_json: bool, debug: bool
) -> int:
    """Run a stress test, print its account, and return the exit status.

    Parameters
    ----------
    config, given
        A YAML file with options, and those of the command line, which go before it; None is not given.
    folder
        Where to work; it stays. None works in a temporary one, which stays only if something is wrong.
    """
    errors = Console(stderr=True)
    with errors_as_messages(debug=debug, unusable=(ConfigError, StressError)):
        options = load_options(config, given)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise StressError(f"{folder} isn't empty; give the test a folder of its own")
        work = (
            folder if folder is not None else Path(tempfile.mkdtemp(prefix="stackyard-stress-"))
        ).resolve()
        # Dask takes a second to import: what can't be used is refused before that.
        from scheduler.execution.devices import DevicesError
        from scheduler.execution.errors import ClusterError
        from scheduler.stress.run import stress

        keep = folder is not None
        try:
            with (
                errors_as_messages(debug=debug, unusable=(StressError, DevicesError, ClusterError)),
                progress_on(errors) as progress,
                stop_on_signals(progress.say) as stop,
            ):
                account = stress(options, work, on_status=progress.update, say=progress.say, stop=stop)
            keep |= account.exit_status == 1
        finally:
            if not keep:
                shutil.rmtree(work, ignore_errors=True)
    console = errors if as_json else output_console()
    if as_json:
        print_json(account.to_json())
    if not as_json or account.problems:
        drawn = draw_account(account, work if keep else None)
        console.print(drawn, soft_wrap=not console.is_terminal)
    return account.exit_status


def draw_account(account: StressAccount, folder: Path | None) -> RenderableType:
    """The account as a person reads it; `folder` is where everything can be looked at, if it was kept."""
    head = Text()
    if account.interrupted:
        head.append("Interrupted: ", style="bold yellow")
    head.append(f"{account.done:,} of {count_text(account.jobs, 'job')} done", style="bold")
    head.append(f" in {duration_text(account.wall_s)}, seed {account.seed}")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    table.add_column()
    for value, what in _lines(account):
        table.add_row(Text(value, style="bold"), Text(what))
    parts: list[RenderableType] = [head, table]
    if account.virtual:
        what = "The devices are virtual: accounts of bytes, no hardware. The CPU did the work."
        parts.append(Text(what, style="yellow"))
    parts += [Text(f"{note[:1].upper()}{note[1:]}.", style="dim") for note in account.notes]
    parts += [Text(printable(problem), style="bold red") for problem in account.problems]
    if folder is not None:
        parts.append(Text.assemble(("Folder  ", "bold"), path_text(folder)))
    if not account.interrupted:
        parts.append(
            Text("Something is wrong.", style="bold red")
            if account.problems
            else Text("Every job is done once, with the right values.", style="bold green")
        )
    return Group(*parts)


def _lines(account: StressAccount) -> list[tuple[str, str]]:
    careless = account.oom_attempts - account.oom_deliberate
    return [
        (f"{account.failed:,}", "failed"),
        (f"{account.lost:,}", "lost"),
        (f"{account.duplicates:,}", "done twice"),
        (f"{account.wrong_values:,}", "with wrong values"),
        (
            f"{account.oom_attempts:,}",
            f"attempts out of memory, {careless:,} of them at jobs that declare what they need",
        ),
        (f"{account.worker_kills:,}", "workers killed"),
        (f"{account.reservations_left:,}", "promises or charges left over"),
        (bytes_text(account.overcommit_bytes), "promised beyond what was there, at most"),
        (bytes_text(account.bytes_charged), "charged to devices"),
        (bytes_text(account.bytes_touched), "of that really written"),
    ]
