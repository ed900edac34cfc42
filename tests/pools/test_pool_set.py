"""A set of pools: shared limits, who holds what, and what comes back in which order."""

import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcore.errors import DeviceError
from memcore.info import DeviceInfo, MemoryHeld
from pools import (
    ArrayPool,
    ForkedPoolError,
    PoolExhaustedError,
    PoolSet,
    VirtualDeviceMemory,
    coordinator,
    held_by,
)
from pools.host_store import HostStore

KIB = 1 << 10


@pytest.fixture
def pools() -> Iterator[PoolSet]:
    with PoolSet("64KiB") as made:
        yield made


def test_one_pool_for_each_memory_type_and_device(pools: PoolSet) -> None:
    pytest.importorskip("torch", reason="needs torch")
    assert pools.pool("numpy", 0) is pools.pool("numpy", "cpu")
    assert pools.pool("torch", "cpu") is pools.pool("torch", "cpu")
    assert pools.pool("torch", "cpu") is not pools.pool("numpy", "cpu")


def test_pools_of_a_device_share_its_limit(pools: PoolSet) -> None:
    pytest.importorskip("torch", reason="needs torch")
    with pools.pool("numpy", "cpu").acquire(40 * KIB, "uint8"), pytest.raises(PoolExhaustedError):
        pools.pool("torch", "cpu").acquire(30 * KIB, "uint8")
    with pools.pool("torch", "cpu").acquire(64 * KIB, "uint8"):
        assert pools.stats().bytes_held == 64 * KIB


def test_figures_speak_for_all(pools: PoolSet) -> None:
    pytest.importorskip("torch", reason="needs torch")
    for memory_type in ("numpy", "torch"):
        for _ in range(2):
            with pools.pool(memory_type, "cpu").acquire(KIB, "uint8"):
                pass
    stats = pools.stats()
    assert (stats.hits, stats.misses, stats.bytes_idle, stats.hit_rate) == (2, 2, 2 * KIB, 0.5)
    assert pools.stats_by_pool()["torch", "cpu"].misses == 1


@pytest.mark.parametrize("memory_type", ["cupy", "nonsense"])
def test_what_can_not_be_pooled_here(pools: PoolSet, memory_type: str) -> None:
    with pytest.raises((ImportError, TypeError)):
        pools.pool(memory_type, 0)


def test_a_device_without_a_limit_is_refused(pools: PoolSet) -> None:
    pytest.importorskip("pyclesperanto", reason="needs pyclesperanto")
    with pytest.raises(ValueError, match="device_limits"):
        pools.pool("pyclesperanto", 0)


def test_a_device_that_is_not_there() -> None:
    pytest.importorskip("torch", reason="needs torch")
    with pytest.raises(ValueError, match="99"):
        PoolSet("1MiB", {99: "1MiB"}).pool("torch", 99)


@pytest.mark.parametrize("gpu_id", [None, True, "0", 1.0, -1])
def test_what_is_no_device(gpu_id: Any) -> None:
    pytest.importorskip("torch", reason="needs torch")
    pools = PoolSet("1MiB", {0: "1MiB", 1: "1MiB"})
    with pytest.raises(DeviceError, match=r"gpu_id|not available"):
        pools.pool("torch", gpu_id)
    assert pools.pool("numpy", gpu_id) is pools.pool("numpy", 0)


class Backend:
    """Says where its arrays could live."""

    memory_type = "framework"

    def __init__(self, *places: DeviceInfo) -> None:
        self.places = places

    def devices(self) -> tuple[DeviceInfo, ...]:
        return self.places

    def validate_gpu_id(self, gpu_id: Any) -> Any:
        if gpu_id not in {place.gpu_id for place in self.places}:
            raise DeviceError(f"no {gpu_id}")
        return gpu_id


HOST = DeviceInfo("cpu", "cpu", "host memory")
GPU = DeviceInfo(0, "gpu", "a real one", "0000:01:00")
OPENCL = DeviceInfo(0, "gpu", "pthread", None)
LOGICAL = DeviceInfo(0, "cpu", "logical CPU 0")


@pytest.mark.parametrize(
    ("places", "stand_in"),
    [
        ((HOST,), "cpu"),
        ((HOST, GPU), "cpu"),
        ((HOST, LOGICAL), 0),
        ((OPENCL,), 0),
        ((GPU,), None),
        ((), None),
    ],
)
def test_what_stands_in_for_a_virtual_device(tmp_path: Path, places: Any, stand_in: Any) -> None:
    device = VirtualDeviceMemory(tmp_path / "device", "64KiB")
    backend: Any = Backend(*places)
    pools = PoolSet("1MiB", virtual_devices={0: device})
    if stand_in is None:
        with pytest.raises(DeviceError):
            pools._place(backend, 0)
    else:
        assert pools._place(backend, 0) == stand_in
    device.unlink()


def test_a_leak_is_found_at_the_end_of_its_job(pools: PoolSet) -> None:
    pool = pools.pool("numpy", "cpu")
    with held_by("A01", "blur"):
        forgotten = pool.lease((2, 3), "uint16")
        with pool.acquire(100, "uint8") as kept:
            pass
        cycle: list[Any] = [pool.lease(50, "uint8")]
        cycle.append(cycle)
    with held_by("B02"):
        other = pool.lease(100, "uint8")
    del cycle
    leaks = pools.end_job("A01")
    assert [(leak.step, leak.shape, leak.ended) for leak in leaks] == [
        ("blur", (2, 3), False),
        ("blur", (100,), True),
    ]
    assert "A01" in str(leaks[0])
    del kept
    forgotten.release()
    assert pools.end_job("A01") == []
    assert [lease.job for lease in pools.leases()] == ["B02"]
    other.release()


class Framework:
    """A backend with a cache of its own, which writes down what it is asked to do."""

    def __init__(self, name: str, cached: int, log: list[str]) -> None:
        self.memory_type = name
        self.cached = cached
        self.busy = 10
        self.log = log

    def memory_held(self, _: object) -> MemoryHeld:
        return MemoryHeld(self.busy + self.cached, self.cached)

    def drain(self, _: object) -> int:
        self.log.append(f"drain {self.memory_type}")
        freed, self.cached = self.cached, 0
        return freed

    def synchronize(self, _: object) -> None:
        self.log.append(f"synchronize {self.memory_type}")


class LoggingStore(HostStore):
    def __init__(self, log: list[str], name: str) -> None:
        super().__init__()
        self.log = log
        self.name = name

    def free(self, block: Any) -> None:
        self.log.append(f"free {self.name} {block.nbytes}")
        super().free(block)


def test_reclaiming_goes_oldest_first_and_drains_every_framework() -> None:
    log: list[str] = []
    pools = [ArrayPool("64KiB", store=LoggingStore(log, name)) for name in ("one", "two")]
    for pool, size in ((0, 1), (1, 2), (0, 3), (1, 4)):
        with pools[pool].acquire(size * KIB, "uint8"):
            pass
        pools[pool].stats()
    frameworks: Any = [(Framework("a", 500, log), 0), (Framework("b", 700, log), 0)]
    before = coordinator.memory_on(pools, frameworks)
    assert (before.in_use, before.idle, before.reclaimable) == (0, 10 * KIB, 10 * KIB + 1200)
    assert coordinator.reclaim(pools, frameworks, 5 * KIB) == 6 * KIB + 1200
    assert log[:3] == ["free one 1024", "free two 2048", "free one 3072"]
    assert log[3:] == ["drain a", "drain b", "synchronize a", "synchronize b"]
    assert coordinator.memory_on(pools, frameworks).reclaimable == 4 * KIB


def test_what_another_thread_takes_meanwhile_is_not_given_back_negatively() -> None:
    class Growing(Framework):
        def drain(self, place: object) -> int:
            self.busy += 1000
            return super().drain(place)

    frameworks: Any = [(Growing("a", 0, []), 0), (Framework("b", 700, []), 0)]
    assert coordinator.reclaim([], frameworks, KIB) == 700


def test_host_buffers_are_not_given_back_for_a_device_without_pools(pools: PoolSet) -> None:
    with pools.pool("numpy", "cpu").acquire(KIB, "uint8"):
        pass
    assert pools.reclaim(7, KIB) == 0
    assert pools.memory(7).idle == 0
    assert pools.stats().bytes_idle == KIB


def test_garbage_is_collected_before_buffers_are_freed(pools: PoolSet) -> None:
    pool = pools.pool("numpy", "cpu")
    cycle: list[Any] = [pool.lease(8 * KIB, "uint8")]
    cycle.append(cycle)
    del cycle
    assert pools.reclaim("cpu", 8 * KIB) >= 8 * KIB


def test_retry_lets_go_of_the_error_first(pools: PoolSet) -> None:
    """The traceback of the failed call pins its locals (torch#18853): here what the second try needs."""
    pool = pools.pool("numpy", "cpu")
    attempts: list[weakref.ref[Any]] = []

    def call() -> np.ndarray:
        lease = pool.lease(40 * KIB, "uint8")
        attempts.append(weakref.ref(lease))
        if len(attempts) == 1:
            raise MemoryError("the step needs more")
        assert attempts[0]() is None
        return lease.array

    assert pools.retry("cpu", KIB, call).size == 40 * KIB
    assert len(attempts) == 2


def test_retry_passes_other_errors_on(pools: PoolSet) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        pools.retry("cpu", KIB, call)
    assert len(calls) == 1


def test_effective_free_counts_what_can_be_reclaimed(pools: PoolSet) -> None:
    with pools.pool("numpy", "cpu").acquire(8 * KIB, "uint8"):
        pass
    assert pools.effective_free("cpu", 1000) >= 1000 + 8 * KIB


def test_arrays_for_a_virtual_device_are_charged_to_it(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    device = VirtualDeviceMemory(tmp_path / "device", "64KiB")
    with PoolSet("1MiB", virtual_devices={3: device}) as pools:
        pool = pools.pool("torch", 3)
        with held_by("A01", "blur"):
            lease = pool.lease(10 * KIB, "uint8")
        (charge,) = device.charges()
        assert (charge.nbytes, charge.owner) == (10 * KIB, "torch pool job A01 step blur")
        lease.release()
        assert device.used() == 10 * KIB  # idle is not free
        assert pools.reclaim(3, 10 * KIB) == 10 * KIB
        assert device.used() == 0
    device.unlink()


def test_a_full_virtual_device_is_out_of_memory(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from memcore import OutOfDeviceMemoryError

    device = VirtualDeviceMemory(tmp_path / "device", "64KiB")
    with PoolSet("1MiB", virtual_devices={0: device}) as pools, device.charge(60 * KIB, owner="a stranger"):
        with pools.pool("torch", 0).acquire(4 * KIB, "uint8"):
            pass
        # our own idle bytes make room, a stranger's don't
        with pools.pool("torch", 0).acquire(3 * KIB, "uint8"):
            assert device.used() == 63 * KIB
        with pytest.raises(OutOfDeviceMemoryError):
            pools.pool("torch", 0).acquire(5 * KIB, "uint8")
        assert pools.stats().bytes_held == device.used() - 60 * KIB
    device.unlink()


def test_closed_pools_lend_nothing(pools: PoolSet) -> None:
    pool = pools.pool("numpy", "cpu")
    pools.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.acquire(1, "uint8")
    with pytest.raises(RuntimeError, match="closed"):
        pools.pool("numpy", "cpu")


def test_not_pickled_nor_forked(pools: PoolSet) -> None:
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(pools)
    pools._pid = os.getpid() + 1  # as in a forked child
    with pytest.raises(ForkedPoolError):
        pools.pool("numpy", "cpu")


def test_importing_pools_loads_no_framework() -> None:
    script = (
        "import pools, sys; print(*sorted(set(sys.modules) & {'numpy', 'dask', 'psutil', 'torch', 'jax'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    script = (
        "import pools, sys; [getattr(pools, name) for name in pools.__all__]; "
        "pools.PoolSet('1MiB').pool('numpy', 0).acquire(3, 'uint8'); frameworks = {'torch', 'jax', "
        "'tensorflow', 'cupy', 'pyclesperanto', 'distributed'}; print(*sorted(set(sys.modules) & frameworks))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_idle_bytes_are_those_of_the_devices_pools(pools: PoolSet) -> None:
    with pools.pool("numpy", "cpu").acquire(1000, "uint8"):
        pass
    assert pools.idle_bytes("cpu") == pools.memory("cpu").idle >= 1000
    assert pools.idle_bytes(0) == 0


def test_trimming_a_device_frees_its_idle_buffers_and_no_others() -> None:
    with PoolSet("1MiB", {}) as pools:
        numpy = pools.pool("numpy", "cpu")
        with numpy.acquire((1000,), "uint8"):
            pass
        held = numpy.lease((1000,), "uint8")
        other = numpy.lease((5000,), "uint8")
        other.release()
        idle = pools.idle_bytes("cpu")
        assert idle > 0
        assert pools.trim(0) == 0
        assert pools.trim("cpu") == idle
        assert numpy.stats().bytes_in_use == held.nbytes
