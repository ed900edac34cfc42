"""Attempts at steps with state, in one worker process: what is reserved, evicted and measured."""

import contextlib
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pools.virtual import VirtualDeviceMemory
from scheduler.core.events import Done, Failed, OutOfMemory, Refused
from scheduler.core.model import Device, DeviceKind
from scheduler.execution.attempt import run_attempt
from scheduler.execution.jobs import Chain
from scheduler.execution.residents import Use
from scheduler.execution.task import AttemptReport, AttemptTask
from scheduler.execution.worker import WorkerSettings, WorkerState
from scheduler.steps.resolve import StepSpec

pytest.importorskip("torch", reason="needs torch")

TAG = f"test-state-{secrets.token_hex(3)}"
NAME = "stackyard_kept_steps"
MIB = 1 << 20
HOST = Device("CPU-localhost", "cpu", DeviceKind.CPU, 1 << 62)
GPU = Device(f"VIRTUAL-{TAG}-0", "virtual0", DeviceKind.VIRTUAL, 10 * MIB)
MODULE = """
class Model:
    declare = {"input": "torch"}
    resident_bytes = "6MiB"

    def __init__(self, *, weights: str = "small", fails: str = ""):
        self.fails = fails

    def setup(self, context):
        if self.fails == "setup":
            raise OSError("no weights")

    def __call__(self, stack):
        if self.fails == "call":
            from memcore import OutOfDeviceMemoryError
            raise OutOfDeviceMemoryError("full", requested=1, free=0, capacity=1)
        return stack
"""


class Worker:
    """This process as the worker of a virtual device of 10 MiB, and attempts at jobs in it."""

    def __init__(self, folder: Path, told: list[str]) -> None:
        settings = WorkerSettings(TAG, str(folder), (GPU, HOST), virtual_tag=TAG)
        self.state = WorkerState(settings, GPU, HOST, on_evicted=lambda name, _: told.append(name))
        self.folder = folder
        self.told = told

    def spec(self, **given: Any) -> StepSpec:
        return StepSpec(f"{NAME}:Model", given, search_path=(str(self.folder),))

    def run(self, *, device_bytes: int = MIB, **given: Any) -> AttemptReport:
        stack = np.ones((2, 3, 5), np.uint8)
        specs, types = (self.spec(**given),), ("torch",)
        task = AttemptTask("job", "kind", 1, stack, specs, types, device_bytes, MIB, None)
        report, _ = run_attempt(task)
        return report

    @property
    def charged(self) -> int:
        return self.state.virtual_memory().used()


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    path = list(sys.path)
    with contextlib.ExitStack() as ended:
        found = Worker(tmp_path, [])
        ended.callback(found.state.close)
        monkeypatch.setattr("scheduler.execution.attempt.current_worker", lambda: found.state)
        yield found
    VirtualDeviceMemory(GPU.uuid, GPU.total_bytes).unlink()
    sys.path[:] = path
    sys.modules.pop(NAME, None)


def test_state_is_charged_to_the_device_for_as_long_as_it_is_there(worker: Worker) -> None:
    assert isinstance(worker.run().outcome, Done)
    (name,) = worker.state.residents.names()
    assert worker.charged == 6 * MIB
    assert worker.state.residents.evict(name)
    assert worker.charged == 0


def test_idle_state_makes_room_for_another_job_and_that_is_told(worker: Worker) -> None:
    worker.run(weights="first")
    (first,) = worker.state.residents.names()
    assert isinstance(worker.run(weights="second", device_bytes=3 * MIB).outcome, Done)
    assert worker.told == [first]
    assert first not in worker.state.residents.names()


def test_an_attempt_does_not_make_its_room_of_the_state_that_it_needs(worker: Worker) -> None:
    worker.run()
    outcome = worker.run(device_bytes=5 * MIB).outcome
    assert isinstance(outcome, Refused)
    assert worker.told == []
    assert len(worker.state.residents.names()) == 1


def test_a_setup_that_fails_is_the_jobs_failure_by_name_and_reserves_nothing(worker: Worker) -> None:
    outcome = worker.run(fails="setup").outcome
    assert isinstance(outcome, Failed)
    assert outcome.error == "setup of step Model failed: OSError: no weights"
    assert "OSError" in outcome.key
    assert worker.charged == 0


def test_what_a_job_reached_is_without_the_state(worker: Worker) -> None:
    outcome = worker.run(fails="call").outcome
    assert isinstance(outcome, OutOfMemory)
    assert outcome.peak_bytes == 0
    assert worker.charged == 6 * MIB


def test_setting_up_is_no_part_of_a_jobs_time(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def after_a_thousand_seconds(*_: Any) -> Iterator[Use]:
        yield Use(1000.0)

    monkeypatch.setattr(worker.state.residents, "in_use", after_a_thousand_seconds)
    report = worker.run()
    assert isinstance(report.outcome, Done)
    assert report.outcome.duration_s is not None
    # By the clock hardly any time has passed.
    assert report.outcome.duration_s < -900
    assert report.times["compute_s"] < -900
    assert report.times["setup_s"] == 1000.0


def test_metadata_names_what_the_constructor_was_given(worker: Worker) -> None:
    (step,) = worker.run(weights="large").steps
    assert step.parameters == {"weights": "large"}


def test_chains_with_other_state_are_of_another_kind(worker: Worker) -> None:
    digests = {Chain.of([worker.spec(weights=name)]).digest for name in ("small", "large", "small")}
    assert len(digests) == 2
