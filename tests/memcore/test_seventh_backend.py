"""A seventh memory type, written here and registered in one line, from detection to pool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tifffile
import yaml

from memcore import (
    Deferred,
    FunctionStep,
    backend_status,
    convert_memory,
    memory_type_of,
    register_backend,
    stack_slices,
)
from memcore.memory_type import GpuId
from memcore.registry import backend_of, unregister_backend
from tests.memcore.backend_contract import BackendContract
from tests.memcore.gridlib import Grid, GridBackend

# Importing the file registers it, as it does in a worker; here it is there for this file's tests only.
unregister_backend("grid")


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


def test_it_runs_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scheduler.config import load_config
    from scheduler.execution.run import run

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    plate = tmp_path / "plate"
    plate.mkdir()
    for z in range(3):
        tifffile.imwrite(plate / f"A01_z{z:02}_c1.tif", np.full((31, 37), 100 + z, np.uint16))
    config = {
        "input": {"path": str(plate), "pattern": "{well}_z{z}_c{channel}.tif"},
        "steps": [{"use": "tests.memcore.gridlib:invert"}],
        "output": {"path": str(tmp_path / "out"), "name": "{well}_c{channel}"},
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    summary = run(load_config(file))
    assert (summary.jobs, summary.done, summary.failures) == (1, 1, ())
    result = tifffile.imread(tmp_path / "out" / "A01_c1.ome.tif")
    np.testing.assert_array_equal(result, 65535 - np.full((3, 31, 37), [[[100]], [[101]], [[102]]]))


def test_a_name_is_taken_once() -> None:
    class Other(GridBackend):
        pass

    assert register_backend(GridBackend) is GridBackend
    with pytest.raises(ValueError, match="taken"):
        register_backend(Other)
    with pytest.raises(ValueError, match="built in"):
        unregister_backend("numpy")
