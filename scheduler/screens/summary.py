"""How a run ended: what ran where, what failed and why, and where the results are."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from scheduler.execution.status import JobFailure, RunSummary
from scheduler.screens.streams import lossy
from scheduler.screens.words import count_text, duration_text, path_text, printable


def draw_summary(summary: RunSummary, results: Path) -> RenderableType:
    """The account of a run that has ended; `results` is the folder with its outputs."""
    parts: list[RenderableType] = [_headline(summary)]
    if summary.devices:
        parts.append(_devices(summary))
    virtual = [name for name, device in summary.devices.items() if device.get("virtual")]
    if virtual:
        are = "is a virtual device" if len(virtual) == 1 else "are virtual devices"
        what = f"{', '.join(virtual)} {are}: an account of bytes, no hardware. The CPU did the work."
        parts.append(Text(printable(what), style="yellow"))
    parts += [Text(printable(remark), style="yellow") for remark in summary.remarks]
    if summary.failures:
        parts.append(draw_failures(summary.failures))
        if summary.run_dir:
            logs = path_text(Path(summary.run_dir, "logs"))
            parts.append(
                Text.assemble(("Logs     ", "bold"), logs, ": what each job printed and where it failed")
            )
    parts.append(Text.assemble(("Results  ", "bold"), path_text(results)))
    if summary.run_dir:
        parts.append(Text.assemble(("Run      ", "bold"), path_text(summary.run_dir)))
    if summary.interrupted:
        parts.append(Text(f"stackyard resume {path_text(summary.run_dir)} finishes it"))
    return Group(*parts)


def print_summary(console: Console, summary: RunSummary, results: Path) -> None:
    """Print the account; paths and reasons keep their lines whole where the console is no terminal.

    Where it can't be printed the run has ended all the same.
    """
    with lossy(console.file):
        # Rich itself would end the process where a pipe's reader has gone.
        with console.capture() as account:
            console.print(draw_summary(summary, results), soft_wrap=not console.is_terminal)
        console.file.write(account.get())


def _headline(summary: RunSummary) -> Text:
    text = Text()
    if summary.interrupted:
        text.append("Interrupted: ", style="bold yellow")
    text.append(f"{summary.done:,} of {count_text(summary.jobs, 'job')} done", style="bold")
    text.append(f" in {duration_text(summary.wall_s)}")
    if summary.failed:
        text.append(f", {summary.failed:,} failed", style="bold red")
    if summary.lost:
        text.append(f", {summary.lost:,} lost", style="bold red")
    if summary.oom_attempts:
        text.append(f", {count_text(summary.oom_attempts, 'attempt')} out of memory", style="yellow")
    return text


def _devices(summary: RunSummary) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("device")
    table.add_column("kind")
    table.add_column("jobs", justify="right")
    for name, device in summary.devices.items():
        table.add_row(Text(printable(name)), str(device.get("kind", "")), f"{device.get('jobs', 0):,}")
    return table


def draw_failures(failures: Iterable[JobFailure]) -> RenderableType:
    """Each reason once, with the jobs that failed for it."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for failure in failures:
        by_reason[failure.reason].append(failure.job)
    parts = []
    for reason, jobs in by_reason.items():
        text = Text.assemble(("Failed   ", "bold red"), printable(", ".join(jobs)))
        for line in printable(reason).splitlines():
            text.append(f"\n         {line}")
        parts.append(text)
    return Group(*parts)
