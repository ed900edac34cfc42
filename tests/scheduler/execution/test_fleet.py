"""What worker processes make up a device, and which of them gets an attempt."""

from dataclasses import replace
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scheduler.core.events import Refused
from scheduler.core.model import Device, DeviceKind
from scheduler.execution.fleet import READY, Fleet
from scheduler.execution.jobs import Chain
from scheduler.execution.messages import Hello
from scheduler.execution.task import AttemptTask
from scheduler.execution.usable import Planner
from scheduler.steps.errors import StepError
from scheduler.steps.resolve import StepSpec

CPU = Device("C", "cpu", DeviceKind.CPU, 1 << 30)
GPU = Device("G", "gpu0", DeviceKind.CUDA, 1 << 30, prefetch=1)


class Client:
    """Notes where attempts are sent."""

    status = "running"
    scheduler_comm = None

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.restarted: list[str] = []
        self.answers = Event()

    def run(self, function: Any, *_: Any, workers: list[str], wait: bool = True, **__: Any) -> dict[str, Any]:
        if wait:
            assert self.answers.wait(30.0)
        return {address: {} for address in workers}

    def restart_workers(self, workers: list[str], **_: Any) -> None:
        self.restarted += workers
        self.answers.set()

    def submit(self, *_: Any, workers: list[str], **__: Any) -> Any:
        self.sent += workers
        return SimpleNamespace()


def hello(address: str, device: Device = CPU, slots: int = 1) -> Hello:
    return Hello(address, address, address, 1, device, replace(CPU, slots=0), slots, has_nanny=True)


def task(number: int) -> AttemptTask:
    return AttemptTask(f"j{number}", "k", 1, np.zeros((1, 1, 1), np.uint8), (), (), 0, 0, None)


def test_a_cpus_processes_keep_jobs_ready_for_each_slot() -> None:
    fleet = Fleet(Client(), "topic")
    fleet.add(hello("a", slots=3))
    fleet.add(hello("b", slots=1))
    device = fleet.devices()["C"]
    assert (device.slots, device.prefetch) == (4, 4 * READY)


def test_an_attempt_may_take_what_the_most_generous_process_gives() -> None:
    fleet = Fleet(Client(), "topic")
    fleet.add(replace(hello("a"), process_bytes=100))
    assert fleet.devices()["C"].attempt_host_bytes == 100
    fleet.add(replace(hello("b"), process_bytes=300))
    assert fleet.devices()["C"].attempt_host_bytes == 300
    fleet.add(hello("without a limit"))
    assert fleet.devices()["C"].attempt_host_bytes == 0


def test_a_process_too_small_for_an_attempt_refuses_it() -> None:
    client = Client()
    fleet = Fleet(client, "topic")
    fleet.add(replace(hello("a"), process_bytes=1 << 20))
    refused = fleet.give(replace(task(1), host_bytes=(1 << 20) + 1), device="C")
    assert isinstance(refused, Refused)
    assert "no worker process there may take more than 1 MiB" in refused.reason
    assert client.sent == []
    fleet.give(replace(task(2), host_bytes=1 << 20), device="C")
    fleet.send()
    assert client.sent == ["a"]


def test_a_gpus_window_is_its_own() -> None:
    fleet = Fleet(Client(), "topic")
    fleet.add(hello("a", GPU, slots=1))
    assert fleet.devices()["G"] == GPU
    assert fleet.devices()["C"].prefetch == 0


def test_attempts_go_where_there_is_least_to_do_for_each_slot() -> None:
    client = Client()
    fleet = Fleet(client, "topic")
    fleet.add(hello("one", slots=1))
    fleet.add(hello("three", slots=3))
    for number in range(8):
        fleet.give(task(number), device="C")
        fleet.send()
    assert sorted(client.sent[:4]) == ["one", "three", "three", "three"]
    assert sorted(client.sent) == ["one"] * 2 + ["three"] * 6


def test_a_process_that_does_not_answer_is_not_waited_for() -> None:
    fleet = Fleet(Client(), "topic")
    process = fleet.add(hello("a", GPU))
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        fleet.run_on(process, len, timeout_s=0.01)
    fleet.client.answers.set()
    assert fleet.run_on(process, len, timeout_s=30.0) == {}


def test_a_library_that_hangs_a_gpus_worker_is_not_used_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.usable.ANSWER_S", 0.01)
    client, remarks, hints = Client(), list[str](), list[str]()
    fleet = Fleet(client, "topic")
    fleet.add(replace(hello("g", GPU), installed=("torch",)))
    chain = Chain.of([StepSpec("gaussian", {"sigma": 1.0}, memory=("torch",))])
    with pytest.raises(StepError, match="the worker of gpu0 hung when it loaded torch"):
        Planner(fleet, remarks.append, hints.append).plans(chain, (("stack", ((2, 3, 5), "uint16")),))
    assert client.answers.wait(30.0)
    assert client.restarted == ["g"]
    assert hints == ["the worker of gpu0 tries torch", ""]
    assert remarks == ["the worker of gpu0 hung when it loaded torch: no answer within 0.01 s"]
