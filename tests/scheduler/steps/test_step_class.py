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
import threading

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

class Sized:
    declare = {"input": ["numpy", "torch"]}

    def __init__(self, *, model: str = "small", layers: int = 1):
        pass

    @staticmethod
    def resident_bytes(model, memory_type):
        return {"small": 7, "large": "2GiB"}[model] * (3 if memory_type == "torch" else 1)

    def setup(self, context):
        pass

    def __call__(self, stack):
        return stack

class Fixed(Sized):
    resident_bytes = "3KiB"

class Vague(Sized):
    resident_bytes = None

class Wrong(Sized):
    resident_bytes = "much"

class Held:
    declare = {"input": "numpy"}
    in_call = threading.Event()
    go_on = threading.Event()
    alive = []

    def setup(self, context):
        Held.alive.append(self)

    def __call__(self, stack):
        Held.in_call.set()
        assert Held.go_on.wait(30)
        assert self in Held.alive, "torn down under a call"
        return stack

    def teardown(self):
        Held.alive.remove(self)
        events.append(("torn down",))

class Slow:
    declare = {"input": "numpy"}
    in_setup = threading.Event()
    go_on = threading.Event()

    def setup(self, context):
        events.append(("set up",))
        Slow.in_setup.set()
        assert Slow.go_on.wait(30)

    def __call__(self, stack):
        return stack

class Clumsy:
    declare = {"input": ["numpy", "torch"]}

    def __call__(self, stack):
        return stack

    def teardown(self):
        events.append(("torn down",))
        raise RuntimeError("stuck")
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


class Telling(threading.Condition):
    """Says when a thread waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waited_for.set()
        return super().wait(timeout)


def test_threads_share_one_set_up(tmp_path: Path, module: Any) -> None:
    resolved = resolve(tmp_path, "Slow")
    telling = resolved.step.implementations[0].function._changed = Telling()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(call, resolved, context())
        assert module.Slow.in_setup.wait(30)
        second = threads.submit(call, resolved, context())
        assert telling.waited_for.wait(30)
        module.Slow.go_on.set()
        assert [each.result(timeout=30).sum() for each in (first, second)] == [15, 15]
    assert module.events == [("set up",)]


def test_a_set_up_that_failed_is_tried_again(tmp_path: Path, module: Any) -> None:
    resolved = resolve(tmp_path, "Failing")
    with pytest.raises(OSError, match="no weights"):
        call(resolved, context())
    assert call(resolved, context()).shape == (1, 2, 3)
    assert module.Failing.tries == 2


def test_what_is_kept_is_torn_down_by_the_last_who_gives_it_up(tmp_path: Path, module: Any) -> None:
    resolved = resolve(tmp_path, "Threshold", with_={"level": 3})
    first, second = resolved.set_up(context(job_id="A01")), resolved.set_up(context(job_id="A02"))
    call(resolved, context(job_id="A03"))
    assert module.events.count(("set up", "numpy", "cpu")) == 1
    first()
    assert ("torn down",) not in module.events
    second()
    assert module.events[-1] == ("torn down",)
    call(resolved, context(job_id="A04"))
    assert module.events.count(("set up", "numpy", "cpu")) == 2


def test_a_call_alone_keeps_what_it_set_up_until_close(tmp_path: Path, module: Any) -> None:
    resolved = resolve(tmp_path, "Threshold", with_={"level": 3})
    call(resolved, context())
    resolved.set_up(context())()
    assert ("torn down",) not in module.events
    resolved.close()
    assert module.events[-1] == ("torn down",)


@pytest.mark.parametrize("close", [True, False])
def test_an_instance_in_use_is_not_torn_down_before_its_call_ends(
    tmp_path: Path, module: Any, close: bool
) -> None:
    resolved = resolve(tmp_path, "Held")
    give_up = resolved.set_up(context())
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(call, resolved, context())
        assert module.Held.in_call.wait(30)
        resolved.close() if close else give_up()
        assert len(module.Held.alive) == 1
        assert module.events == []
        module.Held.go_on.set()
        assert running.result(timeout=30).shape == (1, 2, 3)
    assert module.events == [("torn down",)]
    if close:
        give_up()
        assert module.events == [("torn down",)]


def test_a_set_up_that_failed_keeps_nothing(tmp_path: Path, module: Any) -> None:
    resolved = resolve(tmp_path, "Failing")
    with pytest.raises(OSError, match="no weights"):
        resolved.set_up(context())
    give_up = resolved.set_up(context())
    assert module.Failing.tries == 2
    give_up()
    resolved.set_up(context())
    assert module.Failing.tries == 3


def test_a_tearing_down_that_fails_keeps_no_other_from_it(tmp_path: Path, module: Any) -> None:
    resolved = resolve(tmp_path, "Clumsy")
    call(resolved, context())
    with pytest.raises(RuntimeError, match="stuck"):
        resolved.close()
    resolved.close()
    for where in (context(), context("torch", 0)):
        call(resolved, where)
    with pytest.raises(ExceptionGroup, match="Clumsy: 2 teardowns failed"):
        resolved.close()
    assert module.events == [("torn down",)] * 3


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("Sized", {}, {"numpy": 7, "torch": 21}),
        ("Sized", {"model": "small", "layers": 4}, {"numpy": 7, "torch": 21}),
        ("Fixed", {}, {"numpy": 3072, "torch": 3072}),
        ("Vague", {}, {"numpy": None, "torch": None}),
        ("Clumsy", {}, {"numpy": 0, "torch": 0}),
    ],
)
@pytest.mark.usefixtures("module")
def test_a_class_says_what_it_keeps(
    tmp_path: Path, name: str, given: dict[str, Any], expected: dict[str, int | None]
) -> None:
    resolved = resolve(tmp_path, name, with_=given)
    assert {memory_type: resolved.resident_bytes(memory_type) for memory_type in expected} == expected
    assert resolved.keeps_state == (name != "Clumsy")


def test_a_function_keeps_nothing() -> None:
    resolved = resolve_step("gaussian", with_={"sigma": 1.0})
    assert not resolved.keeps_state
    assert resolved.resident_bytes("numpy") == 0
    resolved.set_up(context())()


@pytest.mark.usefixtures("module")
def test_a_key_tells_descriptions_apart_and_is_the_same_everywhere(tmp_path: Path) -> None:
    keys = [
        resolve(tmp_path, "Sized", with_={"model": "small"}).key,
        resolve(tmp_path, "Sized", with_={"model": "small", "layers": 2}).key,
        resolve(tmp_path, "Fixed").key,
    ]
    assert len(set(keys)) == 3
    assert resolve(tmp_path, "Sized", with_={"model": "small"}).key == keys[0]
    assert resolve_step("gaussian", with_={"sigma": 2.0}).key == "631fc2a98042"


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
        ("Wrong", {}, "Wrong: resident_bytes tells no size: ValueError"),
        ("Sized", {"with_": {"model": "huge"}}, "Sized: resident_bytes tells no size: KeyError: 'huge'"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_cannot_be_is_refused(tmp_path: Path, name: str, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError, match=message):
        resolve(tmp_path, name, **keywords)
