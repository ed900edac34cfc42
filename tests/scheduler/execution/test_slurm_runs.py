"""Whole runs on a real Slurm by the commands: submit, status, cancel, the end of a wall time, and resume."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from scheduler.execution.slurm_commands import job_states
from tests.scheduler.slurm_node.waiting import wait_until

GATED = 3
GATE = """\
import pathlib
import time

OPEN = pathlib.Path(__file__).with_name("open")

def pass_gate(stack):
    while stack[0, 0, 0] == 1 and not OPEN.exists():
        time.sleep(0.02)
    return stack
"""
CLUSTER: dict[str, Any] = {
    "kind": "slurm",
    "cores": 1,
    "processes": 2,
    "memory": "1GiB",
    "walltime": "00:20:00",
    "interface": "lo",
}
DRIVER: dict[str, Any] = {"cores": 1, "memory": "400MiB", "walltime": "00:10:00"}


@pytest.fixture
def make_config(tmp_path: Path):
    """Writes a config of four stacks: the first passes at once, the others when there is a file `open`."""
    (tmp_path / "img").mkdir()
    for number in range(1 + GATED):
        plane = np.full((8, 9), min(number, 1), np.uint16)
        tifffile.imwrite(tmp_path / f"img/w{number}_z0.tif", plane)
    (tmp_path / "gates.py").write_text(GATE)

    def make(*, workers: tuple[str, ...] = (), driver: tuple[str, ...] = ()) -> Path:
        sections = {
            "input": {"path": "img", "pattern": "{well}_z{z}.tif"},
            "steps": [{"use": "gates:pass_gate", "declare": {"input": "numpy"}}],
            "output": {"path": "out", "name": "{well}"},
            "cluster": {
                **CLUSTER,
                "directives": [*workers],
                "driver": {**DRIVER, "directives": [*driver]},
            },
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(sections))
        return path

    return make


def stackyard(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "scheduler.screens", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def submit(config: Path) -> tuple[Path, str]:
    done = stackyard("submit", config, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    return Path(record["run_dir"]), record["slurm_job"]


def status(run_dir: Path) -> dict[str, Any]:
    done = stackyard("status", run_dir, "--json")
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def words(run_dir: Path) -> str:
    return "\n".join(f"{path.name}:\n{path.read_text()}" for path in (run_dir / "logs").iterdir())


def exit_code(job_id: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", job_id], capture_output=True, text=True, check=True)
    return next(word for word in shown.stdout.split() if word.startswith("ExitCode="))


def gone(job_id: str) -> bool:
    return all(state.ending for state in job_states(job_id=job_id))


def test_a_driver_that_waits_in_the_queue_is_cancelled_there(slurm, make_config):
    run_dir, job_id = submit(make_config(driver=("--hold",)))
    assert status(run_dir)["state"] == "queued"
    assert f"queued in Slurm as job {job_id} (JobHeldUser)" in stackyard("status", run_dir).stdout
    assert stackyard("cancel", run_dir).stdout.startswith(f"cancelled Slurm job {job_id}; ")
    assert gone(job_id)
    assert status(run_dir)["state"] == "cancelled"


def test_a_run_whose_workers_wait_in_the_queue_is_cancelled(slurm, make_config):
    run_dir, job_id = submit(make_config(workers=("--hold",)))
    wait_until(lambda: "JobHeldUser" in str(status(run_dir)), "driver at work", lambda: words(run_dir))
    assert status(run_dir)["state"] == "running"
    assert stackyard("cancel", run_dir).returncode == 0
    wait_until(lambda: gone(job_id), "end of the driver", lambda: words(run_dir))
    assert (status(run_dir)["state"], exit_code(job_id)) == ("interrupted", "ExitCode=130:0")
    assert job_states() == ()


def test_a_run_that_its_wall_time_ends_is_resumed(slurm, make_config, tmp_path):
    run_dir, job_id = submit(make_config())

    def under_way() -> bool:
        now = status(run_dir)
        return (now["state"], now.get("done"), now.get("running")) == ("running", 1, 2)

    wait_until(under_way, "run under way", lambda: words(run_dir))
    # Slurm's shortest time limit is a minute; its administrator may set a running job's end.
    subprocess.run(["scontrol", "update", f"JobId={job_id}", "EndTime=now+75"], check=True)
    wait_until(lambda: status(run_dir)["state"] == "stopping", "stop", lambda: words(run_dir))
    (tmp_path / "open").touch()
    wait_until(lambda: gone(job_id), "end", lambda: words(run_dir))
    now = status(run_dir)
    assert (now["state"], now["done"], exit_code(job_id)) == ("interrupted", 3, "ExitCode=130:0")

    done = stackyard("resume", run_dir, "--json")
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["jobs"], json.loads(done.stdout)["done"]) == (1 + GATED, 1 + GATED)
    for number in range(1 + GATED):
        assert (tifffile.imread(tmp_path / f"out/w{number}.ome.tif") == min(number, 1)).all()
    assert job_states() == ()
