"""Every pool passes the same contract."""

from typing import Any

import numpy as np
import pytest

from pools import PoolSet
from tests.cuda import on_cuda
from tests.pools.contract import PoolContract


class TestNumpyPool(PoolContract):
    memory_type = "numpy"


class TestNumpyPoolWithoutHugePages(PoolContract):
    memory_type = "numpy"

    def pools(self, limit: int) -> PoolSet:
        return PoolSet(limit, huge_pages=False)


class TestTorchHostPool(PoolContract):
    memory_type = "torch"

    def pools(self, limit: int) -> PoolSet:
        pytest.importorskip("torch", reason="needs torch")
        return PoolSet(limit)

    @pytest.mark.parametrize("dtype", ["bool", "uint16", "uint64", "bfloat16", "float64", "complex64"])
    def test_dtypes_of_torch(self, dtype: str) -> None:
        torch = pytest.importorskip("torch", reason="needs torch")
        pool = self.pools(1024).pool("torch", "cpu")
        for name in (dtype, getattr(torch, dtype)):
            with pool.acquire((2, 3), name) as tensor:
                tensor.fill_(1)
                assert (tensor.dtype, int(tensor.sum().real)) == (getattr(torch, dtype), 6)
            del tensor
        assert pool.stats().hits == 1


class TestJaxPool(PoolContract):
    memory_type = "jax"
    recycles = False

    def pools(self, limit: int) -> PoolSet:
        pytest.importorskip("jax", reason="needs jax")
        return PoolSet(limit)

    def write(self, array: Any, value: float) -> Any:
        return array + np.asarray(value, dtype=array.dtype)


class TestTensorflowPool(TestJaxPool):
    memory_type = "tensorflow"

    def pools(self, limit: int) -> PoolSet:
        pytest.importorskip("tensorflow", reason="needs tensorflow")
        return PoolSet(limit)

    def write(self, array: Any, value: float) -> Any:
        return array + np.asarray(value, dtype=array.dtype.as_numpy_dtype)

    def read(self, array: Any) -> np.ndarray:
        return array.numpy()


class DevicePoolContract(PoolContract):
    gpu_id = 0

    def pools(self, limit: int) -> PoolSet:
        pytest.importorskip(self.memory_type, reason=f"needs {self.memory_type}")
        return PoolSet("1MiB", {0: limit})


class TestPyclesperantoPool(DevicePoolContract):
    memory_type = "pyclesperanto"

    def write(self, array: Any, value: float) -> Any:
        array.fill(value)
        return array

    def read(self, array: Any) -> np.ndarray:
        return array.get()


class CudaPoolContract(DevicePoolContract):
    def pools(self, limit: int) -> PoolSet:
        on_cuda(self.memory_type)
        return super().pools(limit)


@pytest.mark.gpu
class TestCupyPool(CudaPoolContract):
    memory_type = "cupy"

    def read(self, array: Any) -> np.ndarray:
        return array.get()


@pytest.mark.gpu
class TestTorchDevicePool(CudaPoolContract):
    memory_type = "torch"

    def read(self, array: Any) -> np.ndarray:
        return array.cpu().numpy()


class TestPoolOnVirtualDevice(PoolContract):
    memory_type = "torch"
    gpu_id = 0

    @pytest.fixture(autouse=True)
    def device(self, tmp_path: Any) -> Any:
        pytest.importorskip("torch", reason="needs torch")
        self.folder = tmp_path
        self.count = 0

    def pools(self, limit: int) -> PoolSet:
        from pools import VirtualDeviceMemory

        self.count += 1
        device = VirtualDeviceMemory(self.folder / f"device{self.count}", limit)
        return PoolSet("1MiB", virtual_devices={0: device})
