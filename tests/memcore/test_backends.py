"""Every backend passes the contract: the libraries that are here, CuPy's double, CUDA by the gpu mark."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from memcore import (
    BackendUnavailableError,
    DeviceError,
    backend_status,
    convert_memory,
    move_to_device,
    registry,
)
from memcore.backend import Backend
from memcore.backends.cupy import CupyBackend
from memcore.backends.jax import JaxBackend
from memcore.backends.tensorflow import TensorflowBackend
from memcore.backends.torch import TorchBackend
from memcore.memory_type import GpuId
from memcore.registry import backend_of
from tests.cuda import on_cuda
from tests.memcore import cupy_double
from tests.memcore.backend_contract import BackendContract, numbers


def required(name: str) -> Any:
    return pytest.importorskip(name, reason=f"needs {name}")


class TestNumpy(BackendContract):
    backend: ClassVar[Backend] = backend_of("numpy")
    place: ClassVar[GpuId] = "cpu"

    def make(self, values: np.ndarray) -> Any:
        return values.copy()

    def read(self, array: Any) -> np.ndarray:
        return array

    @pytest.mark.parametrize("gpu_id", [None, True, -1, 999, "gpu"])
    def test_a_device_that_is_not_there_is_refused(self, gpu_id: object) -> None:
        # NumPy ignores gpu_id, as the reference for memory types says of CPU types.
        assert self.backend.validate_gpu_id(gpu_id) == "cpu"

    def test_a_move_keeps_the_values_and_lands_where_asked(self) -> None:
        array = self.make(numbers())
        assert move_to_device(array, 1) is array


class TestTorch(BackendContract):
    backend: ClassVar[Backend] = backend_of("torch")
    place: ClassVar[GpuId] = "cpu"

    def make(self, values: np.ndarray) -> Any:
        return required("torch").from_numpy(values.copy())

    def read(self, array: Any) -> np.ndarray:
        return array.numpy()


class TestTensorflow(BackendContract):
    backend: ClassVar[Backend] = backend_of("tensorflow")
    place: ClassVar[GpuId] = "cpu"

    def make(self, values: np.ndarray) -> Any:
        return required("tensorflow").constant(values)

    def read(self, array: Any) -> np.ndarray:
        return array.numpy()


class TestJax(BackendContract):
    backend: ClassVar[Backend] = backend_of("jax")
    place: ClassVar[GpuId] = "cpu"

    def make(self, values: np.ndarray) -> Any:
        return required("jax.numpy").array(values)

    def read(self, array: Any) -> np.ndarray:
        return np.asarray(array)


class TestPyclesperanto(BackendContract):
    backend: ClassVar[Backend] = backend_of("pyclesperanto")
    place: ClassVar[GpuId] = 0

    def make(self, values: np.ndarray) -> Any:
        return required("pyclesperanto").push(values)

    def read(self, array: Any) -> np.ndarray:
        return array.get()


class TestCupyDouble(BackendContract):
    """The CuPy class as it is, over a double of the library."""

    place: ClassVar[GpuId] = 1
    other_place: ClassVar[GpuId | None] = 0

    @pytest.fixture(autouse=True)
    def double(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.library = cupy_double.install()
        monkeypatch.setitem(sys.modules, "cupy", self.library)
        self.backend = CupyBackend()  # type: ignore[misc]
        monkeypatch.setitem(registry._INSTANCES, "cupy", self.backend)
        yield
        registry._EXACT.pop(cupy_double.ndarray, None)

    def make(self, values: np.ndarray) -> Any:
        with self.library.cuda.Device(1):
            return self.library.array(values)

    def read(self, array: Any) -> np.ndarray:
        cupy_double.POOL.flush()
        return np.array(array.view(np.ndarray))

    def test_only_the_code_for_memory_counts_among_cuda_errors(self) -> None:
        assert self.backend.is_oom(cupy_double.CUDARuntimeError(2))
        assert not self.backend.is_oom(cupy_double.CUDARuntimeError(700))
        assert self.backend.is_oom(cupy_double.OutOfMemoryError())

    def test_a_machine_without_a_driver_is_told_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # CuPy imports without a driver and fails at its first use.
        def no_driver() -> int:
            raise cupy_double.CUDARuntimeError(35)

        monkeypatch.setattr(self.library.cuda.runtime, "getDeviceCount", no_driver)
        with pytest.raises(BackendUnavailableError, match="NVIDIA GPU and its driver"):
            convert_memory(numbers(), "numpy", "cupy", 0)
        monkeypatch.setattr(self.backend, "installed", lambda: True)
        status = backend_status("cupy")["cupy"]
        assert not status.available
        assert "NVIDIA GPU and its driver" in str(status.reason)

    def test_drain_says_what_it_gave_back(self) -> None:
        cupy_double.POOL.free[1] = 1 << 20
        assert self.backend.memory_held(1).reclaimable == 1 << 20
        assert self.backend.drain(1) == 1 << 20
        assert self.backend.memory_held(1).reclaimable == 0

    def test_a_peak_is_what_its_thread_took_at_one_time_on_its_device(self) -> None:
        there = self.make(numbers())
        ended, within = self.backend.measure_peak(1), self.backend.measure_peak(1)
        first = self.make(numbers("float32", (2, 16, 16)))
        del there
        second = self.make(numbers("uint8", (1, 32, 32)))
        assert within() == 2048 + 1024
        del second
        with self.library.cuda.Device(0):
            other = self.library.array(numbers("uint8", (8, 32, 32)))
        third = self.make(numbers("uint8", (1, 16, 64)))
        del first, other, third
        assert ended() == 2048 + 1024
        again = self.backend.measure_peak(1)
        assert again() == 0

    def test_memory_that_was_refused_is_in_no_peak(self) -> None:
        ended = self.backend.measure_peak(1)
        refused = {"device_id": 1, "size": 1 << 40, "mem_size": 1 << 40, "mem_ptr": 0, "pmem_id": 0}
        for hook in cupy_double._hooks().values():
            hook.malloc_postprocess(**refused)
        assert ended() == 0

    def test_a_move_waits_for_both_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # CuPy's copy between devices is asynchronous, on the target's stream alone.
        waited: list[int] = []
        stream = SimpleNamespace(synchronize=lambda: waited.append(cupy_double.current()))
        monkeypatch.setattr(self.library.cuda, "get_current_stream", lambda: stream)
        array = self.make(numbers())
        assert self.backend.device_of(self.backend.move(array, 0)) == 0
        assert waited == [1, 0]

    def test_a_scalar_is_uploaded_without_a_dimension_more(self) -> None:
        # ascontiguousarray makes one of it, and set() refuses another shape.
        array = self.backend.from_host(np.array(7, "uint16"), 1)
        assert array.shape == ()
        self.assert_same(array, np.array(7, "uint16"))

    def test_a_destination_with_gaps_is_filled(self) -> None:
        # set() refuses one.
        whole = self.backend.empty((2, 3, 10), "uint16", 1)
        with self.library.cuda.Device(1):
            every_other = whole[:, :, ::2]
        self.backend.write_host(every_other, numbers())
        self.assert_same(every_other, numbers())

    def test_strides_that_would_abort_another_library_are_not_exported(self) -> None:
        array = self.make(numbers(shape=(4, 6)))
        with self.library.cuda.Device(1):
            reverse, odd = array[::-1], self.make(numbers("uint8", (4, 6)))[:, :4].view("uint16")
            turned = array.T
        assert self.backend.export_obstacle(array, packed=True) is None
        assert "other libraries lack" in str(self.backend.export_obstacle(reverse, packed=False))
        assert self.backend.export_obstacle(odd, packed=False) is None
        assert self.backend.export_obstacle(turned, packed=False) is None
        assert self.backend.export_obstacle(turned, packed=True) == "it isn't C-contiguous"

    def test_work_areas_that_cudas_libraries_lack_are_out_of_memory(self) -> None:
        fft = type("CuFFTError", (RuntimeError,), {"__module__": "cupy.cuda.cufft"})
        blas = type("CUBLASError", (RuntimeError,), {"__module__": "cupy_backends.cuda.libs.cublas"})
        assert self.backend.is_oom(fft("CUFFT_ALLOC_FAILED"))
        assert self.backend.is_oom(blas("CUBLAS_STATUS_ALLOC_FAILED"))
        assert not self.backend.is_oom(fft("CUFFT_EXEC_FAILED"))
        assert not self.backend.is_oom(RuntimeError("CUFFT_ALLOC_FAILED"))

    def test_the_source_of_an_upload_may_be_reused_at_once(self) -> None:
        # set() is asynchronous and keeps no reference: without a synchronize the zeros would arrive.
        source = np.arange(6, dtype=np.uint16).reshape(1, 2, 3)
        array = self.backend.empty((1, 2, 3), "uint16", 1)
        self.backend.write_host(array, source)
        source[...] = 0
        cupy_double.POOL.flush()
        np.testing.assert_array_equal(np.asarray(array.view(np.ndarray)).ravel(), range(6))


class Counters:
    """A CUDA device as a library's counters tell of it: bytes in use, and the most there were."""

    def __init__(self, in_use: int, peak: int) -> None:
        self.in_use = in_use
        self.peak = peak
        self.allocations = 0

    def run(self, nbytes: int) -> None:
        """Take some bytes and give them back."""
        self.allocations += 1
        self.peak = max(self.peak, self.in_use + nbytes)

    def reset(self, *_: object) -> None:
        self.peak = self.in_use


@pytest.mark.parametrize("initialised", [True, False])
def test_torchs_peak_is_above_what_was_there(monkeypatch: pytest.MonkeyPatch, initialised: bool) -> None:
    counters = Counters(100, 900) if initialised else Counters(0, 0)

    def reset(place: int) -> None:
        assert initialised, "torch refuses it before CUDA is initialised"
        counters.reset()

    cuda = SimpleNamespace(
        is_initialized=lambda: initialised,
        reset_peak_memory_stats=reset,
        memory_allocated=lambda place: counters.in_use,
        max_memory_allocated=lambda place: counters.peak,
    )
    backend = TorchBackend()
    monkeypatch.setattr(backend, "_library", SimpleNamespace(cuda=cuda))
    ended = backend.measure_peak(0)
    counters.run(70)
    counters.run(30)
    assert ended() == 70
    assert backend.measure_peak("cpu")() is None


def test_tensorflows_peak_is_above_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters(100, 900)
    experimental = SimpleNamespace(
        reset_memory_stats=counters.reset,
        get_memory_info=lambda device: {
            "GPU:1": {"current": counters.in_use, "peak": counters.peak},
        }[device],
    )
    config = SimpleNamespace(experimental=experimental, list_logical_devices=lambda kind: [kind])
    backend = TensorflowBackend()
    monkeypatch.setattr(backend, "_library", SimpleNamespace(config=config))
    ended = backend.measure_peak(1)
    counters.run(70)
    assert ended() == 70
    assert backend.measure_peak("cpu")() is None


@pytest.mark.parametrize(
    ("run", "expected"),
    # The mark of the process was 900 bytes, of which 100 are in use.
    [([850], 850), ([850, 20], 850), ([800], None), ([20], None), ([], 0)],
)
def test_jaxs_peak_is_known_where_it_is_the_highest_so_far(
    monkeypatch: pytest.MonkeyPatch, run: list[int], expected: int | None
) -> None:
    counters = Counters(100, 900)
    device = SimpleNamespace(
        memory_stats=lambda: {
            "bytes_in_use": counters.in_use,
            "peak_bytes_in_use": counters.peak,
            "num_allocs": counters.allocations,
        }
    )
    backend = JaxBackend()
    monkeypatch.setattr(backend, "_device", lambda place: device)
    ended = backend.measure_peak(0)
    for nbytes in run:
        counters.run(nbytes)
    assert ended() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuFFT error: CUFFT_ALLOC_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
    ],
)
def test_torch_tells_by_text_what_cudas_libraries_lack(text: str, expected: bool) -> None:
    required("torch")
    assert TorchBackend().is_oom(RuntimeError(text)) is expected


@pytest.mark.parametrize(("status", "kind"), [(2, MemoryError), (712, DeviceError)])
def test_torch_forgets_a_failure_to_pin_before_the_next_kernel(
    monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception]
) -> None:
    # CUDA keeps the error of a failed call, and the next kernel launch of any step would raise it.
    kept: list[int] = []

    def register(*_: object) -> int:
        kept.append(status)
        return status

    def zeros(*_: object, **__: object) -> None:
        if kept:
            raise RuntimeError(f"CUDA error {kept.pop()}")

    cuda = SimpleNamespace(cudart=lambda: SimpleNamespace(cudaHostRegister=register))
    backend = TorchBackend()
    monkeypatch.setattr(backend, "_library", SimpleNamespace(cuda=cuda, zeros=zeros))
    with pytest.raises(kind, match="pin"):
        backend.pin(4096, 4096)
    assert not kept


def test_jax_that_finds_no_driver_is_unavailable_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda': no supported devices found")

    backend = JaxBackend()
    monkeypatch.setattr(backend, "_library", SimpleNamespace(local_devices=no_driver))
    with pytest.raises(BackendUnavailableError, match="jax can't be used: Unable to initialize"):
        backend.validate_gpu_id(0)


class OnCuda(BackendContract):
    """The same suite for the real libraries on a CUDA device."""

    name: ClassVar[str]
    place: ClassVar[GpuId] = 0

    @pytest.fixture(autouse=True)
    def real(self) -> None:
        on_cuda(self.name)
        devices = [device.gpu_id for device in backend_of(self.name).devices() if device.kind == "gpu"]
        type(self).backend = backend_of(self.name)
        type(self).other_place = devices[1] if len(devices) > 1 else None

    def read(self, array: Any) -> np.ndarray:
        return self.backend.to_host(array)


@pytest.mark.gpu
class TestCupyOnCuda(OnCuda):
    name: ClassVar[str] = "cupy"

    def make(self, values: np.ndarray) -> Any:
        return required("cupy").array(values)


@pytest.mark.gpu
class TestTorchOnCuda(OnCuda):
    name: ClassVar[str] = "torch"

    def make(self, values: np.ndarray) -> Any:
        return required("torch").from_numpy(values.copy()).cuda(0)


@pytest.mark.gpu
class TestJaxOnCuda(OnCuda):
    name: ClassVar[str] = "jax"

    def make(self, values: np.ndarray) -> Any:
        jax = required("jax")
        return jax.device_put(values.copy(), jax.devices("gpu")[0])


@pytest.mark.gpu
class TestTensorflowOnCuda(OnCuda):
    name: ClassVar[str] = "tensorflow"
    keeps_some_on_host: ClassVar[bool] = True

    def make(self, values: np.ndarray) -> Any:
        tensorflow = required("tensorflow")
        with tensorflow.device("GPU:0"):
            return tensorflow.identity(tensorflow.constant(values))
