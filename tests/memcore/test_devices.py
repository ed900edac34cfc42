"""Devices: real moves among several devices in a child process, and what a gpu_id may be."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcore import DeviceError, device_of, move_to_device, validate_gpu_id
from memcore.backends.cuda_address import pci_address

ROOT = Path(__file__).parents[2]


def needs(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")


def test_arrays_move_between_the_devices_of_one_process() -> None:
    needs("jax", "tensorflow", "pyclesperanto")
    child = Path(__file__).with_name("devices_child.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(child)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == [
        "jax 3 devices",
        "tensorflow 3 devices",
        "pyclesperanto 2 devices",
        "moves are real",
    ]


def test_numpy_ignores_gpu_id() -> None:
    assert validate_gpu_id(7, "numpy") == "cpu"
    assert validate_gpu_id(None, "numpy") == "cpu"
    array = np.ones((1, 2, 3))
    assert move_to_device(array, 3) is array
    assert device_of(array) == "cpu"


def test_torch_without_cuda_takes_only_host_memory() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    assert validate_gpu_id("cpu", "torch") == "cpu"
    if torch.cuda.is_available():
        return
    with pytest.raises(DeviceError, match="no such device here"):
        validate_gpu_id(0, "torch")


def test_one_logical_cpu_has_no_index() -> None:
    needs("jax")
    with pytest.raises(DeviceError, match="GPU device 0 not available"):
        validate_gpu_id(0, "jax")
    assert validate_gpu_id("cpu", "jax") == "cpu"


def test_opencl_arrays_do_not_live_in_host_memory() -> None:
    needs("pyclesperanto")
    with pytest.raises(DeviceError, match="host memory"):
        validate_gpu_id("cpu", "pyclesperanto")
    assert validate_gpu_id(0, "pyclesperanto") == 0


class Driver:
    """libcuda with one device, at 0000:3B:00."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: object, ordinal: int) -> int:
        return 0 if ordinal == 0 else 101

    def cuDeviceGetPCIBusId(self, text: Any, size: int, device: object) -> int:
        text.value = b"0000:3B:00.0"
        return 0


def test_the_driver_tells_the_address_of_an_ordinal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert pci_address(0) == "0000:3b:00"
    assert pci_address(1) is None


def test_without_a_driver_there_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert pci_address(0) is None
