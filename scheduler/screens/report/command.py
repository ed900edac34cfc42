"""`stackyard report`: write the page of a run."""

import os
from pathlib import Path

from pydantic import ValidationError

from scheduler.config import RunConfig
from scheduler.screens.exits import errors_as_messages, print_json
from scheduler.screens.report.page import html_page
from scheduler.screens.report.records import RunRows, read_run
from scheduler.screens.report.thumbnails import Pair, before_and_after
from scheduler.screens.run_folder import RunFolderError, find_run
from scheduler.screens.words import path_text


def report_command(path: Path, output: Path | None, *, as_json: bool, debug: bool) -> None:
    """Write the page of the run at `path` to `output`, by default report.html in the run's folder."""
    with errors_as_messages(debug=debug, unusable=(RunFolderError,)):
        run_dir = find_run(path)
        run = read_run(run_dir)
        target = run_dir / "report.html" if output is None else output
        partial = target.with_name(f".{target.name}.part")
        partial.write_text(html_page(run, run_dir, _pictures(run)), encoding="utf-8")
        os.replace(partial, target)
    if as_json:
        print_json({"run_dir": str(run_dir), "report": str(target)})
    else:
        print(path_text(target))


def _pictures(run: RunRows) -> list[Pair]:
    try:
        config = RunConfig.model_validate(run.config)
    except ValidationError as error:
        return [
            Pair("", "", "", f"the run's config is of another version: {error.error_count()} differences")
        ]
    return list(before_and_after(config, run.jobs))
