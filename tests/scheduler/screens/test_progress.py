"""What a person sees of a run: a live view on a terminal, lines without control codes elsewhere."""

import io
import sys
import types
from dataclasses import replace

import pytest
from rich.console import Console

from scheduler.execution.status import JobFailure, RunStatus
from scheduler.screens.progress import (
    LiveProgress,
    PlainProgress,
    draw_status,
    progress_on,
    status_line,
)


def drawn(status: RunStatus, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(draw_status(status))
    return console.file.getvalue()


def test_view_shows_jobs_rate_and_eta(status):
    assert drawn(status).splitlines()[0].split("  ") == [
        "120/480 done",
        "4 running",
        "354 waiting",
        "2 failed",
        "1.4 jobs/s",
        "1 min 23 s, about 4 min 11 s left",
    ]


def test_view_shows_each_devices_memory_and_says_what_is_virtual(status):
    lines = drawn(status).splitlines()
    (gpu0,) = (line for line in lines if line.startswith("gpu0"))
    assert "8 GiB reserved, 10 GiB free" in gpu0
    assert "of 24 GiB" in gpu0
    assert "2 running  80 done" in gpu0
    assert any(line.startswith("gpu1 virtual") for line in lines)
    (gpu2,) = (line for line in lines if line.startswith("gpu2"))
    assert "unknown" in gpu2
    assert "NVML: GPU is lost" in gpu2


def test_view_shows_the_three_longest_waits_with_their_reasons(status):
    text = drawn(status)
    assert "needs 9 GiB on gpu0, 2 GiB is free" in text
    assert "reason three" in text
    assert "reason four" not in text


def test_a_job_that_gets_nowhere_is_named_at_once(status, capsys):
    stuck = replace(status, stuck=(JobFailure("A01_s7", "its worker process has said nothing for 9 s"),))
    assert "A01_s7 seems stuck: its worker process has said nothing for 9 s" in drawn(stuck)
    with PlainProgress() as progress:
        progress.update(status)
        progress.update(stuck)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("; A01_s7 seems stuck: its worker process has said nothing for 9 s")


@pytest.mark.parametrize("width", [20, 40, 80])
def test_view_fits_a_narrow_terminal(status, width):
    assert max(map(len, drawn(status, width).splitlines())) <= width


def test_view_before_the_first_job_is_known():
    assert drawn(RunStatus("out", "starting", 0, 0, 0, 0, 0.0)).startswith(
        "0/0 done  0 running  0 waiting  0.0 s  starting"
    )


def test_names_and_reasons_are_no_markup_and_no_control_codes(status):
    odd = replace(status.waiting[0], job="[red]A\x1b[2J", reason="[/] over\x07")
    text = drawn(replace(status, waiting=(odd,)))
    assert "[red]A\\x1b[2J" in text
    assert "[/] over\\x07" in text


def test_line(status):
    assert status_line(replace(status, devices=status.devices[2:])) == (
        "[1 min 23 s] running: 120/480 done, 4 running, 354 waiting, 2 failed, 1.4 jobs/s, "
        "about 4 min 11 s left; gpu2: NVML: GPU is lost; "
        "A01_s1 waits for 12 s: needs 9 GiB on gpu0, 2 GiB is free"
    )


def test_lines_come_with_news_and_every_ten_seconds(status, capsys):
    with PlainProgress() as progress:
        for elapsed_s in (0.0, 1.0, 9.9, 10.0, 11.0, 20.0):
            progress.update(replace(status, elapsed_s=elapsed_s))
        progress.update(replace(status, elapsed_s=20.1, failed=3))
        progress.update(replace(status, elapsed_s=20.2, failed=3))
        progress.update(replace(status, elapsed_s=20.3, failed=3, state="done"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("]")[0] for line in lines] == ["[0.0 s", "[10 s", "[20 s", "[20 s", "[20 s"]
    assert "3 failed" in lines[3]
    assert " done: " in lines[4]


def test_the_first_line_comes_when_a_device_has_been_looked_at(status, gpu, capsys):
    unknown = replace(gpu, free_bytes=None, problem="not probed yet")
    nothing = replace(status, devices=(unknown,), running=0, elapsed_s=1.0)
    with PlainProgress() as progress:
        progress.update(nothing)
        assert capsys.readouterr().err == ""
        progress.update(replace(nothing, elapsed_s=2.0, devices=(unknown, gpu)))
        assert capsys.readouterr().err.startswith("[2.0 s] running: ")
    with PlainProgress() as progress:
        progress.update(replace(nothing, elapsed_s=10.0))
        assert "not probed yet" in capsys.readouterr().err


def test_each_remark_is_said_once_and_stays_in_view(status, capsys):
    with PlainProgress() as progress:
        for remarks in ((), ("gpu0: torch\nisn't used",), ("gpu0: torch\nisn't used", "second")):
            progress.update(replace(status, remarks=remarks))
            progress.update(replace(status, remarks=remarks))
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("[")] == ["gpu0: torch isn't used", "second"]
    assert len(lines) == 5
    assert "second" in drawn(replace(status, remarks=("first", "second"))).splitlines()


def test_quiet_says_only_remarks(status, capfd):
    with progress_on(Console(file=io.StringIO()), quiet=True) as progress:
        progress.update(status)
        progress.say("stopping")
    assert capfd.readouterr().err == "stackyard: stopping\n"


def test_live_view_on_a_terminal_and_only_there(status):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"})
    progress = progress_on(terminal)
    assert isinstance(progress, LiveProgress)
    with progress:
        progress.update(status)
        progress.say("stopping")
    text = terminal.file.getvalue()
    assert "120/480" in text
    assert "stopping" in text
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(progress_on(dumb), PlainProgress)
    assert isinstance(progress_on(Console(file=io.StringIO())), PlainProgress)


def test_a_notebook_s_cell_is_redrawn_without_widgets(status, monkeypatch):
    """IPython's display, injected: the tests' environment has no notebook."""
    shown: list[str] = []

    class View:
        def update(self, page: str) -> None:
            shown.append(page)

    def display(page: str, *, display_id: bool) -> View:
        assert display_id
        shown.append(page)
        return View()

    module = types.ModuleType("IPython.display")
    module.HTML, module.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    odd = replace(status, remarks=("<script>alert(1)</script>",))
    with progress_on(Console(force_jupyter=True)) as progress:
        progress.update(odd)
        progress.say("stopping")
        progress.update(odd)
    first, second, third, _ = shown
    assert "starting" in first
    assert "120/480" in second
    assert "starting" not in second
    assert "needs 9 GiB on gpu0" in second
    assert "&lt;script&gt;" in second
    assert "<script" not in second
    assert "stopping" in third
    assert "\x1b" not in "".join(shown)
    assert isinstance(progress_on(Console(force_jupyter=True), quiet=True), PlainProgress)
