"""Frameworks that are installed but see no such device give way to the next best, and it is said why."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memcore import backend_of
from scheduler.core.model import DeviceKind
from scheduler.execution.usable import installed
from tests.scheduler.host import fake_nvml

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_beside_gpus(tmp_path: Path, write_config: Callable[..., Path]) -> Run:
    """Run a config on a machine with a driver and two GPUs, which none of its frameworks can use."""
    folder = tmp_path / "driver"
    folder.mkdir()
    try:
        fake_nvml.build(folder)
    except FileNotFoundError as error:
        pytest.skip(f"needs a C compiler: {error}")
    fake_nvml.new_state(folder / "state")
    found = os.pathsep.join([str(folder), os.environ.get("LD_LIBRARY_PATH", "")])
    environment = {**os.environ, "LD_LIBRARY_PATH": found, "FAKE_NVML_STATE": str(folder / "state")}

    def run(**sections: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scheduler.screens", "run", str(write_config(**sections)), "--json"]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=240, check=False
        )

    return run


def test_only_libraries_of_the_right_sort_are_considered() -> None:
    every = ("numpy", "cupy", "pyclesperanto", "jax")
    on_cpu = installed(every, DeviceKind.CPU)
    assert "numpy" in on_cpu
    assert not {"cupy", "pyclesperanto"} & set(on_cpu)
    assert not {"numpy", "cupy"} & set(installed(every, DeviceKind.VIRTUAL))


@pytest.mark.skipif(not backend_of("torch").installed(), reason="needs torch")
def test_a_framework_without_cuda_leaves_the_gpus_to_nobody_and_the_work_to_the_cpu(
    run_beside_gpus: Run,
) -> None:
    steps = [{"use": "gaussian", "with": {"sigma": 1.0}, "memory": ["torch", "numpy"]}]
    done = run_beside_gpus(steps=steps)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert {name: device["jobs"] for name, device in summary["devices"].items()} == {
        "gpu0": 0,
        "gpu1": 0,
        "cpu": 4,
    }


@pytest.mark.skipif(not backend_of("torch").installed(), reason="needs torch")
def test_without_a_cpu_the_reason_is_in_the_refusal(run_beside_gpus: Run) -> None:
    steps = [{"use": "gaussian", "with": {"sigma": 1.0}, "memory": ["torch"]}]
    refused = run_beside_gpus(steps=steps, devices={"gpus": [1], "cpu": False})
    assert refused.returncode == 2
    assert "torch sees no such device in the worker of gpu1" in refused.stderr
