"""Devices and memory types as a person and as a script see them."""

import io
import json

import pynvml
import pytest
from rich.console import Console
from typer.testing import CliRunner

from memcore import BackendStatus, DeviceInfo
from pools.process import ProcessId
from scheduler.core.model import Device, DeviceKind, DeviceSnapshot, ProcessMemory
from scheduler.host.reading import Reading
from scheduler.host.reservations import Grant, Reservations
from scheduler.host.rows import LeaseRow, ReservationRow
from scheduler.screens import cli
from scheduler.screens.backend_probe import probe_backends
from scheduler.screens.devices import HostView, draw_host, host_json

BACKENDS = {
    "numpy": BackendStatus("numpy", True, "2.4.6", (DeviceInfo("cpu", "cpu", "host memory"),), None),
    "cupy": BackendStatus("cupy", False, None, (), "cupy isn't installed; install it with: pip install [x]"),
}


GPU = Device("GPU-1", "gpu0", DeviceKind.CUDA, 24 << 30, model="NVIDIA H200")
ROW = ReservationRow("GPU-1", ProcessId(4711, 1, 1), 8 << 30, "A01_s1", "out/.stackyard/1")


def snapshot_of(used_gib: int | None, problem: str = "") -> DeviceSnapshot:
    ours = ProcessMemory(4711, held_bytes=10 << 30, reclaimable_bytes=2 << 30, reserved_bytes=8 << 30)
    used = None if used_gib is None else used_gib << 30
    return DeviceSnapshot("GPU-1", 24 << 30, used, (ours,), problem)


def lines_of(view: HostView, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(draw_host(view))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 100])
def test_memory_of_each_device(width):
    assert lines_of(HostView([(GPU, snapshot_of(14))], {}), width)[:3] == [
        "device kind total free ours idle ours reserved external",
        "gpu0 cuda 24 GiB 10 GiB 2 GiB 8 GiB 4 GiB",
        "gpu0: NVIDIA H200, GPU-1",
    ]


def test_a_device_without_an_answer_says_unknown_and_why():
    assert lines_of(HostView([(GPU, snapshot_of(None, "NVML: GPU is lost"))], {}))[1:3] == [
        "gpu0 cuda 24 GiB unknown 2 GiB 8 GiB unknown",
        "gpu0: NVML: GPU is lost",
    ]


def test_notes_backends_with_the_way_to_install_one_and_reservations():
    assert lines_of(HostView([], BACKENDS, [ROW], ["no NVIDIA driver"]))[1:] == [
        "no NVIDIA driver",
        "",
        "memory type version",
        "numpy 2.4.6 host memory",
        "cupy – cupy isn't installed; install it with: pip install [x]",
        "",
        "reserved on job bytes process run",
        "GPU-1 A01_s1 8 GiB 4711 out/.stackyard/1",
    ]


def test_leases_tell_who_holds_what_and_for_how_long(monkeypatch):
    monkeypatch.setattr("scheduler.screens.devices.time", lambda: 1065.0)
    lease = LeaseRow(4711, "numpy uint16 (3, 5, 7)", "cpu", 4096, "A01_s1", "gaussian", 1000.0)
    view = HostView([], BACKENDS, leases=[lease])
    assert lines_of(view)[-2:] == [
        "lent job bytes held for step process",
        "numpy uint16 (3, 5, 7) on cpu A01_s1 4 KiB 1 min 05 s gaussian 4711",
    ]
    (record,) = host_json(view)["leases"]
    assert (record["job"], record["step"], record["age_s"]) == ("A01_s1", "gaussian", 65.0)


def test_json_is_bytes_and_nulls():
    view = HostView([(GPU, snapshot_of(None, "lost")), (GPU, snapshot_of(14))], BACKENDS, [ROW], ["note"])
    record = json.loads(json.dumps(host_json(view)))
    known = {
        "name": "gpu0",
        "uuid": "GPU-1",
        "kind": "cuda",
        "model": "NVIDIA H200",
        "virtual": False,
        "total_bytes": 24 << 30,
        "free_bytes": 10 << 30,
        "idle_bytes": 2 << 30,
        "reserved_bytes": 8 << 30,
        "external_bytes": 4 << 30,
        "problem": "",
    }
    assert record["devices"] == [
        known | {"free_bytes": None, "external_bytes": None, "problem": "lost"},
        known,
    ]
    assert record["backends"]["cupy"]["reason"] == BACKENDS["cupy"].reason
    assert record["backends"]["numpy"]["devices"][0]["name"] == "host memory"
    assert record["reservations"] == [
        {"device": "GPU-1", "bytes": 8 << 30, "job": "A01_s1", "run": "out/.stackyard/1", "pid": 4711}
    ]
    assert record["notes"] == ["note"]


def test_this_host(monkeypatch):
    """For real, but for the slow libraries: the host's memory is there whatever GPUs there are."""
    from scheduler.screens import devices_command

    monkeypatch.setattr(devices_command, "probe_backends", lambda: BACKENDS)
    result = CliRunner().invoke(cli.app, ["devices", "--json"])
    assert result.exit_code == 0, result.output
    (cpu,) = (device for device in json.loads(result.stdout)["devices"] if device["kind"] == "cpu")
    assert 0 < cpu["free_bytes"] <= cpu["total_bytes"]
    screen = CliRunner().invoke(cli.app, ["devices"]).output
    assert "memory type" in screen
    assert "\x1b" not in screen


def devices_of(monkeypatch) -> tuple[dict, str]:
    """The devices command's JSON and screen, without the slow libraries."""
    from scheduler.screens import devices_command

    monkeypatch.setattr(devices_command, "probe_backends", lambda: BACKENDS)
    record, screen = (CliRunner().invoke(cli.app, ["devices", *form]) for form in (["--json"], []))
    assert (record.exit_code, screen.exit_code) == (0, 0), record.output
    return json.loads(record.stdout), screen.stdout


def test_gpus_of_an_nvidia_driver_and_one_that_is_lost(nvml, monkeypatch):
    nvml.gpus[0].memory.used = 3 << 30
    nvml.gpus[1].error = pynvml.NVML_ERROR_GPU_IS_LOST
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    record, screen = devices_of(monkeypatch)
    gpu0, *others = record["devices"]
    assert [device["kind"] for device in (gpu0, *others)][-1] == "cpu"
    assert (gpu0["name"], gpu0["kind"], gpu0["model"]) == ("gpu0", "cuda", "Fake GPU")
    # The driver keeps 256 MiB for itself.
    assert gpu0["external_bytes"] == (3 << 30) + (256 << 20)
    assert gpu0["free_bytes"] == gpu0["total_bytes"] - gpu0["external_bytes"]
    assert "lost" in " ".join([*record["notes"], *(device["problem"] for device in others)])
    assert "lost" in screen
    assert "gpu0: Fake GPU, GPU-00000000-" in screen
    assert "No NVIDIA GPU is visible here" not in screen


def test_a_broken_driver_is_named(nvml, monkeypatch):
    nvml.init_error = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    record, screen = devices_of(monkeypatch)
    assert [device["kind"] for device in record["devices"]] == ["cpu"]
    (note,) = record["notes"]
    assert note.startswith("the NVIDIA driver doesn't work: ")
    assert "the NVIDIA driver doesn't work" in screen


def test_reservations_of_runs_are_shown(monkeypatch):
    from scheduler.screens import devices_command

    monkeypatch.setattr(devices_command, "probe_backends", lambda: BACKENDS)
    with Reservations(run="a run") as table:
        grant = table.reserve(
            "a job of the tests",
            {"VIRTUAL-of-the-tests": 5 << 20},
            read=lambda uuid: Reading(uuid, 1 << 30, 0),
        )
        assert isinstance(grant, Grant)
        try:
            assert "a job of the tests" in CliRunner().invoke(cli.app, ["devices"]).stdout
        finally:
            table.release(grant)


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
