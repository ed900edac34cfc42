"""Pinned pools: exact pages, pinned once, and lent again only when the work of their streams is done."""

import numpy as np
import pytest

from memcore.errors import DeviceError
from pools import ArrayPool, PoolSet
from pools.pinned import PinnedStore
from tests.cuda import on_cuda
from tests.pools.doubles import DEVICE, PinningBackend, Stream

PAGE = 4096
SIZE = 40 * PAGE


@pytest.fixture
def driver() -> PinningBackend:
    return PinningBackend()


@pytest.fixture
def pool(driver: PinningBackend) -> ArrayPool:
    return ArrayPool("16MiB", store=PinnedStore(driver, DEVICE))  # type: ignore[arg-type]


def test_pages_are_exact(pool: ArrayPool, driver: PinningBackend) -> None:
    """Not the next power of two: 150 MiB would take 256 (cupy#7742, torch#95823)."""
    lease = pool.lease(SIZE + 1, "uint8")
    assert list(driver.pinned.values()) == [SIZE + PAGE]
    assert lease.nbytes == pool.stats().bytes_in_use == SIZE + PAGE


def test_pinned_once_and_unpinned_when_trimmed(pool: ArrayPool, driver: PinningBackend) -> None:
    for _ in range(5):
        with pool.acquire(SIZE, "uint8") as array:
            array[:] = 1
        del array
    assert (driver.pins, len(driver.pinned)) == (1, 1)
    pool.trim()
    assert driver.pinned == {}


def test_small_buffers_share_no_page(pool: ArrayPool) -> None:
    leases = [pool.lease(100, "uint8") for _ in range(10)]  # the driver's double refuses a page pinned twice
    for lease in leases:
        lease.release()


def test_a_buffer_waits_for_the_copies_of_its_stream(pool: ArrayPool, driver: PinningBackend) -> None:
    with pool.acquire(SIZE, "uint8") as array:
        first = array.ctypes.data
        driver.stream.submit()  # an asynchronous copy to the device, which keeps no reference
    del array
    with pool.acquire(SIZE, "uint8") as array:
        assert array.ctypes.data != first
    del array
    driver.stream.finish()
    addresses = {lease.array.ctypes.data for lease in [pool.lease(SIZE, "uint8") for _ in range(2)]}
    assert first in addresses


def test_a_buffer_waits_for_every_stream_it_was_used_on(pool: ArrayPool, driver: PinningBackend) -> None:
    other = Stream()
    with pool.acquire(SIZE, "uint8"):
        pass
    lease = pool.lease(SIZE, "uint8")
    first = lease.array.ctypes.data
    lease.used_on(other)
    other.submit()
    lease.end()
    driver.stream.finish()
    held = pool.lease(SIZE, "uint8")
    assert held.array.ctypes.data != first
    other.finish()
    assert pool.lease(SIZE, "uint8").array.ctypes.data == first


def test_work_submitted_after_the_last_alias_died_is_not_waited_for(
    pool: ArrayPool, driver: PinningBackend
) -> None:
    with pool.acquire(SIZE, "uint8") as array:
        first = array.ctypes.data
    del array
    assert pool.stats().bytes_in_use == 0
    driver.stream.submit()
    assert pool.lease(SIZE, "uint8").array.ctypes.data == first


def test_release_waits_for_the_device(pool: ArrayPool, driver: PinningBackend) -> None:
    lease = pool.lease(SIZE, "uint8")
    driver.stream.submit()
    lease.release()
    assert driver.stream.done == 1


def test_a_live_alias_keeps_its_pages_pinned(pool: ArrayPool, driver: PinningBackend) -> None:
    with pool.acquire(SIZE, "uint8") as array:
        view = array[3:]
    del array
    pool.trim()
    pool.close()
    assert len(driver.pinned) == 1
    view[:] = 2
    del view, pool


def test_a_refusal_of_the_driver_is_out_of_memory() -> None:
    driver = PinningBackend(capacity=SIZE)
    pool = ArrayPool("16MiB", store=PinnedStore(driver, DEVICE))  # type: ignore[arg-type]
    pool.lease(SIZE, "uint8").end()
    with pytest.raises(MemoryError, match="to pin"):
        pool.lease(2 * SIZE, "uint8")
    assert pool.budget.used == SIZE


def test_freezing_keeps_the_streams(pool: ArrayPool) -> None:
    lease = pool.lease(SIZE, "uint8")
    other = Stream()
    lease.used_on(other)
    other.submit()
    first = lease.freeze().ctypes.data
    lease.end()
    assert pool.lease(SIZE, "uint8").array.ctypes.data != first


def test_without_cuda_there_is_no_pinned_pool() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    if torch.cuda.is_available():
        pytest.skip("has a CUDA device")
    with pytest.raises(DeviceError):
        PoolSet("1MiB").pinned("torch", 0)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_type", ["cupy", "torch"])
def test_copies_from_pinned_memory_arrive_whole(memory_type: str) -> None:
    framework = on_cuda(memory_type)
    pool = PoolSet("256MiB").pinned(memory_type, 0)
    results = []
    for value in range(50):
        with pool.acquire((1 << 20,), "float32") as array:
            array[:] = value
            if memory_type == "torch":
                results.append(framework.from_numpy(array).to("cuda", non_blocking=True))
            else:
                results.append(framework.empty(array.shape, array.dtype))
                results[-1].set(array)
        del array
    for value, result in enumerate(results):
        host = result.cpu().numpy() if memory_type == "torch" else result.get()
        assert (host == np.float32(value)).all()
