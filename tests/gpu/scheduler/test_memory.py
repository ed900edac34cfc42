"""Device memory as NVML, the libraries, the pools and the reservation table see it, with real allocations."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcore import DeviceError, OutOfDeviceMemoryError
from memcore.registry import backend_of
from pools import PoolSet, is_oom
from scheduler.core.model import DeviceKind
from scheduler.execution.peaks import DevicePeak
from scheduler.host.probes import discover
from scheduler.host.reservations import Denial, Grant, Reservations
from tests.cuda import on_cuda
from tests.gpu.scheduler.nvml import GIB, MIB, GpuUnderTest, hog

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[3]
BOTH = pytest.mark.parametrize("name", ["torch", "cupy"])


def allocate(name: str, nbytes: int) -> Any:
    library = on_cuda(name)
    device = {"device": "cuda"} if name == "torch" else {}
    return library.empty(nbytes, dtype=library.uint8, **device)


# NVML


def test_the_probe_sees_a_gpu_as_large_as_the_driver_says(gpu: GpuUnderTest) -> None:
    torch = on_cuda("torch")
    _, total = torch.cuda.mem_get_info(0)
    # NVML counts what the driver keeps for itself, of which CUDA doesn't tell.
    assert 0 <= gpu.device.total_bytes - total < 2 * GIB
    assert gpu.device.kind is DeviceKind.CUDA
    assert gpu.device.uuid.startswith(("GPU-", "MIG-"))
    assert gpu.device.model.removeprefix("NVIDIA ") in torch.cuda.get_device_name(0)


@BOTH
def test_the_probe_sees_what_a_library_takes_and_gives_back(gpu: GpuUnderTest, name: str) -> None:
    allocate(name, MIB)  # the context, whose size only the driver knows
    before, wanted = gpu.used(), GIB
    array = allocate(name, wanted)
    assert wanted <= gpu.used() - before < wanted + 64 * MIB
    del array
    assert gpu.used() - before >= wanted, "a cache is memory in use"
    backend_of(name).drain(0)
    assert gpu.used() - before < 64 * MIB


def test_the_probe_and_discovery_agree(gpu: GpuUnderTest) -> None:
    found = discover([0])
    try:
        assert found.devices[0].uuid == gpu.uuid
        assert found.read(gpu.uuid).used_bytes is not None
    finally:
        found.close()


def test_another_program_is_external(gpu: GpuUnderTest, tmp_path: Path) -> None:
    allocate("torch", MIB)
    before = gpu.used()
    with Reservations(tmp_path / "table", run="test") as table:
        # What this process holds is its own.
        table.measure(gpu.uuid, before, 0)
        reading = gpu.probe.read(gpu.uuid)
        (snapshot,) = table.snapshots([reading])
        external = snapshot.external_bytes
        with hog(2 * GIB):
            (snapshot,) = table.snapshots([gpu.probe.read(gpu.uuid)])
            assert snapshot.external_bytes - external >= 2 * GIB
            answer = table.reserve("job", {gpu.uuid: gpu.free() + GIB // 2}, read=gpu.probe.read)
            assert isinstance(answer, Denial)
            answer = table.reserve("job", {gpu.uuid: gpu.free() // 2}, read=gpu.probe.read)
            assert isinstance(answer, Grant)
        gpu.wait_until(lambda: gpu.used() - before < 256 * MIB)


# Out of memory


@BOTH
def test_running_out_is_known_and_leaves_the_library_in_order(gpu: GpuUnderTest, name: str) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate(name, gpu.device.total_bytes + GIB)
    assert is_oom(caught.value)
    del caught
    gc.collect()
    array = allocate(name, MIB)
    array[...] = 3
    assert int(array[-1]) == 3


@BOTH
def test_a_pool_that_runs_out_gives_back_the_idle_memory_of_both(gpu: GpuUnderTest, name: str) -> None:
    other = {"torch": "cupy", "cupy": "torch"}[name]
    on_cuda(name)
    on_cuda(other)
    allocate(name, MIB), allocate(other, MIB)
    free = gpu.free()
    with PoolSet("1GiB", {0: 4 * free}) as pools:
        with pools.pool(other, 0).acquire((int(0.4 * free),), "uint8") as array:
            array[:: 16 * MIB] = 1
        del array
        with pools.pool(name, 0).acquire((int(0.8 * free),), "uint8") as array:
            array[:: 16 * MIB] = 2
            assert int(array[16 * MIB]) == 2
        del array
        assert pools.stats_by_pool()[other, 0].bytes_trimmed >= int(0.4 * free)
        with pytest.raises(MemoryError) as caught:
            pools.pool(name, 0).acquire((int(1.2 * free),), "uint8")
        assert isinstance(caught.value, OutOfDeviceMemoryError) or is_oom(caught.value)


@BOTH
def test_the_cache_of_one_library_is_drained_for_the_other(gpu: GpuUnderTest, name: str) -> None:
    other = {"torch": "cupy", "cupy": "torch"}[name]
    on_cuda(name)
    on_cuda(other)
    allocate(name, MIB), allocate(other, MIB)
    free = gpu.free()
    cached = allocate(other, int(0.6 * free))
    del cached
    with PoolSet("1GiB", {0: free}) as pools:
        assert pools.memory(0).frameworks[other].reclaimable >= int(0.59 * free)
        assert pools.effective_free(0, gpu.free()) >= int(0.95 * free)
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            allocate(name, int(0.7 * free))
        assert is_oom(caught.value)
        del caught
        array = pools.retry(0, int(0.7 * free), lambda: allocate(name, int(0.7 * free)))
        assert array.nbytes >= int(0.7 * free)


# Pools and counters


@BOTH
def test_pinned_memory_is_locked_in_whole_pages_and_no_more(name: str) -> None:
    library = on_cuda(name)
    pool = PoolSet("1GiB").pinned(name, 0)
    asked = 150 * MIB + 1
    with pool.acquire((asked,), "uint8") as array:
        assert pool.stats().bytes_in_use == 150 * MIB + 4096
        if name == "torch":
            assert library.from_numpy(array).is_pinned()
        else:
            attributes = library.cuda.runtime.pointerGetAttributes(array.ctypes.data)
            assert attributes.type == library.cuda.runtime.memoryTypeHost
    del array
    pool.trim()
    assert pool.stats().bytes_held == 0


def test_a_failure_to_pin_is_not_the_next_steps(gpu: GpuUnderTest) -> None:
    torch = on_cuda("torch")
    backend = backend_of("torch")
    pool = PoolSet("256MiB").pinned("torch", 0)
    lease = pool.lease((16 * MIB,), "uint8")
    with pytest.raises(DeviceError, match="pinning host memory failed"):
        backend.pin(lease.array.ctypes.data, 16 * MIB)  # it is pinned already
    assert int(torch.ones(3, device="cuda").sum()) == 3


@BOTH
def test_device_pools_reuse_whole_buffers(gpu: GpuUnderTest, name: str) -> None:
    on_cuda(name)
    with PoolSet("1MiB", {0: "2GiB"}) as pools:
        pool = pools.pool(name, 0)
        addresses = set()
        for shape, dtype in (((64, 1024, 1024), "uint16"), ((32, 1024, 1024), "float32")):
            with pool.acquire(shape, dtype) as array:
                addresses.add(array.data_ptr() if name == "torch" else array.data.ptr)
                array[...] = 1
            del array
        assert len(addresses) == 1
        before = gpu.used()
        pool.trim()
        backend_of(name).drain(0)
        assert before - gpu.used() >= 100 * MIB


@pytest.mark.parametrize("name", ["torch", "cupy", "jax", "tensorflow"])
def test_a_peak_is_what_arrays_took_at_one_time(gpu: GpuUnderTest, name: str) -> None:
    on_cuda(name)
    backend = backend_of(name)
    part = np.zeros(16 * MIB, np.float32)
    kept = backend.from_host(part, 0)
    ended = backend.measure_peak(0)
    arrays = [backend.from_host(part, 0) for _ in range(3)]
    backend.synchronize(0)
    del arrays
    peak = ended()
    # XLA's mark can't be reset: unknown where an earlier test has raised it.
    assert peak is None or peak >= 3 * part.nbytes
    assert peak is not None or name == "jax"
    if name in ("torch", "cupy"):
        assert peak < 3 * part.nbytes + 16 * MIB
    del kept


def test_the_peak_of_an_attempt_counts_every_library(gpu: GpuUnderTest) -> None:
    on_cuda("torch")
    on_cuda("cupy")
    allocate("torch", MIB), allocate("cupy", MIB)

    class Worker:
        device = gpu.device
        pools = PoolSet("1MiB", {0: "4GiB"})

        def gpu_id(self, memory_type: str) -> int:
            return 0

    pool = Worker.pools.pool("torch", 0)
    with pool.acquire((256 * MIB,), "uint8"):  # which lies idle, and is lent again below
        pass
    with DevicePeak(Worker()) as peak:
        with pool.acquire((256 * MIB,), "uint8") as lent:
            arrays = [lent, allocate("cupy", 128 * MIB)]
        del arrays, lent
    others = [name for name in ("jax", "pyclesperanto") if name in sys.modules]
    assert (peak.nbytes is None and others) or 384 * MIB <= (peak.nbytes or 0) < 400 * MIB


# Two worker processes on one GPU

SHARER = """
import sys
from pathlib import Path
from scheduler.host.nvml import NvmlProbe
from scheduler.host.reservations import Grant, Reservations
import {library}
table, share, turns = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
probe = NvmlProbe()
device = probe.devices()[0]
nbytes = int(share * device.total_bytes)
granted = refused = 0
empty = {empty}
with Reservations(Path(table), run="share") as reservations:
    while granted < turns:
        held = {{device.uuid: ({held}, 0)}}
        answer = reservations.reserve("job", {{device.uuid: nbytes}}, read=probe.read, held=held)
        if not isinstance(answer, Grant):
            refused += 1
            continue
        array = empty(nbytes)  # out of memory here is a promise that was broken
        array[:: 1 << 24] = 1
        reservations.measure(device.uuid, nbytes, 0)
        del array
        {drain}
        reservations.measure(device.uuid, 0, 0)
        reservations.release(answer)
        granted += 1
print(granted, refused)
"""


def sharer(name: str) -> str:
    if name == "torch":
        return SHARER.format(
            library="torch",
            empty="lambda n: torch.empty(n, dtype=torch.uint8, device='cuda')",
            held="torch.cuda.memory_reserved()",
            drain="torch.cuda.synchronize(); torch.cuda.empty_cache()",
        )
    pool = "cupy.get_default_memory_pool()"
    return SHARER.format(
        library="cupy",
        empty="lambda n: cupy.empty(n, cupy.uint8)",
        held=f"{pool}.total_bytes()",
        drain=f"cupy.cuda.Device().synchronize(); {pool}.free_all_blocks()",
    )


@BOTH
def test_two_processes_that_reserve_first_never_run_out(gpu: GpuUnderTest, name: str, tmp_path: Path) -> None:
    on_cuda(name)
    share = 0.6 * gpu.free() / gpu.device.total_bytes
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", sharer(name), str(tmp_path / "table"), str(share), "10"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        ends = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], [errors[-800:] for _, errors in ends]
    assert [int(out.split()[0]) for out, _ in ends] == [10, 10]
