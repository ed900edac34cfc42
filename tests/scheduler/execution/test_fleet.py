"""What worker processes make up a device, and which of them gets an attempt."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from scheduler.core.model import Device, DeviceKind
from scheduler.execution.fleet import Fleet
from scheduler.execution.messages import Hello
from scheduler.execution.task import AttemptTask

CPU = Device("C", "cpu", DeviceKind.CPU, 1 << 30)
GPU = Device("G", "gpu0", DeviceKind.CUDA, 1 << 30, prefetch=1)


class Client:
    """Notes where attempts are sent."""

    status = "running"
    scheduler_comm = None

    def __init__(self) -> None:
        self.sent: list[str] = []

    def submit(self, *_: Any, workers: list[str], **__: Any) -> Any:
        self.sent += workers
        return SimpleNamespace()


def hello(address: str, device: Device = CPU, slots: int = 1) -> Hello:
    return Hello(address, address, 1, device, replace(CPU, slots=0), slots, has_nanny=True)


def task(number: int) -> AttemptTask:
    return AttemptTask(f"j{number}", "k", 1, np.zeros((1, 1, 1), np.uint8), (), (), 0, 0, None)


def test_a_cpus_processes_keep_one_job_ready_for_each_slot() -> None:
    fleet = Fleet(Client(), "topic")
    fleet.add(hello("a", slots=3))
    fleet.add(hello("b", slots=1))
    device = fleet.devices()["C"]
    assert (device.slots, device.prefetch) == (4, 4)


def test_an_attempt_may_take_what_the_most_generous_process_gives() -> None:
    fleet = Fleet(Client(), "topic")
    fleet.add(replace(hello("a"), process_bytes=100))
    assert fleet.devices()["C"].attempt_host_bytes == 100
    fleet.add(replace(hello("b"), process_bytes=300))
    assert fleet.devices()["C"].attempt_host_bytes == 300
    fleet.add(hello("without a limit"))
    assert fleet.devices()["C"].attempt_host_bytes == 0


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
        fleet.submit_attempt(task(number), device="C")
    assert sorted(client.sent[:4]) == ["one", "three", "three", "three"]
    assert sorted(client.sent) == ["one"] * 2 + ["three"] * 6
