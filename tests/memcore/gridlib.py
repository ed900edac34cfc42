"""A seventh memory type in one file: a little library, its backend, and a step that runs on its arrays."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from memcore import memory_types, register_backend
from memcore.backend import Backend, numpy_dtype, numpy_dtype_name
from memcore.host import aligned_empty
from memcore.info import DeviceInfo
from memcore.memory_type import GpuId


class Grid:
    """The array of a little library in host memory: values, and nothing of NumPy's interface."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, index: Any) -> Grid:
        return Grid(self.values[index])

    def __setitem__(self, index: Any, other: Grid) -> None:
        self.values[index] = other.values

    def __neg__(self) -> Grid:
        return Grid(-self.values)


@register_backend
class GridBackend(Backend):
    memory_type: ClassVar[str] = "grid"
    module: ClassVar[str] = "math"  # any module that is there: the library is this file
    install_hint: ClassVar[str] = "it is part of this test"
    type_roots: ClassVar[tuple[str, ...]] = (__name__.partition(".")[0],)
    device_kinds = ("cpu",)

    def is_array_type(self, cls: type) -> bool:
        return cls is Grid

    def devices(self) -> tuple[DeviceInfo, ...]:
        return (DeviceInfo("cpu", "cpu", "host memory"),)

    def device_of(self, array: Grid) -> GpuId:
        return "cpu"

    def dtype_of(self, array: Grid) -> str:
        return numpy_dtype_name(array.values.dtype)

    def host_view(self, array: Grid) -> np.ndarray:
        return array.values

    def to_host(self, array: Grid) -> np.ndarray:
        return array.values

    def lend_obstacle(self, view: np.ndarray) -> str | None:
        return None if view.flags.c_contiguous else "a grid is contiguous"

    def lend(self, view: np.ndarray, gpu_id: GpuId) -> Grid:
        return Grid(view)

    def from_host(self, view: np.ndarray, gpu_id: GpuId) -> Grid:
        return Grid(np.array(view, order="C"))

    def empty(self, shape: tuple[int, ...], dtype: str, gpu_id: GpuId) -> Grid:
        return Grid(aligned_empty(tuple(shape), numpy_dtype(dtype)))

    def duplicate(self, array: Grid) -> Grid:
        return Grid(array.values.copy())


@memory_types("grid")
def invert(grid: Grid) -> Grid:
    """The complement of 16-bit values."""
    return Grid(65535 - grid.values)
