"""The command line as a person or a script meets it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from scheduler.screens import cli


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, arguments)


def test_help_names_every_command_and_each_has_an_example():
    result = invoke("--help")
    assert result.exit_code == 0
    for command in cli.app.registered_commands:
        name = (command.name or command.callback.__name__).replace("_", "-")
        assert name in result.output
        page = invoke(name, "--help")
        assert page.exit_code == 0
        assert f"Example: stackyard {name}" in page.output


def test_no_arguments_shows_help_and_is_a_usage_error():
    result = invoke()
    assert result.exit_code == 2
    assert "Usage" in result.output


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["run"], ["run", "x", "--frobnicate"], ["sample", "x", "--wells", "0"]]
)
def test_bad_arguments_end_with_2(arguments):
    assert invoke(*arguments).exit_code == 2


def test_version():
    from importlib.metadata import version

    assert invoke("--version").output == f"stackyard {version('stackyard')}\n"


def test_windows_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="WSL2") as caught:
        cli.main()
    assert "\n" not in str(caught.value)


def test_sample(tmp_path):
    arguments = (
        "sample",
        str(tmp_path / "s"),
        "--wells",
        "1",
        "--sites",
        "1",
        "--planes",
        "2",
        "--size",
        "16",
    )
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "A01_s1_z00_c1.tif",
        "A01_s1_z00_c2.tif",
        "A01_s1_z01_c1.tif",
        "A01_s1_z01_c2.tif",
    ]
    assert result.output.startswith("4 files, ")
    again = invoke(*arguments, "--json")
    nbytes = sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    assert json.loads(again.stdout) == {"folder": str(tmp_path / "s"), "files": 4, "bytes": nbytes}


def test_sample_replaces_other_files_only_if_told(tmp_path):
    (tmp_path / "A01_s1_z00_c1.tif").write_bytes(b"mine")
    arguments = ("sample", str(tmp_path), "--wells", "1", "--sites", "1", "--planes", "1", "--size", "16")
    refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert "A01_s1_z00_c1.tif" in refused.stderr
    assert (tmp_path / "A01_s1_z00_c1.tif").read_bytes() == b"mine"
    assert invoke(*arguments, "--overwrite").exit_code == 0


def test_sample_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    result = invoke("sample", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert result.stderr.startswith("stackyard: ")
    assert "Traceback" not in result.stderr


def test_piped_output_holds_no_control_codes(tmp_path):
    """Not even where the environment asks for colour as far as Rich is concerned."""
    for arguments in (["--help"], ["run", str(tmp_path / "gone.yaml")], ["sample"]):
        done = subprocess.run([sys.executable, "-m", "scheduler.screens", *arguments], capture_output=True)
        assert b"\x1b" not in done.stdout + done.stderr
