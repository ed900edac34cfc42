"""One attempt in one process: what it is called, whose fault it is, and how long it took."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from pools.virtual import VirtualDeviceMemory
from scheduler.core.events import Done, Failed, Outcome, OutOfMemory, Refused
from scheduler.core.model import Device, DeviceKind
from scheduler.execution.activity import Attempts
from scheduler.execution.attempt import run_attempt
from scheduler.execution.run_settings import WorkerSettings
from scheduler.execution.task import AttemptTask, OutputTarget
from scheduler.execution.worker import WorkerState
from scheduler.images.sources import find_stacks
from scheduler.steps.resolve import StepSpec

TAG = f"test-attempt-{secrets.token_hex(3)}"
HOST = Device("CPU-localhost", "cpu", DeviceKind.CPU, 1 << 62)
GPU = Device(f"VIRTUAL-{TAG}-0", "virtual0", DeviceKind.VIRTUAL, 1 << 20)

Begin = Callable[..., WorkerState]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Make this process a worker of a device."""
    with contextlib.ExitStack() as ended:

        def make(device: Device, host: Device = HOST) -> WorkerState:
            settings = WorkerSettings(TAG, str(tmp_path), (GPU, host), virtual_tag=TAG)
            state = WorkerState(settings, device, host)
            ended.callback(state.close)
            monkeypatch.setattr("scheduler.execution.attempt.current_worker", lambda: state)
            return state

        yield make
    VirtualDeviceMemory(GPU.uuid, GPU.total_bytes).unlink()


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[str], Outcome]:
    """Run one attempt whose only step has this body."""
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", np.full((2, 5, 7), 3, np.uint8))
    (source,) = find_stacks(tmp_path / "in", "{name}.tif")

    def run(body: str) -> Outcome:
        (tmp_path / "tried.py").write_text(f"import sys\nimport numpy as np\ndef step(stack):\n    {body}\n")
        spec = StepSpec("tried:step", declare={"input": "numpy"}, search_path=(str(tmp_path),))
        output = OutputTarget(str(tmp_path / "out.ome.tif"), "ome-tiff", False, {})
        task = AttemptTask("name-a", "kind", 1, source, (spec,), ("numpy",), 100, 1000, output)
        report, _ = run_attempt(task)
        return report.outcome

    return run


def test_host_memory_that_runs_out_in_a_gpus_worker_is_the_hosts(
    begin: Begin, attempt: Callable[[str], Outcome]
) -> None:
    begin(GPU)
    outcome = attempt("return np.ones(1 << 60, np.uint8)")
    assert isinstance(outcome, OutOfMemory)
    assert outcome.on_host


def test_device_memory_that_runs_out_is_the_devices(begin: Begin, attempt: Callable[[str], Outcome]) -> None:
    begin(GPU)
    raised = "memcore.OutOfDeviceMemoryError('full', device='x', requested=1, free=0, capacity=1)"
    outcome = attempt(f"import memcore; raise {raised}")
    assert isinstance(outcome, OutOfMemory)
    assert not outcome.on_host


def test_a_refusal_by_the_host_says_nothing_of_the_device(
    begin: Begin, attempt: Callable[[str], Outcome]
) -> None:
    begin(GPU, host=replace(HOST, total_bytes=1))
    outcome = attempt("return stack")
    assert isinstance(outcome, Refused)
    assert "needs 0.9766 KiB" in outcome.reason
    assert outcome.snapshot is None


def test_a_step_that_exits_fails_its_job_and_not_the_worker(
    begin: Begin, attempt: Callable[[str], Outcome]
) -> None:
    begin(HOST)
    outcome = attempt("sys.exit('no licence')")
    assert isinstance(outcome, Failed)
    assert "step step failed" in outcome.error
    assert "SystemExit: no licence" in outcome.error


def test_waiting_for_a_neighbours_computation_is_no_part_of_the_duration(
    begin: Begin, attempt: Callable[[str], Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(HOST)
    clock = [0.0]

    @contextlib.contextmanager
    def neighbour_computes() -> Iterator[None]:
        clock[0] += 100.0
        yield
        clock[0] += 7.0

    times = SimpleNamespace(monotonic=lambda: clock[0], time=lambda: 0.0, strftime=lambda _format: "now")
    monkeypatch.setattr("scheduler.execution.attempt.time", times)
    monkeypatch.setattr(Attempts, "turn", lambda *_: neighbour_computes())
    outcome = attempt("return stack")
    assert isinstance(outcome, Done)
    assert outcome.duration_s == 7.0
