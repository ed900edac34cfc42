"""A fresh folder, from sample data to a report: what every command prints into a pipe, and on a terminal."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.screens import cli

CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")  # anything but tab and the end of a line
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
# From an empty folder, with no edit; what each leaves is of use to the next. `resume` and `submit`
# run as `run` does; `devices` and `stress` take long, and their own tests ask the same of them.
SESSION = (
    ("sample", "plate", "--wells", "1", "--sites", "1", "--planes", "2", "--size", "24"),
    ("init", "plate"),
    ("plan", "stackyard.yaml"),
    ("run", "stackyard.yaml"),
    ("status", "out"),
    ("report", "out"),
    ("simulate", "out", "--no-baselines"),
    ("cancel", "out"),
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Nothing that speaks for or against colour; what is learned is the test's own."""
    plain = {name: value for name, value in os.environ.items() if "COLOR" not in name and "TTY_" not in name}
    return plain | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": "", "TERM": "xterm"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "scheduler.screens", *arguments]


def test_a_session_in_a_pipe_is_text_without_control_codes(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "fresh"
    folder.mkdir()
    for arguments in SESSION:
        done = subprocess.run(
            command(*arguments), capture_output=True, cwd=folder, env=environment, timeout=240
        )
        said = done.stdout + done.stderr
        assert done.returncode == (2 if arguments[0] == "cancel" else 0), (arguments, said.decode())
        assert said, arguments
        assert not CONTROL.search(said), (arguments, said)
    assert sorted(path.name for path in (folder / "out").glob("*.ome.tif")) == [
        "A01_s1_c1.ome.tif",
        "A01_s1_c2.ome.tif",
    ]
    assert (folder / "out/.stackyard").is_dir()


def test_every_command_has_json() -> None:
    import typer.main

    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert [
        name for name, each in commands.items() if not any("--json" in option.opts for option in each.params)
    ] == []


def on_a_terminal(*arguments: str, environment: dict[str, str]) -> bytes:
    """What a command prints on a terminal of its own."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command(*arguments), stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux says so at the end of what a terminal has to give
                part = b""
            if not part:
                break
            said += part
    os.close(ours)
    return said


def test_colour_on_a_terminal_unless_it_asks_for_none(environment: dict[str, str]) -> None:
    assert COLOUR.search(on_a_terminal("--help", environment=environment))
    assert not COLOUR.search(on_a_terminal("--help", environment=environment | {"NO_COLOR": "1"}))


def complete(line: str, environment: dict[str, str]) -> list[str]:
    """What bash is told for a line whose last word is being typed."""
    asked = {
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        "_STACKYARD_COMPLETE": "complete_bash",
    }
    program = "import sys; sys.argv[0] = 'stackyard'; from scheduler.screens.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment | asked,
        timeout=60,
    )
    return done.stdout.split()


def test_completion_knows_commands_and_options_and_leaves_files_to_the_shell(
    environment: dict[str, str],
) -> None:
    assert complete("stackyard re", environment) == ["resume", "report"]
    assert "--log-json" in complete("stackyard run --", environment)
    # With nothing to offer, bash's own completion of files takes over: -o default.
    assert complete("stackyard run conf", environment) == []
    shown = subprocess.run(
        command("--show-completion", "bash"), capture_output=True, text=True, env=environment, timeout=60
    )
    assert "complete -o default " in shown.stdout
