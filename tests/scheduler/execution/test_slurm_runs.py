"""Whole runs on a real Slurm: submitted, looked at, cancelled, ended by their wall time, and resumed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from typer.testing import CliRunner

from scheduler.config import RunConfig, load_config
from scheduler.execution.slurm_commands import job_states, sbatch
from scheduler.execution.slurm_scripts import driver_script
from scheduler.screens import cli
from tests.scheduler.slurm_node.waiting import wait_until

GATED = 5
GATE = """\
import pathlib
import time

OPEN = pathlib.Path(__file__).with_name("open")

def pass_gate(stack):
    while stack[0, 0, 0] == 1 and not OPEN.exists():
        time.sleep(0.02)
    return stack
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Six stacks: the first passes at once, the others when there is a file `open`, two at a time."""
    (tmp_path / "img").mkdir()
    for number in range(1 + GATED):
        plane = np.full((8, 9), min(number, 1), np.uint16)
        tifffile.imwrite(tmp_path / f"img/w{number}_z0.tif", plane)
    (tmp_path / "gates.py").write_text(GATE)
    sections = {
        "input": {"path": "img", "pattern": "{well}_z{z}.tif"},
        "steps": [{"use": "gates:pass_gate", "declare": {"input": "numpy"}}],
        "output": {"path": "out", "name": "{well}"},
        "cluster": {
            "kind": "slurm",
            "cores": 1,
            "processes": 2,
            "memory": "2500MiB",
            "walltime": "00:20:00",
            "interface": "lo",
            "driver": {"cores": 1, "memory": "400MiB", "walltime": "00:10:00"},
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def submit(config: RunConfig, *arguments: str) -> str:
    folder = config.output.path.parent
    command = [sys.executable, "-m", "scheduler.screens", *arguments]
    return sbatch(driver_script(config.cluster, command, log=folder / "driver-%j.log", folder=folder))


def status(run: Path) -> dict[str, object]:
    result = CliRunner().invoke(cli.app, ["status", str(run), "--json"])
    return json.loads(result.stdout) if result.exit_code == 0 else {"state": result.stderr}


def test_a_run_cancelled_then_ended_by_its_wall_time_then_resumed(slurm, config, tmp_path):
    loaded, out = load_config(config), tmp_path / "out"

    def under_way(done: int) -> bool:
        now = status(out)
        return (now["state"], now.get("done"), now.get("running")) == ("running", done, 2)

    def logs() -> str:
        return "\n".join(path.read_text() for path in tmp_path.glob("driver-*.log"))

    def gone(job_id: str) -> bool:
        return all(state.ending for state in job_states(job_id=job_id))

    # Submitted and cancelled: what runs ends, what waits is left.
    job_id = submit(loaded, "run", str(config))
    wait_until(lambda: under_way(1), "first run under way", logs)
    assert CliRunner().invoke(cli.app, ["cancel", str(out)]).exit_code == 0
    wait_until(lambda: status(out)["state"] == "stopping", "stop", logs)
    (tmp_path / "open").touch()
    wait_until(lambda: gone(job_id), "end", logs)
    assert (status(out)["state"], status(out)["done"]) == ("interrupted", 3)

    # Resumed, and at the end of its wall time told to stop by Slurm.
    (tmp_path / "open").unlink()
    job_id = submit(loaded, "resume", str(out))
    wait_until(lambda: under_way(3), "resumed run under way", logs)
    # Slurm's shortest time limit is a minute; its administrator may set a running job's end.
    subprocess.run(["scontrol", "update", f"JobId={job_id}", "EndTime=now+75"], check=True)
    wait_until(lambda: status(out)["state"] == "stopping", "stop", logs)
    (tmp_path / "open").touch()
    wait_until(lambda: gone(job_id), "end", logs)
    assert (status(out)["state"], status(out)["done"]) == ("interrupted", 5)
    shown = subprocess.run(["scontrol", "show", "job", job_id], capture_output=True, text=True, check=True)
    assert "ExitCode=130:0" in shown.stdout

    # And what is left is done from the shell.
    command = [sys.executable, "-m", "scheduler.screens", "resume", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["jobs"], json.loads(done.stdout)["done"]) == (6, 6)
    for number in range(1 + GATED):
        assert (tifffile.imread(out / f"w{number}.ome.tif") == min(number, 1)).all()
    assert job_states() == ()
