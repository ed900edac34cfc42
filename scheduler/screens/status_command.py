"""`stackyard status`: how a run stands, from any shell that sees its folder."""

import time
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from scheduler.screens.consoles import output_console
from scheduler.screens.exits import errors_as_messages, print_json
from scheduler.screens.progress import draw_status, status_line
from scheduler.screens.run_folder import RunFolderError, find_run, is_going_on, read_failures, read_status
from scheduler.screens.summary import draw_failures
from scheduler.screens.words import duration_text, path_text, printable

# The driver writes once a second; on a busy network folder that may take a while to be seen.
SILENT_AFTER_S = 30.0


def status_command(path: Path, *, as_json: bool, debug: bool) -> None:
    """Show the last state of the run at `path`, and once it has ended what failed."""
    with errors_as_messages(debug=debug, unusable=(RunFolderError,)):
        run_dir = find_run(path)
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
