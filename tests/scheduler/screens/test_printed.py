"""What a user's module prints while it is imported doesn't mix with a command's JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.execution.journal import Journal

MODULE = """
import ctypes, logging, os, sys, warnings
from memcore import memory_types

logging.basicConfig(stream=sys.stderr)
print("by Python \\x1b[31m")
os.write(1, b"by the descriptor\\n")
ctypes.CDLL(None).puts(b"by C")
logging.error("by logging")
warnings.warn("a warning")


@memory_types("numpy")
def invert(stack):
    logging.error("later")
    return ~stack
"""
CONFIG = """\
input: {path: ., pattern: "{well}_z{z}.tif"}
steps: [{use: "prints_when_imported:invert"}]
output: {path: out, name: "{well}"}
"""
PRINTED = ["by Python", "by the descriptor", "by C", "ERROR:root:by logging"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "prints_when_imported.py").write_text(MODULE)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path / "run.yaml"


def stackyard(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "scheduler.screens", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_json_alone_is_on_standard_output_and_the_rest_is_told(config: Path) -> None:
    ended = stackyard("plan", config, "--json")
    assert ended.returncode == 2  # there are no images
    assert ended.stdout == ""
    head, *lines = ended.stderr.splitlines()
    assert head == "stackyard: printed while the steps were imported:"
    assert sorted(lines[:4]) == sorted(["by Python \\x1b[31m", *PRINTED[1:]])
    assert lines[4:5] == ["stackyard: a warning"]


def test_each_line_of_log_json_is_an_event(config: Path) -> None:
    ended = stackyard("run", config, "--log-json")
    assert ended.stdout == ""
    printed, warning, error = map(json.loads, ended.stderr.splitlines())
    assert printed["event"] == "printed"
    assert all(words in printed["text"] for words in PRINTED)
    assert (warning["event"], error["event"]) == ("warning", "error")


def test_a_run_that_is_resumed_imports_them_too(config: Path) -> None:
    folder = config.parent / "out/.stackyard/1"
    folder.mkdir(parents=True)
    described = {
        "config_file": str(config),
        "input": {"path": str(config.parent), "pattern": "{well}_z{z}.tif"},
        "steps": [{"use": "prints_when_imported:invert"}],
        "output": {"path": str(config.parent / "out"), "name": "{well}"},
    }
    Journal.create(
        folder / "journal.sqlite", version="1", host="here", started_at=0.0, config=described
    ).close()
    ended = stackyard("resume", folder, "--log-json")
    events = [json.loads(line)["event"] for line in ended.stderr.splitlines()]
    assert (ended.stdout, events) == ("", ["printed", "warning", "error"])
