"""CuPy: CUDA memory, mutable, ordered by streams."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from memcore.backend import Backend, numpy_dtype, numpy_dtype_name
from memcore.errors import BackendUnavailableError
from memcore.host import aligned_empty
from memcore.info import ITEM_SIZES, DeviceInfo, MemoryHeld
from memcore.memory_type import Array, GpuId, MemoryType

CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class CupyBackend(Backend):
    """`cupy.ndarray`. Every operation runs with its device entered and on that device's current stream."""

    memory_type: ClassVar[str] = MemoryType.CUPY
    module: ClassVar[str] = "cupy"
    install_hint: ClassVar[str] = "pip install 'stackyard[cupy-cuda13]' (or cupy-cuda12 for a CUDA 12 driver)"
    device_memory: ClassVar[str | None] = "cuda"
    host_memory: ClassVar[bool] = False
    device_kinds: ClassVar[tuple[Literal["cpu", "gpu"], ...]] = ("gpu",)
    type_roots: ClassVar[tuple[str, ...]] = ("cupy", "cupyx")
    dtypes: ClassVar[frozenset[str]] = frozenset(ITEM_SIZES) - {"bfloat16"}

    def is_array_type(self, cls: type) -> bool:
        return cls is getattr(sys.modules.get("cupy"), "ndarray", None)

    def remedy_for_type(self, cls: type) -> str:
        if "sparse" in cls.__module__ or cls.__module__.startswith("cupyx"):
            return "call .toarray() first"
        return "take a plain array with cupy.asarray(array)"

    def devices(self) -> tuple[DeviceInfo, ...]:
        runtime = self.library.cuda.runtime
        try:
            count = runtime.getDeviceCount()
        except runtime.CUDARuntimeError as error:
            raise BackendUnavailableError(
                f"cupy can't be used: {error}; it needs an NVIDIA GPU and its driver"
            ) from error
        found = []
        for index in range(count):
            name = runtime.getDeviceProperties(index)["name"]
            address = str(runtime.deviceGetPCIBusId(index)).lower().partition(".")[0]
            text = name.decode() if isinstance(name, bytes) else str(name)
            found.append(DeviceInfo(index, "gpu", text, address))
        return tuple(found)

    def device_of(self, array: Array) -> GpuId:
        return int(array.device.id)

    def move(self, array: Array, gpu_id: GpuId) -> Array:
        source = self.device_of(array)
        with self.entered(source):
            packed = array if array.flags.c_contiguous else array.copy()
            # The copy runs on the target's stream, which doesn't wait for what this one has still to write.
            self.library.cuda.get_current_stream().synchronize()
        with self.entered(gpu_id):
            twin = packed.copy()
            # Nor does the source's stream wait for the copy before its memory is written to or reused.
            self.library.cuda.get_current_stream().synchronize()
        return twin

    def synchronize(self, gpu_id: GpuId) -> None:
        with self.entered(gpu_id) as device:
            device.synchronize()

    def dtype_of(self, array: Array) -> str:
        return numpy_dtype_name(array.dtype)

    def host_view(self, array: Array) -> NDArray[Any] | None:  # noqa: ARG002
        return None

    def to_host(self, array: Array) -> NDArray[Any]:
        host = aligned_empty(self.shape_of(array), array.dtype)
        with self.entered(self.device_of(array)):
            array.get(out=host, blocking=True)
        return host

    def lend_obstacle(self, view: NDArray[Any]) -> str | None:  # noqa: ARG002
        return "cupy arrays live in device memory"

    def lend(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        raise NotImplementedError("cupy arrays live in device memory")

    def from_host(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        with self.entered(gpu_id):
            array = self.library.empty(view.shape, view.dtype)
            self.write_host(array, view)
        return array

    def export_obstacle(self, array: Array, *, packed: bool) -> str | None:
        if array.flags.c_contiguous:
            return None
        # torch's import aborts the process on a negative stride; DLPack counts strides in elements.
        if any(stride < 0 or stride % array.itemsize for stride in array.strides):
            return "it has strides that other libraries lack"
        return "it isn't C-contiguous" if packed else None

    def import_device_array(self, array: Any, gpu_id: GpuId) -> Array:
        # from_dlpack hands the producer this device's current stream.
        with self.entered(gpu_id):
            return self.library.from_dlpack(array)

    def empty(self, shape: tuple[int, ...], dtype: str, gpu_id: GpuId) -> Array:
        with self.entered(gpu_id):
            return self.library.empty(tuple(shape), numpy_dtype(dtype))

    def duplicate(self, array: Array) -> Array:
        with self.entered(self.device_of(array)):
            return array.copy(order="C")

    def write(self, destination: Array, source: Array) -> None:
        with self.entered(self.device_of(destination)):
            self.library.copyto(destination, source)

    def write_host(self, destination: Array, source: NDArray[Any]) -> None:
        with self.entered(self.device_of(destination)):
            # set() takes no destination with gaps. (ascontiguousarray would give a scalar a dimension.)
            packed = destination.flags.c_contiguous
            whole = destination if packed else self.library.empty(source.shape, source.dtype)
            whole.set(np.asarray(source, order="C"))
            if not packed:
                self.library.copyto(destination, whole)
            # set() is asynchronous and keeps no reference to its source, which may be pinned memory.
            self.library.cuda.get_current_stream().synchronize()

    def stack(self, slices: Sequence[Array], out: Array | None) -> Array:
        with self.entered(self.device_of(slices[0])):
            return self.library.stack(list(slices), out=out)

    def unstack(self, array: Array) -> list[Array]:
        with self.entered(self.device_of(array)):
            return list(array)

    def memory_held(self, gpu_id: GpuId) -> MemoryHeld:
        with self.entered(gpu_id):
            pool = self.library.get_default_memory_pool()
            return MemoryHeld(int(pool.total_bytes()), int(pool.free_bytes()))

    def measure_peak(self, gpu_id: GpuId) -> Callable[[], int | None]:
        meter = _PeakMeter(int(gpu_id))
        # CuPy calls a hook's methods by name: these take the place of its own, which do nothing.
        hook = self.library.cuda.MemoryHook()
        hook.name = f"stackyard peak {id(meter)}"
        hook.malloc_postprocess = meter.taken
        hook.free_postprocess = meter.given_back
        hook.__enter__()

        def ended() -> int:
            hook.__exit__(None, None, None)
            return meter.peak

        return ended

    def drain(self, gpu_id: GpuId) -> int:
        before = self.memory_held(gpu_id).held
        with self.entered(gpu_id):
            self.library.get_default_memory_pool().free_all_blocks()
        return before - self.memory_held(gpu_id).held

    def current_stream(self, gpu_id: GpuId) -> Any | None:
        with self.entered(gpu_id):
            return self.library.cuda.get_current_stream()

    def wait_for_stream(self, stream: Any, gpu_id: GpuId) -> None:
        with self.entered(gpu_id):
            self.library.cuda.get_current_stream().wait_event(stream.record())

    def work_mark(self, streams: Sequence[Any], gpu_id: GpuId) -> Callable[[], bool]:
        with self.entered(gpu_id):
            events = [stream.record() for stream in streams]
        return lambda: all(event.done for event in events)

    def pin(self, address: int, nbytes: int) -> None:
        self.library.cuda.runtime.hostRegister(address, nbytes, 0)

    def unpin(self, address: int) -> None:
        self.library.cuda.runtime.hostUnregister(address)

    def is_oom(self, error: BaseException) -> bool:
        cupy = sys.modules.get("cupy")
        if cupy is None:
            return super().is_oom(error)
        if type(error) is cupy.cuda.memory.OutOfMemoryError:
            return True
        # Every CUDA failure has this type: only one of its codes is about memory.
        if type(error) is cupy.cuda.runtime.CUDARuntimeError:
            return getattr(error, "status", None) == CUDA_OUT_OF_MEMORY
        # Its wrappers of CUDA's libraries, which take work areas of their own, put the code into the text.
        if type(error).__module__.startswith(("cupy_backends.cuda.libs", "cupy.cuda.cufft")):
            return "_ALLOC_FAILED" in str(error)
        return super().is_oom(error)

    def entered(self, place: GpuId) -> Any:
        # A Device takes effect only when entered.
        return self.library.cuda.Device(place)

    def array_namespace(self, array: Array) -> Any | None:  # noqa: ARG002
        return self.library


class _PeakMeter:
    """Follows what one thread takes from CuPy's pool on a device, since the pool counts no peak.

    What other threads give back isn't seen, so the peak is never too small.
    """

    def __init__(self, gpu_id: int) -> None:
        self.peak = 0
        self._gpu_id = gpu_id
        self._live = 0
        self._sizes: dict[int, int] = {}

    def taken(self, *, device_id: int, mem_size: int, mem_ptr: int, pmem_id: int, **_: Any) -> None:
        """Memory was taken from the pool; its address is 0 where that failed."""
        if device_id == self._gpu_id and mem_ptr:
            self._sizes[pmem_id] = mem_size
            self._live += mem_size
            self.peak = max(self.peak, self._live)

    def given_back(self, *, pmem_id: int, **_: Any) -> None:
        """Memory went back to the pool; what was there before the measurement isn't counted."""
        self._live -= self._sizes.pop(pmem_id, 0)
