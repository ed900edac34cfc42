"""What a worker process tells the reservation table of the memory that it holds."""

import contextlib
import fcntl
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcore import OutOfDeviceMemoryError
from pools.virtual import Charge, VirtualDeviceMemory
from scheduler.core.model import Device, DeviceKind, ProcessMemory
from scheduler.execution.activity import UPKEEP
from scheduler.execution.idle_host import OwnIdle
from scheduler.execution.run_settings import WorkerSettings
from scheduler.execution.runs_here import set_worker, unset_worker
from scheduler.execution.worker import WorkerState
from scheduler.host.reservations import Reservations
from scheduler.host.table_file import default_path
from scheduler.images.arrays import ArrayFile

MIB = 1 << 20
TAG = f"test-worker-{secrets.token_hex(3)}"
HOST = Device("CPU-localhost", "cpu", DeviceKind.CPU, 1 << 62)
VIRTUAL = Device(f"VIRTUAL-{TAG}-0", "virtual0", DeviceKind.VIRTUAL, 1000)


@pytest.fixture
def make_worker(tmp_path: Path) -> Iterator[Callable[[Device], WorkerState]]:
    """A worker's state in this process."""
    with contextlib.ExitStack() as ended:

        def make(device: Device) -> WorkerState:
            settings = WorkerSettings(TAG, str(tmp_path), (VIRTUAL, HOST), virtual_tag=TAG)
            state = WorkerState(settings, device, HOST)
            ended.callback(state.close)
            return state

        yield make
    VirtualDeviceMemory(VIRTUAL.uuid, VIRTUAL.total_bytes).unlink()


@pytest.fixture
def table() -> Iterator[Reservations]:
    """The table as the driver of the workers' run sees it."""
    with Reservations(run=TAG) as reservations:
        yield reservations


def mine(table: Reservations, device: Device) -> ProcessMemory:
    (found,) = [process for process in table.processes(device.uuid) if process.ours]
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_arrays_are_shown_to_others_once_they_are_held_for_a_while(
    make_worker: Callable[[Device], WorkerState], table: Reservations
) -> None:
    worker = make_worker(HOST)
    pool = worker.pools.pool("numpy", "cpu")
    with pool.acquire((3, 5), "uint16", job="long"):
        until(lambda: [lease.job for lease in table.leases()] == ["long"])
        with pool.acquire((3, 5), "uint16", job="short"):
            worker._report()
            assert [lease.job for lease in table.leases()] == ["long"]
    until(lambda: table.leases() == [])


def test_a_run_that_ends_leaves_no_array_of_another_shown_for_good(
    make_worker: Callable[[Device], WorkerState], table: Reservations
) -> None:
    goes_on = make_worker(HOST)
    ends = WorkerState(goes_on.settings, HOST, HOST)
    goes_on._reporter.close()  # it reports when this test says so
    set_worker("w1", goes_on)
    try:
        with goes_on.pools.pool("numpy", "cpu").acquire((3, 5), "uint16", job="young"):
            until(lambda: [lease.job for lease in table.leases()] == ["young"])
            ends.close()
        assert [lease.job for lease in table.leases()] == ["young"]
        goes_on._report()
        assert table.leases() == []
    finally:
        unset_worker("w1", goes_on.settings.topic)


def test_a_worker_that_waits_for_work_says_when_its_memory_is_back(
    make_worker: Callable[[Device], WorkerState], table: Reservations
) -> None:
    worker = make_worker(HOST)
    left_by_a_traceback = np.ones(256 * MIB, np.uint8)
    worker.report_memory()
    held = mine(table, HOST).held_bytes
    assert held > left_by_a_traceback.nbytes
    del left_by_a_traceback
    until(lambda: mine(table, HOST).held_bytes < held - 200 * MIB)


def test_a_process_that_works_no_more_holds_nothing_as_ours(
    tmp_path: Path, table: Reservations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook with a `LocalCluster` in its own process goes on when the scheduler is closed."""
    monkeypatch.setattr("scheduler.execution.worker.states_here", list)  # an earlier test's may still close
    host = replace(HOST, uuid=f"CPU-{TAG}")
    worker = WorkerState(WorkerSettings(TAG, str(tmp_path), (host,)), host, host)
    try:
        worker.report_memory()
        assert mine(table, host).held_bytes
    finally:
        worker.close()
    assert table.processes(host.uuid) == ()


def test_what_a_workers_own_threads_use_is_upkeep(make_worker: Callable[[Device], WorkerState]) -> None:
    before = set(threading.enumerate())
    make_worker(HOST)
    own = {thread.name for thread in set(threading.enumerate()) - before}
    assert own
    assert all(name.startswith(UPKEEP) for name in own), own


def test_a_reservation_is_judged_by_what_the_process_holds_now(
    make_worker: Callable[[Device], WorkerState], table: Reservations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.execution.worker.REPORT_S", 3600.0)
    worker = make_worker(HOST)
    worker.report_memory()
    before = mine(table, HOST).held_bytes
    grown = np.ones(64 * MIB, np.uint8)
    with worker.reserved("j", device_bytes=0, host_bytes=1):
        assert mine(table, HOST).held_bytes >= before + grown.nbytes // 2


def test_what_is_kept_for_the_next_job_is_no_obstacle_to_it(
    make_worker: Callable[[Device], WorkerState], table: Reservations, tmp_path: Path
) -> None:
    np.save(tmp_path / "flat.npy", np.ones((1, 64 * MIB), np.uint8))
    worker, file = make_worker(HOST), ArrayFile.of(tmp_path / "flat.npy")
    with worker.array_files.in_use([file]):
        worker.array_files.get(file)
        worker.report_memory()
        in_use = mine(table, HOST)
    worker.report_memory()
    idle = mine(table, HOST)
    assert in_use.reclaimable_bytes == 0
    assert idle.reclaimable_bytes == 64 * MIB
    with worker.reserved("j", device_bytes=0, host_bytes=64 * MIB, own=OwnIdle(files=frozenset([file]))):
        assert worker.array_files.idle_bytes == 64 * MIB, "there is room beside it"
    worker.reclaim(1)
    assert mine(table, HOST).reclaimable_bytes == 0


def test_charges_of_two_threads_add_up_in_the_table(
    make_worker: Callable[[Device], WorkerState], table: Reservations, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(VIRTUAL)
    looked, charged = threading.Barrier(2), threading.Barrier(3)
    used_by = VirtualDeviceMemory.used_by

    def look_together(self: VirtualDeviceMemory, pid: int) -> int:
        found = used_by(self, pid)
        if threading.current_thread().name.startswith("attempt"):
            with contextlib.suppress(threading.BrokenBarrierError):
                looked.wait(timeout=0.5)  # where a lock keeps the other out, nobody comes
        return found

    monkeypatch.setattr(VirtualDeviceMemory, "used_by", look_together)

    def attempt(nbytes: int) -> None:
        with worker.reserved(f"job {nbytes}", device_bytes=nbytes, host_bytes=0):
            charged.wait(timeout=30)
            charged.wait(timeout=30)

    threads = [threading.Thread(target=attempt, args=(n,), name=f"attempt {n}") for n in (300, 500)]
    for thread in threads:
        thread.start()
    charged.wait(timeout=30)
    found: Any = mine(table, VIRTUAL)
    charged.wait(timeout=30)
    for thread in threads:
        thread.join(timeout=30)
    assert (found.held_bytes, found.reserved_bytes) == (800, 800)
    until(lambda: mine(table, VIRTUAL).held_bytes == 0)


def test_nobody_sees_a_charge_without_its_note_nor_a_note_without_its_charge(
    make_worker: Callable[[Device], WorkerState], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(VIRTUAL)
    charge, lock = VirtualDeviceMemory.charge, default_path().with_suffix(".lock").open()
    kept_out: list[bool] = []

    def look_meanwhile(self: VirtualDeviceMemory, nbytes: int, owner: str = "") -> Charge:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        kept_out.append(True)
        return charge(self, nbytes, owner)

    monkeypatch.setattr(VirtualDeviceMemory, "charge", look_meanwhile)
    with lock, worker.charged(300, "job"):
        assert kept_out == [True]


def test_what_could_not_be_charged_is_not_noted(
    make_worker: Callable[[Device], WorkerState], table: Reservations
) -> None:
    worker = make_worker(VIRTUAL)
    with worker.charged(300, "fits"), pytest.raises(OutOfDeviceMemoryError), worker.charged(800, "doesn't"):
        pass
    assert [process.held_bytes for process in table.processes(VIRTUAL.uuid) if process.held_bytes > 300] == []


def test_pools_of_a_virtual_device_are_bounded_under_its_own_number(tmp_path: Path) -> None:
    """OpenCL and JAX arrays for virtual GPU 1 live on their logical device 1."""
    second = Device(f"VIRTUAL-{TAG}-1", "virtual1", DeviceKind.VIRTUAL, 2000)
    settings = WorkerSettings(TAG, str(tmp_path), (VIRTUAL, second, HOST), virtual_tag=TAG)
    state = WorkerState(settings, second, HOST)
    try:
        number = state.gpu_id("pyclesperanto")
        assert number == 1
        assert state._device_limits()[number] == second.total_bytes
    finally:
        state.close()
        for device in (VIRTUAL, second):
            VirtualDeviceMemory(device.uuid, device.total_bytes).unlink()
