"""A run while it goes on: one live view on a terminal, now and then a line anywhere else."""

import sys
import threading
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from memcore.info import bytes_text
from scheduler.execution.status import DeviceStatus, RunStatus
from scheduler.screens.memory_bar import MemoryBar, legend, memory_parts
from scheduler.screens.streams import lossy, write_past_buffer
from scheduler.screens.words import duration_text, printable, rate_text

LINE_EVERY_S = 10.0
LONGEST_WAITS = 3
STUCK_SHOWN = 3


class Progress(Protocol):
    """Shows each `RunStatus` that it is given, from any thread, until its block ends."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, status: RunStatus) -> None:
        """Show `status`, now or at the next refresh."""

    def say(self, what: str) -> None:
        """Show a remark. Takes no lock, so that a signal handler may call it."""


def progress_on(console: Console, *, quiet: bool = False) -> Progress:
    """A live view where `console` is a terminal or a notebook, plain lines where it is a file or a pipe."""
    if console.is_jupyter and not quiet:
        from scheduler.screens.notebook import NotebookProgress

        return NotebookProgress()
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveProgress(console) if live and not quiet else PlainProgress(quiet=quiet)


def show_progress() -> Progress:
    """Progress for a run that Python starts, on its terminal, in its notebook, or as lines elsewhere.

        with show_progress() as progress:
            run(load_config("stackyard.yaml"), on_status=progress.update)
    """
    return progress_on(Console(stderr=True))


class LiveProgress:
    """Redraws one view in place. It leaves nothing behind: the summary takes its place."""

    def __init__(self, console: Console) -> None:
        self._status: RunStatus | None = None
        self._remark = "starting"
        self._ascii_only = console.options.ascii_only
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with lossy(sys.stderr):
            self._live.stop()

    def update(self, status: RunStatus) -> None:
        """Draw `status` at the next refresh."""
        if self._status is None and self._remark == "starting":
            self._remark = ""
        self._status = status

    def say(self, what: str) -> None:
        """Draw `what` under the view from the next refresh on."""
        self._remark = what

    def _draw(self) -> RenderableType:
        remark = Text(self._remark, style="yellow")
        if self._status is None:
            return remark
        return Group(draw_status(self._status, ascii_only=self._ascii_only), remark)


class PlainProgress:
    """Writes a line when the state changes, when more jobs have failed, and every ten seconds of the run.

    A `quiet` one writes only what it is told to say.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self._last: RunStatus | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, status: RunStatus) -> None:
        """Write a line if there is something new to say."""
        with self._lock:
            if self._quiet:
                return
            known = self._last.remarks if self._last else ()
            lines = [printable(remark).replace("\n", " ") for remark in status.remarks if remark not in known]
            if lines or self._is_news(status):
                self._last = status
                # One write: lines of other programs on the same pipe don't cut into it.
                with lossy(sys.stderr):
                    sys.stderr.write("\n".join([*lines, status_line(status)]) + "\n")

    def say(self, what: str) -> None:
        """Write `what` past the stream's buffer, whose lock the interrupted code may hold."""
        write_past_buffer(f"stackyard: {what}\n".encode())

    def _is_news(self, status: RunStatus) -> bool:
        last = self._last
        if last is None:
            # Until a device's memory has been looked at there is nothing to tell.
            looked = any(device.free_bytes is not None for device in status.devices)
            return looked or status.state != "running" or status.elapsed_s >= LINE_EVERY_S
        return (
            (status.state, status.failed) != (last.state, last.failed)
            or {job.job for job in status.stuck} != {job.job for job in last.stuck}
            or status.elapsed_s - last.elapsed_s >= LINE_EVERY_S
        )


def status_line(status: RunStatus) -> str:
    """One moment of a run in one line without markup."""
    parts = [f"{status.done}/{status.jobs} done", f"{status.running} running", f"{_waiting(status)} waiting"]
    if status.failed:
        parts.append(f"{status.failed} failed")
    if status.rate_per_s:
        parts.append(rate_text(status.rate_per_s))
    if status.eta_s is not None:
        parts.append(f"about {duration_text(status.eta_s)} left")
    line = f"[{duration_text(status.elapsed_s)}] {status.state}: {', '.join(parts)}"
    for device in status.devices:
        if device.problem:
            line += f"; {device.name}: {device.problem}"
    if status.waiting:
        longest = status.waiting[0]
        line += f"; {longest.job} waits for {duration_text(longest.waited_s)}: {longest.reason}"
    for job in status.stuck[:STUCK_SHOWN]:
        line += f"; {job.job} seems stuck: {job.reason}"
    return printable(line).replace("\n", " ")


def draw_status(status: RunStatus, *, ascii_only: bool = False) -> RenderableType:
    """One moment of a run: jobs, devices with their memory, and what waits longest and why."""
    parts: list[RenderableType] = [_jobs(status)]
    if status.devices:
        parts += [Padding(_devices(status), (1, 0, 0, 0)), Text(legend(ascii_only=ascii_only), style="dim")]
    if status.waiting:
        parts.append(Padding(_waits(status), (1, 0, 0, 0)))
    for job in status.stuck[:STUCK_SHOWN]:
        parts.append(Text(printable(f"{job.job} seems stuck: {job.reason}"), style="red"))
    parts += [Text(printable(remark), style="yellow") for remark in status.remarks]
    if status.last_event:
        parts.append(Text(printable(status.last_event), style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _waiting(status: RunStatus) -> int:
    return max(0, status.jobs - status.done - status.failed - status.running)


def _jobs(status: RunStatus) -> RenderableType:
    words = Text()
    words.append(f"{status.done}/{status.jobs}", style="bold")
    words.append(f" done  {status.running} running  {_waiting(status)} waiting")
    if status.failed:
        words.append(f"  {status.failed} failed", style="bold red")
    if status.rate_per_s:
        words.append(f"  {rate_text(status.rate_per_s)}")
    words.append(f"  {duration_text(status.elapsed_s)}")
    if status.eta_s is not None:
        words.append(f", about {duration_text(status.eta_s)} left")
    if status.state != "running":
        words.append(f"  {status.state}", style="yellow")
    ended = status.done + status.failed
    return Group(
        words, ProgressBar(total=max(1, status.jobs), completed=ended, complete_style="green", width=60)
    )


def _devices(status: RunStatus) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, min_width=10)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for device in status.devices:
        name = Text(printable(device.name), style="bold")
        if device.virtual:
            name.append(" virtual", style="yellow")
        work = Text(f"{len(device.running)} running  {device.done} done")
        if device.problem:
            work = Text(printable(device.problem), style="red")
        table.add_row(
            name, MemoryBar(device), _memory_words(device), f"of {bytes_text(device.total_bytes)}", work
        )
    return table


def _memory_words(device: DeviceStatus) -> Text:
    if device.free_bytes is None:
        return Text("unknown", style="red")
    reserved, _, _, free = memory_parts(device)
    return Text(f"{bytes_text(reserved)} reserved, {bytes_text(free)} free")


def _waits(status: RunStatus) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for job in status.waiting[:LONGEST_WAITS]:
        waited = Text(f"waits {duration_text(job.waited_s)}", style="yellow")
        table.add_row(Text(printable(job.job)), waited, Text(printable(job.reason)))
    return table
