"""NumPy: host memory, mutable, keeps the read-only flag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from memcore.backend import DTYPE_NAMES, Backend, numpy_dtype, numpy_dtype_name
from memcore.host import aligned_empty
from memcore.info import ITEM_SIZES, DeviceInfo
from memcore.memory_type import GpuId, MemoryType

_DEVICES = (DeviceInfo("cpu", "cpu", "host memory"),)


class NumpyBackend(Backend):
    """`numpy.ndarray`, and `numpy.memmap`, which is a plain array with a file behind it.

    `numpy.matrix` (always 2-D), `numpy.recarray`, masked arrays and other subclasses are refused.
    """

    memory_type: ClassVar[str] = MemoryType.NUMPY
    module: ClassVar[str] = "numpy"
    install_hint: ClassVar[str] = "pip install numpy"
    type_roots: ClassVar[tuple[str, ...]] = ("numpy",)
    device_kinds: ClassVar[tuple[Literal["cpu", "gpu"], ...]] = ("cpu",)
    keeps_read_only: ClassVar[bool] = True

    def is_array_type(self, cls: type) -> bool:
        return cls is np.ndarray

    def accepts_subclass(self, cls: type) -> bool:
        return cls is np.memmap

    def remedy_for_type(self, cls: type) -> str:
        if issubclass(cls, np.ma.MaskedArray):
            return "decide what masked values become with array.filled(value), or take array.data"
        return "take its values with numpy.asarray(array)"

    def devices(self) -> tuple[DeviceInfo, ...]:
        return _DEVICES

    def validate_gpu_id(self, gpu_id: object) -> GpuId:  # noqa: ARG002  host memory has no index to check
        return "cpu"

    def device_of(self, array: NDArray[Any]) -> GpuId:  # noqa: ARG002
        return "cpu"

    def shape_of(self, array: NDArray[Any]) -> tuple[int, ...]:
        return array.shape

    def dtype_of(self, array: NDArray[Any]) -> str:
        return DTYPE_NAMES.get(array.dtype) or numpy_dtype_name(array.dtype)

    def dtype_refusal(self, dtype: str) -> str | None:
        if dtype == "object":
            return "object arrays hold references, not values; choose a dtype with array.astype first"
        if dtype in ITEM_SIZES or dtype[:1] in "<>" or _is_numpys_own(dtype):
            return None
        return f"numpy has no {dtype}; choose a dtype with convert_dtype(array, dtype, rule) first"

    def host_view(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def to_host(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def lend_obstacle(self, view: NDArray[Any]) -> str | None:  # noqa: ARG002
        return None

    def lend(self, view: NDArray[Any], gpu_id: GpuId) -> NDArray[Any]:  # noqa: ARG002
        return view

    def from_host(self, view: NDArray[Any], gpu_id: GpuId) -> NDArray[Any]:  # noqa: ARG002
        fresh = aligned_empty(view.shape, view.dtype)
        np.copyto(fresh, view, casting="no")
        return fresh

    def empty(self, shape: tuple[int, ...], dtype: str, gpu_id: GpuId) -> NDArray[Any]:  # noqa: ARG002
        return aligned_empty(tuple(shape), numpy_dtype(dtype))

    def duplicate(self, array: NDArray[Any]) -> NDArray[Any]:
        return self.from_host(array, "cpu")

    def write(self, destination: NDArray[Any], source: NDArray[Any]) -> None:
        np.copyto(destination, source, casting="no")

    def write_host(self, destination: NDArray[Any], source: NDArray[Any]) -> None:
        np.copyto(destination, source, casting="no")

    def stack(self, slices: Sequence[NDArray[Any]], out: NDArray[Any] | None) -> NDArray[Any]:
        if out is None:
            out = aligned_empty((len(slices), *slices[0].shape), slices[0].dtype)
        return np.stack(slices, out=out, casting="no")

    def unstack(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        return list(array)


def _is_numpys_own(name: str) -> bool:
    """True for a dtype that NumPy calls by that name: its "complex32" has 32 bytes, and float8 is a guest."""
    try:
        dtype = np.dtype(name)
    except TypeError:
        return False
    return dtype.name == name and dtype.isbuiltin != 2
