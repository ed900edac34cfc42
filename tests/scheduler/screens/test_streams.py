"""A run's words may get lost, where a stream is closed or full; its end is the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOLD = """
import sys
from pathlib import Path
from scheduler.execution.status import JobFailure, RunStatus, RunSummary
from scheduler.screens.event_lines import write_event
from scheduler.screens.progress import PlainProgress
from scheduler.screens.run_command import carry_out

status = RunStatus("run", "running", 2, 1, 0, 1, 83.0)
def runner(on_status, stop, on_event):
    for _ in range(2):
        on_status(status)
        if on_event is not None:
            on_event({"event": "done"})
    return RunSummary(2, 1, 1, 0, 0, 1.0, "run", failures=(JobFailure("a", "no image"),))
given = set(sys.argv[1:])
options = {name: name in given for name in ("as_json", "log_json", "quiet", "debug")}
sys.exit(carry_out(runner, Path("out"), **options))
"""
SOME_FAILED = 1


def told(*options: str, **streams: object) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-c", TOLD, *options], check=False, **streams)


@pytest.mark.parametrize("options", [(), ("quiet",), ("as_json",), ("log_json",)])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_stream_changes_nothing_of_the_end(options: tuple[str, ...], stream: str) -> None:
    other = "stderr" if stream == "stdout" else "stdout"
    with Path("/dev/full").open("wb") as full:
        ended = told(*options, **{stream: full, other: subprocess.PIPE})
    assert ended.returncode == SOME_FAILED, ended
    said = getattr(ended, other)
    assert b"Traceback" not in said
    if stream == "stdout" and options in ((), ("as_json",)):
        assert b"stackyard: standard output can't be written: No space left on device" in said


@pytest.mark.parametrize("options", [(), ("as_json",), ("log_json",)])
def test_readers_that_have_gone_change_nothing_of_the_end(options: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        assert told(*options, stdout=write, stderr=write).returncode == SOME_FAILED
    finally:
        os.close(write)


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from scheduler.screens.streams import open_closed_streams\n"
        "open_closed_streams()\n"
        f"file = open({str(tmp_path / 'journal')!r}, 'w')\n"
        "print('out'), print('error', file=sys.stderr)\n"
        "sys.exit(0 if file.fileno() > 2 else 3)\n"
    )
    command = ["/bin/sh", "-c", 'exec "$0" -c "$1" >&- 2>&- <&-', sys.executable, script]
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "journal").read_text() == ""
