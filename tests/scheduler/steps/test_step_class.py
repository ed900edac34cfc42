"""Steps that are classes: set up once for each memory type and device, called for each stack, torn down."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scheduler.steps.context import StepContext
from scheduler.steps.resolve import ResolvedStep, StepError, resolve_step

MODULE = """
events = []

class Threshold:
    declare = {"input": ["numpy", "torch"], "splittable": "zyx"}

    def __init__(self, *, model: str = "nuclei"):
        events.append(("made", model))

    def setup(self, context):
        events.append(("set up", context.memory_type, context.gpu_id))

    def __call__(self, stack, *, level: float, context):
        events.append(("called", level, context.job_id))
        return stack > level

    def teardown(self):
        events.append(("torn down",))

class Bare:
    def __call__(self, stack):
        return stack

class Failing:
    declare = {"input": "numpy"}
    tries = 0

    def setup(self, context):
        Failing.tries += 1
        if Failing.tries == 1:
            raise OSError("no weights")

    def __call__(self, stack):
        return stack

class NoCall:
    pass
"""
NAME = "stackyard_step_classes"


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    path = list(sys.path)
    resolve(tmp_path, "Bare", declare={"input": "numpy"})
    yield sys.modules[NAME]
    sys.path[:] = path
    del sys.modules[NAME]


def resolve(folder: Path, name: str, **keywords: Any) -> ResolvedStep:
    return resolve_step(f"{NAME}:{name}", search_path=[str(folder)], **keywords)


def context(memory_type: str = "numpy", gpu_id: int | str = "cpu", job_id: str = "A01") -> StepContext:
    return StepContext(memory_type, gpu_id, None, job_id)


def call(resolved: ResolvedStep, where: StepContext) -> Any:
    implementation = resolved.step.implementation_for(where.memory_type)
    assert implementation.takes_context
    return implementation.function(np.arange(6).reshape(1, 2, 3), context=where, **resolved.parameters)


def test_a_class_is_set_up_once_for_each_memory_type_and_device(tmp_path: Path, module: Any) -> None:
    resolved = resolve(tmp_path, "Threshold", with_={"model": "cyto", "level": 3})
    assert resolved.step.memory_types == ("numpy", "torch")
    assert resolved.parameters == {"level": 3}
    assert resolved.step.implementations[0].contract.splittable_for() == "zyx"
    assert module.events == []
    for where in (context(job_id="A01"), context(job_id="A02"), context("torch", 0, "A03")):
        assert call(resolved, where).sum() == 2
    assert module.events == [
        ("made", "cyto"),
        ("set up", "numpy", "cpu"),
        ("called", 3, "A01"),
        ("called", 3, "A02"),
        ("made", "cyto"),
        ("set up", "torch", 0),
        ("called", 3, "A03"),
    ]
    module.events.clear()
    resolved.close()
    resolved.close()
    assert module.events == [("torn down",), ("torn down",)]


def test_threads_share_one_set_up(tmp_path: Path, module: Any) -> None:
    resolved = resolve(tmp_path, "Threshold", with_={"level": 3})
    start = threading.Barrier(4)

    def together(_: int) -> Any:
        start.wait(timeout=30)
        return call(resolved, context())

    with ThreadPoolExecutor(4) as threads:
        assert [result.sum() for result in threads.map(together, range(4))] == [2] * 4
    assert module.events.count(("made", "nuclei")) == 1


def test_a_set_up_that_failed_is_tried_again(tmp_path: Path, module: Any) -> None:
    resolved = resolve(tmp_path, "Failing")
    with pytest.raises(OSError, match="no weights"):
        call(resolved, context())
    assert call(resolved, context()).shape == (1, 2, 3)
    assert module.Failing.tries == 2


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("Threshold", {}, "Threshold needs level"),
        ("Threshold", {"with_": {"level": "high"}}, "level is 'high', where float is wanted"),
        ("Threshold", {"with_": {"level": 1, "model": 2}}, "model is 2, where str is wanted"),
        (
            "Threshold",
            {"with_": {"level": 1, "mode": "a"}},
            r"no parameter 'mode' \(did you mean 'model'\?\)",
        ),
        ("Threshold", {"with_": {"level": 1, "context": 1}}, "context is given by the scheduler"),
        ("Bare", {}, "Bare doesn't say which memory types it takes: give the class an attribute declare"),
        ("NoCall", {"declare": {"input": "numpy"}}, "without a method __call__"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_cannot_be_is_refused(tmp_path: Path, name: str, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError, match=message):
        resolve(tmp_path, name, **keywords)
