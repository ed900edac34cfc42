"""`stackyard resume` finishes the run in a folder, with the screens of `run`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scheduler.execution.journal import Journal
from scheduler.execution.resume import ResumeError
from scheduler.execution.status import RunSummary
from scheduler.images.errors import InputError
from scheduler.screens import cli

DONE = RunSummary(3, 3, 0, 0, 0, 1.0, "/run")
INTERRUPTED = RunSummary(3, 1, 0, 0, 0, 1.0, "/run", True)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "out/.stackyard/1"
    folder.mkdir(parents=True)
    config = {
        "input": {"path": str(tmp_path), "pattern": "{well}_z{z}.tif"},
        "steps": [{"use": "gaussian", "with": {"sigma": 1}}],
        "output": {"path": str(tmp_path / "out"), "name": "{well}"},
    }
    journal = Journal.create(
        folder / "journal.sqlite", version="1", host="here", started_at=0.0, config=config
    )
    journal.close()
    return folder


@pytest.fixture
def ended(monkeypatch, status):
    """Have every resumed run end as told, after one status; gives the folders."""
    folders: list[Path] = []

    def end_with(outcome: RunSummary | Exception) -> list[Path]:
        def resume(run_dir, *, on_status, stop, on_event):
            folders.append(run_dir)
            assert not stop.is_set()
            on_status(status)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr("scheduler.execution.resume.resume", resume)
        return folders

    return end_with


def invoke(*arguments: object):
    return CliRunner().invoke(cli.app, ["resume", *map(str, arguments)])


def test_the_newest_run_of_an_output_folder(run_dir, ended, tmp_path):
    folders = ended(DONE)
    result = invoke(tmp_path / "out")
    assert result.exit_code == 0
    assert folders == [run_dir]
    assert "3 of 3 jobs done" in result.stdout
    assert f"Results  {tmp_path / 'out'}\n" in result.stdout
    assert "120/480 done" in result.stderr


def test_what_cancelled_the_earlier_driver_does_not_stop_this_one(run_dir, ended):
    (run_dir / "cancel").touch()
    ended(DONE)
    assert invoke(run_dir).exit_code == 0
    assert not (run_dir / "cancel").exists()


def test_json_and_exit_status(run_dir, ended):
    ended(INTERRUPTED)
    result = invoke(run_dir, "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["done"] == 1


@pytest.mark.parametrize("error", [ResumeError("no run that can be resumed"), InputError("no such folder")])
def test_what_cannot_be_resumed(run_dir, ended, error):
    ended(error)
    result = invoke(run_dir)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith(f"stackyard: {error}\n")


def test_no_run(tmp_path):
    result = invoke(tmp_path)
    assert result.exit_code == 2
    assert "no run in" in result.stderr
