"""A seventh memory type, written here and registered in one line, from detection to pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from memcore import (
    Deferred,
    FunctionStep,
    backend_status,
    convert_memory,
    memory_type_of,
    register_backend,
    stack_slices,
)
from memcore.backend import Backend, numpy_dtype, numpy_dtype_name
from memcore.host import aligned_empty
from memcore.info import DeviceInfo
from memcore.memory_type import GpuId
from memcore.registry import backend_of, unregister_backend
from tests.memcore.backend_contract import BackendContract


class Grid:
    """The array of a little library in host memory: values, and nothing of NumPy's interface."""

    __module__ = "gridlib"

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


class GridBackend(Backend):
    memory_type: ClassVar[str] = "grid"
    module: ClassVar[str] = "math"  # any module that is there: the library is this file
    install_hint: ClassVar[str] = "it is part of this test"
    type_roots: ClassVar[tuple[str, ...]] = ("gridlib",)
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


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_backend(GridBackend)
    yield
    unregister_backend("grid")


class TestGrid(BackendContract):
    place: ClassVar[GpuId] = "cpu"

    @pytest.fixture(autouse=True)
    def here(self, registered: None) -> None:
        type(self).backend = backend_of("grid")

    def make(self, values: np.ndarray) -> Any:
        return Grid(values.copy())

    def read(self, array: Any) -> np.ndarray:
        return array.values


def test_it_converts_to_and_from_every_library_that_is_here() -> None:
    values = np.arange(30, dtype=np.uint16).reshape(2, 3, 5)
    for name, status in backend_status().items():
        if not status.available:
            continue
        place = 0 if name == "pyclesperanto" else "cpu"
        there = convert_memory(Grid(values), "grid", name, place)
        assert memory_type_of(there) == name
        back = convert_memory(there, name, "grid", "cpu")
        assert type(back) is Grid
        np.testing.assert_array_equal(back.values, values)


def test_it_takes_part_in_chains() -> None:
    chain = Deferred(np.ones((1, 2, 3), np.float32)).then(FunctionStep(lambda grid: -grid, input="grid"))
    assert chain.plan().memory_types == ("grid",)
    assert float(np.asarray(chain)[0, 0, 0]) == -1.0


def test_it_runs_a_pool() -> None:
    from pools import PoolSet

    with PoolSet(host_limit=1 << 20) as pools:
        pool = pools.pool("grid", "cpu")
        with pool.acquire((2, 3, 5), np.dtype("uint16")) as grid:
            assert type(grid) is Grid
            filled = stack_slices(list(np.ones((2, 3, 5), np.uint16)), "grid", "cpu", out=grid)
            assert filled is grid
        assert pool.stats().misses == 1


def test_a_name_is_taken_once() -> None:
    class Other(GridBackend):
        pass

    assert register_backend(GridBackend) is GridBackend
    with pytest.raises(ValueError, match="taken"):
        register_backend(Other)
    with pytest.raises(ValueError, match="built in"):
        unregister_backend("numpy")
