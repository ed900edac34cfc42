"""`stackyard submit` starts a driver that goes on by itself."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scheduler.images.sample import write_sample
from scheduler.screens import cli
from scheduler.screens.run_folder import read_status

CONFIG = """\
input: {path: img, pattern: "{well}_s{site}_z{z}_c{channel}.tif"}
steps: [{use: gaussian, with: {sigma: 1}, memory: [numpy]}]
output: {path: out, name: "{well}_s{site}_c{channel}"}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_sample(tmp_path / "img", wells=1, sites=1, channels=2, planes=2, size=16)
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


def test_the_run_goes_on_without_the_shell_that_started_it(config, tmp_path):
    command = [sys.executable, "-m", "scheduler.screens", "submit", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    run_dir = Path(record["run_dir"])
    assert run_dir.parent == tmp_path / "out/.stackyard"
    deadline = time.monotonic() + 120
    while read_status(run_dir).state != "done":
        assert time.monotonic() < deadline, Path(record["log"]).read_text()
        time.sleep(0.05)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == [
        "A01_s1_c1.ome.tif",
        "A01_s1_c2.ome.tif",
    ]
    while os.path.exists(f"/proc/{record['pid']}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "2 of 2 jobs done" in Path(record["log"]).read_text()
    assert not list(run_dir.parent.glob(".driver*"))


def test_the_driver_is_out_of_reach_of_the_terminal(config, monkeypatch):
    """A session of its own: no hang-up when the terminal closes, no Ctrl-C from it."""
    started = {}

    def popen(command, **keywords):
        started.update(keywords, command=command)
        raise OSError("enough seen")

    monkeypatch.setattr(subprocess, "Popen", popen)
    result = CliRunner().invoke(cli.app, ["submit", str(config), "--overwrite"])
    assert result.exit_code == 2
    assert started["start_new_session"] is True
    assert started["stdin"] == subprocess.DEVNULL
    assert started["command"][-1] == "--overwrite"


def test_what_cannot_start_says_so_with_the_status_of_run(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/A01_s1_c1.ome.tif").touch()
    result = CliRunner().invoke(cli.app, ["submit", str(config)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pass --overwrite" in result.stderr
    assert not list((tmp_path / "out/.stackyard").glob("*driver*"))


def test_a_config_that_cannot_be_used_starts_no_driver(config, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    config.write_text(CONFIG.replace("sigma", "sigmaa"))
    result = CliRunner().invoke(cli.app, ["submit", str(config)])
    assert result.exit_code == 2
    assert "did you mean 'sigma'?" in result.stderr
