"""Devices and memory types as a person and as a script see them."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from memcore import BackendStatus, DeviceInfo
from scheduler.execution.status import DeviceStatus
from scheduler.screens.backend_probe import probe_backends
from scheduler.screens.devices import devices_json, draw_devices

BACKENDS = {
    "numpy": BackendStatus("numpy", True, "2.4.6", (DeviceInfo("cpu", "cpu", "host memory"),), None),
    "cupy": BackendStatus("cupy", False, None, (), "cupy isn't installed; install it with: pip install [x]"),
}


def lines_of(devices: list[DeviceStatus], notes: list[str] | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=140)
    console.print(draw_devices(devices, BACKENDS, notes or []))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_memory_of_each_device(gpu):
    assert lines_of([gpu])[:2] == [
        "device kind total free ours reserved ours idle external",
        "gpu0 cuda 24 GiB 10 GiB 8 GiB 2 GiB 4 GiB GPU-1",
    ]


def test_a_device_without_an_answer_says_unknown_and_why(gpu):
    lost = replace(gpu, free_bytes=None, external_bytes=24 << 30, problem="NVML: GPU is lost")
    assert lines_of([lost])[1] == "gpu0 cuda 24 GiB unknown 8 GiB 2 GiB unknown NVML: GPU is lost"


def test_notes_and_backends_with_the_way_to_install_one():
    lines = lines_of([], ["no NVIDIA driver"])
    assert lines[1:] == [
        "no NVIDIA driver",
        "",
        "memory type version",
        "numpy 2.4.6 host memory",
        "cupy – cupy isn't installed; install it with: pip install [x]",
    ]


def test_json_is_bytes_and_nulls(gpu):
    record = json.loads(json.dumps(devices_json([replace(gpu, free_bytes=None)], BACKENDS, ["note"])))
    assert record["devices"] == [
        {
            "name": "gpu0",
            "uuid": "GPU-1",
            "kind": "cuda",
            "virtual": False,
            "total_bytes": 24 << 30,
            "free_bytes": None,
            "reserved_bytes": 8 << 30,
            "idle_bytes": 2 << 30,
            "external_bytes": 4 << 30,
            "problem": "",
        }
    ]
    assert record["backends"]["cupy"]["reason"] == BACKENDS["cupy"].reason
    assert record["backends"]["numpy"]["devices"][0]["name"] == "host memory"
    assert record["notes"] == ["note"]


def test_numpy_is_found_by_a_process_of_its_own():
    import numpy as np

    (status,) = probe_backends("numpy").values()
    assert (status.memory_type, status.available, status.version) == ("numpy", True, np.__version__)
    assert [device.gpu_id for device in status.devices] == ["cpu"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import os; os.abort()", "importing torch ends the process (signal 6)"),
        ("import sys; sys.exit('no driver')", "importing torch ends the process (status 1): no driver"),
        ("raise OSError('libcuda.so.1: bad ELF')", "libcuda.so.1: bad ELF"),
        ("import time; time.sleep(600)", "importing torch took longer than 2 s"),
    ],
)
def test_a_library_that_breaks_its_process_is_named(tmp_path, monkeypatch, body, reason):
    (tmp_path / "torch.py").write_text(f"print('{{noise')\n{body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (status,) = probe_backends("torch", timeout_s=2.0 if "sleep" in body else 60.0).values()
    assert not status.available
    assert reason in (status.reason or "")
