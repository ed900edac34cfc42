"""What a worker keeps in host memory for jobs to come is never counted beside a job's own bytes."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pools import PoolSet
from scheduler.execution.array_files import ArrayFiles
from scheduler.execution.chain import ChainStep
from scheduler.execution.idle_host import IdleHost, OwnIdle
from scheduler.execution.residents import Residents
from scheduler.images.arrays import ArrayFile
from scheduler.steps.context import StepContext
from scheduler.steps.resolve import resolve_step

NAME = "stackyard_idle_steps"
MODULE = """
class Model:
    declare = {"input": ["numpy", "torch"]}

    def __init__(self, *, weights: int = 100):
        pass

    @staticmethod
    def resident_bytes(weights):
        return weights

    def setup(self, context):
        pass

    def __call__(self, stack):
        return stack
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop(NAME, None)


@pytest.fixture
def files(tmp_path: Path) -> list[ArrayFile]:
    found = []
    for side in (3, 5):
        np.save(tmp_path / f"{side}.npy", np.ones((side, side), np.uint8))
        found.append(ArrayFile.of(tmp_path / f"{side}.npy"))
    return found


def model(folder: Path, weights: int, memory_type: str = "numpy") -> ChainStep:
    resolved = resolve_step(f"{NAME}:Model", with_={"weights": weights}, search_path=[str(folder)])
    return ChainStep(resolved, memory_type, "cpu")


def use(residents: Residents, *steps: ChainStep) -> contextlib.AbstractContextManager[Any]:
    return residents.in_use(steps, lambda step: StepContext(step.memory_type, step.gpu_id, None, "job"))


def nothing(_name: str, _nbytes: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def test_state_is_idle_on_the_host_only_while_no_attempt_uses_it(module: Path) -> None:
    residents = Residents(nothing, on_gpu=False)
    with use(residents, model(module, 100), model(module, 7)):
        assert residents.idle_on_host() == 0
        assert residents.give_up_on_host(1) == 0
    assert residents.idle_on_host() == 107
    assert residents.idle_on_host(residents.names()[0]) == 107
    assert residents.idle_on_host("another") == 0


@pytest.mark.parametrize(("in_host", "nbytes"), [(False, 7), (True, 107)], ids=["cuda", "virtual"])
def test_on_a_gpu_what_is_kept_for_numpy_is_in_host_memory(module: Path, in_host: bool, nbytes: int) -> None:
    residents = Residents(nothing, on_gpu=True, device_in_host=in_host)
    with use(residents, model(module, 100, "torch"), model(module, 7)):
        pass
    assert residents.idle_on_host() == nbytes


def test_state_larger_than_declared_counts_as_it_was_measured(module: Path) -> None:
    held = iter([1000, 1300])
    residents = Residents(nothing, on_gpu=False, measured_on_host=lambda: next(held))
    with use(residents, model(module, 100)):
        pass
    assert residents.idle_on_host() == 300


def test_the_longest_unused_state_goes_first_and_only_as_much_as_is_wanted(module: Path) -> None:
    evicted: list[str] = []
    residents = Residents(nothing, on_gpu=False, on_evicted=evicted.append)
    for weights in (10, 20, 40):
        with use(residents, model(module, weights)):
            pass
    first, second, third = residents.names()
    assert residents.give_up_on_host(15, but=[first]) == 20
    assert residents.names() == (first, third)
    assert residents.give_up_on_host(1000) == 50
    assert evicted == [second, first, third]


def test_arrays_of_files_stay_while_they_are_used(files: list[ArrayFile]) -> None:
    cache = ArrayFiles()
    with cache.in_use(files[:1]):
        arrays = [cache.get(file) for file in files]
        assert cache.idle_bytes == 25
        assert cache.give_up(1000) == 25
        assert cache.get(files[0]) is arrays[0]
        assert cache.get(files[1]) is not arrays[1]
    assert cache.idle_bytes == 9 + 25
    assert cache.give_up(1, but=files[:1]) == 25
    assert cache.give_up(1) == 9
    assert cache.idle_bytes == 0


def test_an_attempt_takes_nothing_away_from_itself(module: Path, files: list[ArrayFile]) -> None:
    pools, residents, cache = PoolSet(), Residents(nothing, on_gpu=False), ArrayFiles()
    idle = IdleHost(pools, residents, cache)
    try:
        for weights in (10, 20):
            with use(residents, model(module, weights)):
                pass
        for file in files:
            cache.get(file)
        assert idle.nbytes == 10 + 20 + 9 + 25
        own = OwnIdle(residents.names()[0], frozenset(files[:1]))
        assert idle.nbytes_for(own) == 10 + 9
        assert idle.reclaim(1000, but=own) >= 20 + 25
        assert idle.nbytes == idle.nbytes_for(own) == 10 + 9
        idle.reclaim(1000)
        assert idle.nbytes == 0
    finally:
        pools.close()
