"""Device memory through DLPack, tried on torch's host tensors: dtypes, lifetimes, order between streams."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from pools import ArrayPool
from pools.device_store import DeviceStore
from pools.dlpack import _lent, address_and_device

torch = pytest.importorskip("torch", reason="needs torch")

from memcore.backends.torch import TorchBackend  # noqa: E402  after the check that torch is there


class Device(TorchBackend):
    """Torch's host tensors, treated as if they were on a device with streams."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: Any = "first"
        self.log: list[str] = []
        self.refuse_imports = False
        self.current: Any = None

    def import_device_array(self, array: Any, gpu_id: Any) -> Any:
        if self.refuse_imports:
            array.__dlpack__(max_version=(1, 0))
            raise RuntimeError("the import failed")
        return torch.from_dlpack(array)

    @contextmanager
    def entered(self, place: Any) -> Iterator[None]:
        self.current = place
        yield
        self.current = None

    def current_stream(self, gpu_id: Any) -> Any:
        return self.stream

    def wait_for_stream(self, stream: Any, gpu_id: Any) -> None:
        self.log.append(f"{self.stream} waits for {stream}")

    def synchronize(self, gpu_id: Any) -> None:
        self.log.append("synchronize")


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def pool(device: Device) -> Iterator[ArrayPool]:
    before = set(_lent)
    yield ArrayPool("1MiB", memory_type="torch", device=0, store=DeviceStore(device, "cpu"))
    gc.collect()
    assert set(_lent) <= before  # no managed tensor is kept for longer than its array


DTYPES = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
          "float16", "bfloat16", "float32", "float64", "complex64", "complex128"]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_arrives_as_asked(pool: ArrayPool, dtype: str) -> None:
    with pool.acquire((3, 4, 5), dtype) as tensor:
        assert (tensor.dtype, tuple(tensor.shape)) == (getattr(torch, dtype), (3, 4, 5))
        assert tensor.is_contiguous()
        tensor.fill_(1)
        assert tensor.to(torch.complex128).sum() == 60
    del tensor
    with pool.acquire(60 * torch.empty(0, dtype=getattr(torch, dtype)).element_size(), "uint8"):
        assert pool.stats().hits == 1


def test_dtypes_of_the_framework_itself(pool: ArrayPool) -> None:
    with pool.acquire((2, 3), torch.bfloat16) as tensor:
        assert tensor.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,), (1, 1, 7)])
def test_odd_shapes(pool: ArrayPool, shape: tuple[int, ...]) -> None:
    with pool.acquire(shape, "float32") as tensor:
        assert tuple(tensor.shape) == shape


def test_views_and_storages_keep_the_buffer(pool: ArrayPool) -> None:
    with pool.acquire((4, 8), "float32") as tensor:
        tensor.fill_(7)
        aliases: list[Any] = [tensor[1], tensor.t(), tensor.view(torch.int32), tensor.untyped_storage()]
        aliases.append(torch.utils.dlpack.to_dlpack(tensor))  # never consumed
    del tensor
    while aliases:
        with pool.acquire((4, 8), "float32") as other:
            other.fill_(-1)
        del other
        if hasattr(aliases[0], "is_contiguous"):
            assert (aliases[0].view(torch.float32) == 7).all() or aliases[0].dtype == torch.int32
        assert pool.stats().bytes_in_use == 128
        aliases.pop(0)
    assert pool.stats().bytes_in_use == 0


def test_a_failed_import_gives_the_buffer_back(pool: ArrayPool, device: Device) -> None:
    device.refuse_imports = True
    with pytest.raises(RuntimeError, match="the import failed"):
        pool.acquire(10, "uint8")
    assert pool.stats().bytes_in_use == 0


def test_lent_on_another_stream_after_the_work_of_the_first(pool: ArrayPool, device: Device) -> None:
    with pool.acquire(10, "uint8"):
        pass
    with pool.acquire(10, "uint8"):
        assert device.log == []
    device.stream = "second"
    lease = pool.lease(10, "uint8")
    assert device.log == ["second waits for first"]
    lease.used_on("third")
    lease.end()
    with pool.acquire(10, "uint8"):
        assert device.log[1:] == ["second waits for third"]


def test_what_other_streams_used_is_freed_after_their_work(pool: ArrayPool, device: Device) -> None:
    with pool.acquire(10, "uint8"):
        pass
    pool.trim()
    assert device.log == []
    lease = pool.lease(10, "uint8")
    lease.used_on("second")
    lease.end()
    pool.trim()
    assert device.log == ["synchronize"]


def test_release_waits_for_the_device(pool: ArrayPool, device: Device) -> None:
    pool.lease(10, "uint8").release()
    assert device.log == ["synchronize"]


def test_there_is_nothing_to_freeze(pool: ArrayPool) -> None:
    lease = pool.lease(10, "uint8")
    with pytest.raises(TypeError, match="read-only"):
        lease.freeze()
    lease.array.fill_(1)


def test_a_block_is_looked_at_with_its_own_device_current(
    pool: ArrayPool, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch exports a tensor only while its device is the current one.
    seen: list[Any] = []

    def look(array: Any) -> Any:
        seen.append(device.current)
        return address_and_device(array)

    monkeypatch.setattr("pools.device_store.address_and_device", look)
    with pool.acquire(10, "uint8"):
        assert seen == ["cpu"]


def test_a_dtype_that_the_framework_lacks(pool: ArrayPool) -> None:
    with pytest.raises(TypeError, match=">u2"):
        pool.acquire(10, ">u2")
    assert pool.stats().misses == 0


AT_EXIT = """
import pyclesperanto
from pools import PoolSet
pools = PoolSet("1MiB", {0: "1MiB"})
array = pools.pool("pyclesperanto", 0).lease((4, 5, 6), "float32").array
array.fill(3)
alias = array.ravel()
"""


def test_the_interpreter_may_end_while_arrays_live() -> None:
    pytest.importorskip("pyclesperanto", reason="needs pyclesperanto")
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_numpy_reads_what_torch_wrote(pool: ArrayPool) -> None:
    with pool.acquire((2, 3), "float32") as tensor:
        tensor.copy_(torch.arange(6).reshape(2, 3))
        assert np.array_equal(tensor.numpy(), np.arange(6, dtype=np.float32).reshape(2, 3))
