"""pyclesperanto: OpenCL device memory, mutable, no 64-bit and no bool."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from memcore.backend import Backend, numpy_dtype, numpy_dtype_name
from memcore.errors import BackendUnavailableError
from memcore.info import DeviceInfo
from memcore.memory_type import Array, GpuId, MemoryType

MAX_DIMENSIONS = 3
# What an OpenCL runtime says when an allocation doesn't fit, by code and by name.
OUT_OF_MEMORY = (
    "CL_MEM_OBJECT_ALLOCATION_FAILURE",
    "CL_OUT_OF_RESOURCES",
    "CL_OUT_OF_HOST_MEMORY",
    "CL_INVALID_BUFFER_SIZE",
)


class PyclesperantoBackend(Backend):
    """Arrays of one to three dimensions in OpenCL memory; `gpu_id` is the index in OpenCL's list of devices.

    Exchange goes through the host: its DLPack names OpenCL memory, which no other library here reads.
    """

    memory_type: ClassVar[str] = MemoryType.PYCLESPERANTO
    module: ClassVar[str] = "pyclesperanto"
    install_hint: ClassVar[str] = "pip install 'stackyard[pyclesperanto]' and an OpenCL driver"
    type_roots: ClassVar[tuple[str, ...]] = (
        "pyclesperanto",
        "pyclesperanto_opencl",
        "pyclesperanto_cuda",
        "pyclesperanto_metal",
    )
    host_memory: ClassVar[bool] = False
    device_kinds: ClassVar[tuple[Literal["cpu", "gpu"], ...]] = ("gpu",)
    dtypes: ClassVar[frozenset[str]] = frozenset(
        {"uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"}
    )

    def __init__(self) -> None:
        super().__init__()
        self._devices: tuple[Any, ...] | None = None
        self._lock = threading.Lock()

    def before_import(self) -> None:
        # PoCL's LLVM loaded after TensorFlow's crashes the process; loaded before, both work.
        if "tensorflow" in sys.modules and self.module not in sys.modules and pocl_is_configured():
            raise BackendUnavailableError(
                "pyclesperanto can't be loaded after tensorflow in one process: PoCL, an OpenCL driver that "
                "is configured here, would crash it. Put `import pyclesperanto` before `import tensorflow`, "
                "or name another driver in OCL_ICD_VENDORS"
            )

    def is_array_type(self, cls: type) -> bool:
        return cls.__name__ == "_Array" and _is_extension(cls.__module__)

    def devices(self) -> tuple[DeviceInfo, ...]:
        handles = self._handles()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it warns where there is no CPU device
            on_cpu = set(self.library.list_available_devices("cpu"))
        return tuple(
            DeviceInfo(i, "cpu" if d.name in on_cpu else "gpu", str(d.name)) for i, d in enumerate(handles)
        )

    def validate_gpu_id(self, gpu_id: object) -> GpuId:
        if type(gpu_id) is int and 0 <= gpu_id < len(self._handles()):
            return gpu_id
        return super().validate_gpu_id(gpu_id)

    def device_of(self, array: Array) -> GpuId:
        return int(array.device.index)

    def can_move(self, origin: GpuId, place: GpuId) -> bool:  # noqa: ARG002  one OpenCL context for each device
        return False

    def synchronize(self, gpu_id: GpuId) -> None:
        # The queue is in order: a blocking read comes back after all that was submitted before it.
        self.library.create((1,), dtype=np.uint8, device=self._handles()[int(gpu_id)]).get()

    def dtype_of(self, array: Array) -> str:
        return numpy_dtype_name(np.dtype(array.dtype))

    def dtype_remedy(self, dtype: str) -> str:
        if dtype.startswith("complex"):
            return "take its real and imaginary part as two float32 arrays"
        nearest = {"int64": "int32", "uint64": "uint32", "bool": "uint8"}.get(dtype, "float32")
        return f"use convert_dtype(array, {nearest!r}, rule) first"

    def shape_refusal(self, shape: tuple[int, ...]) -> str | None:
        if not 1 <= len(shape) <= MAX_DIMENSIONS:
            return f"pyclesperanto holds 1 to {MAX_DIMENSIONS} dimensions, not {len(shape)}; reshape first"
        if 0 in shape:
            return f"pyclesperanto has no empty arrays, such as {shape}; leave it out"
        return None

    def host_view(self, array: Array) -> NDArray[Any] | None:  # noqa: ARG002
        return None

    def to_host(self, array: Array) -> NDArray[Any]:
        host: NDArray[Any] = array.get()
        return host

    def lend_obstacle(self, view: NDArray[Any]) -> str | None:  # noqa: ARG002
        return "pyclesperanto arrays live in device memory"

    def lend(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        raise NotImplementedError("pyclesperanto arrays live in device memory")

    def from_host(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        array = self.library.create(view.shape, dtype=view.dtype, device=self._handles()[int(gpu_id)])
        array.set(np.ascontiguousarray(view))
        return array

    def import_device_array(self, array: Array, gpu_id: GpuId) -> Array:
        return self.library.Array.from_dlpack(array, device=self._handles()[int(gpu_id)])

    def empty(self, shape: tuple[int, ...], dtype: str, gpu_id: GpuId) -> Array:
        return self.library.create(
            tuple(shape), dtype=numpy_dtype(dtype), device=self._handles()[int(gpu_id)]
        )

    def duplicate(self, array: Array) -> Array:
        return array.copy()

    def write(self, destination: Array, source: Array) -> None:
        if self.device_of(destination) == self.device_of(source):
            destination[...] = source
        else:
            destination.set(source.get())

    def write_host(self, destination: Array, source: NDArray[Any]) -> None:
        destination.set(np.ascontiguousarray(source))

    def unstack(self, array: Array) -> list[Array]:
        # Not array[z]: pyclesperanto gathers a plane through float32, which rounds 32-bit integers, and makes
        # a Python number of a plane of one element.
        count, *sides = array.shape
        planes = [self.empty(tuple(sides), self.dtype_of(array), self.device_of(array)) for _ in range(count)]
        for z, plane in enumerate(planes):
            array.copy(plane, (z, 0, 0), (0, 0, 0), (1, *sides))
        return planes

    def is_oom(self, error: BaseException) -> bool:
        if type(error) is RuntimeError and any(name in str(error) for name in OUT_OF_MEMORY):
            return True
        return super().is_oom(error)

    def _handles(self) -> tuple[Any, ...]:
        """Device objects by index. Selecting one changes the current device: done once, and undone."""
        with self._lock:
            if self._devices is None:
                library = self.library
                with warnings.catch_warnings():
                    warnings.simplefilter(
                        "ignore", RuntimeWarning
                    )  # "no device available" is our error below
                    names = library.list_available_devices("all")
                if not names:
                    raise BackendUnavailableError(
                        "pyclesperanto finds no OpenCL device: install your GPU's OpenCL driver, or PoCL for "
                        "the CPU (apt install pocl-opencl-icd)"
                    )
                current = library.get_device()
                self._devices = tuple(library.select_device(index) for index in range(len(names)))
                library.select_device(current.index)
            return self._devices


def _is_extension(module: str) -> bool:
    return module.startswith("pyclesperanto") and module.endswith("._pyclesperanto")


def pocl_is_configured() -> bool:
    """True if the OpenCL loader would load PoCL, by the driver files that it reads."""
    place = Path(os.environ.get("OCL_ICD_VENDORS", "/etc/OpenCL/vendors"))
    files = [place] if place.suffix == ".icd" else sorted(place.glob("*.icd")) if place.is_dir() else []
    return any("pocl" in file.name or "pocl" in file.read_text(errors="replace") for file in files)
