"""The chain planner against every path counted out by hand, and Deferred, which carries plans out."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcore import (
    ArrayInfo,
    ContractError,
    Deferred,
    DeviceInfo,
    FunctionStep,
    backend_of,
    backend_status,
    conversion_counters,
    memory_types,
    plan_chain,
)
from memcore.chain import conversion_bytes

INFO = ArrayInfo("numpy", (2, 3, 5), "uint16")  # 60 bytes in host memory
BOTH = ("cpu", "gpu")


def step(*types: str, output: str = "same", name: str = "step", **keywords: Any) -> FunctionStep:
    return FunctionStep(lambda stack: stack, input=types, output=output, name=name, **keywords)


def test_a_chain_alternating_torch_and_cupy_stays_on_torch_if_it_can() -> None:
    chain = [step("torch"), step("cupy", "torch"), step("torch"), step("cupy", "torch")]
    on_gpu = ArrayInfo("torch", (2, 3, 5), "uint16", 0)
    best = plan_chain(chain, on_gpu, BOTH)[0]
    assert best.memory_types == ("torch",) * 4
    assert best.device_kinds == ("gpu",) * 4
    assert (best.conversions, best.bytes_moved, best.cost) == ((), 0, 0)


def test_a_chain_that_must_alternate_shares_device_memory() -> None:
    chain = [step("torch"), step("cupy"), step("torch")]
    best = plan_chain(chain, ArrayInfo("torch", (2, 3, 5), "uint16", 0), BOTH)[0]
    assert best.memory_types == ("torch", "cupy", "torch")
    assert best.bytes_moved == 0
    assert best.conversions == ("torch (gpu) to cupy (gpu), 0 bytes", "cupy (gpu) to torch (gpu), 0 bytes")


def test_plans_for_the_cpu_alone_and_a_gpu_alone_are_both_listed() -> None:
    plans = plan_chain([step("numpy", "cupy"), step("numpy", "cupy")], INFO, BOTH)
    assert [(plan.device_kinds, plan.bytes_moved) for plan in plans] == [
        (("cpu", "cpu"), 0),
        (("gpu", "gpu"), 60),
    ]


def test_a_step_that_only_the_cpu_has_cuts_the_chain() -> None:
    plans = plan_chain([step("cupy"), step("numpy"), step("cupy")], INFO, BOTH, end="numpy")
    assert [plan.device_kinds for plan in plans] == [("gpu", "cpu", "gpu")]
    assert plans[0].bytes_moved == 4 * 60


def test_what_steps_cost_decides_where_bytes_do_not() -> None:
    def cost(step: FunctionStep, memory_type: str, kind: str, nbytes: int) -> float:
        return nbytes * (10 if kind == "cpu" else 1)

    best = plan_chain([step("numpy", "cupy")] * 2, INFO, BOTH, step_cost=cost, end="numpy")[0]
    assert best.device_kinds == ("gpu", "gpu")
    assert best.bytes_moved == 120
    assert best.cost == 120 + 2 * 60


def test_conversions_are_priced_by_the_form_that_the_steps_leave() -> None:
    project = step("numpy", "cupy", name="project", output_like=lambda shape, dtype: ((1, *shape[1:]), dtype))
    best = plan_chain([project, step("cupy")], INFO, BOTH)[0]
    # Project on the CPU first: 30 bytes are sent and not 60.
    assert best.device_kinds == ("cpu", "gpu")
    assert best.bytes_moved == 30


def test_keywords_reach_the_form() -> None:
    crop = step("numpy", name="crop", output_like=lambda shape, dtype, planes: ((planes, *shape[1:]), dtype))
    best = plan_chain([crop, step("cupy")], INFO, BOTH, keywords=[{"planes": 1}, {}])[0]
    assert best.bytes_moved == 30


def test_a_result_of_another_type_lies_where_that_type_lives() -> None:
    best = plan_chain([step("cupy", output="numpy"), step("numpy")], INFO, BOTH)[0]
    assert best.bytes_moved == 60


def test_a_library_that_cannot_hold_the_dtype_is_passed_by() -> None:
    info = ArrayInfo("numpy", (2, 3, 5), "float64")
    best = plan_chain([step("pyclesperanto", "numpy")], info, BOTH)[0]
    assert best.memory_types == ("numpy",)


def test_memory_types_can_be_limited_one_by_one() -> None:
    plans = plan_chain([step("numpy", "torch")], INFO, {"torch": ["cpu"]})
    assert [plan.memory_types for plan in plans] == [("torch",)]


def test_devices_may_be_given_as_they_are_listed() -> None:
    listed = [DeviceInfo("cpu", "cpu", "host memory"), DeviceInfo(0, "gpu", "a card")]
    assert plan_chain([step("cupy")], INFO, listed) == plan_chain([step("cupy")], INFO, BOTH)
    status = backend_status("numpy")
    assert plan_chain([step("numpy", "cupy")], INFO, status)[0].memory_types == ("numpy",)


def test_a_library_that_is_not_installed_is_told_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_of("torch"), "installed", lambda: False)
    with pytest.raises(ContractError, match=r"torch isn't installed; install it with: pip install"):
        plan_chain([step("torch")], INFO, {"numpy": ["cpu"]})


def test_what_nothing_can_run_is_named() -> None:
    with pytest.raises(ContractError, match="nothing available can run blur"):
        plan_chain([step("numpy"), step("cupy", name="blur")], INFO, ["cpu"])
    with pytest.raises(ContractError, match="use convert_dtype"):
        plan_chain([step("pyclesperanto")], ArrayInfo("numpy", (2, 3, 5), "int64"), BOTH)
    with pytest.raises(ContractError, match="'tpu'"):
        plan_chain([step("numpy")], INFO, ["tpu"])
    with pytest.raises(ContractError, match="keywords for 2"):
        plan_chain([step("numpy")], INFO, ["cpu"], keywords=[{}, {}])


def test_an_empty_chain_is_the_stack_itself() -> None:
    assert plan_chain([], INFO, BOTH)[0].bytes_moved == 0


@pytest.mark.parametrize(
    ("source", "target", "copies"),
    [
        (("numpy", "cpu"), ("torch", "cpu"), 0),
        (("numpy", "cpu"), ("jax", "cpu"), 1),
        (("jax", "cpu"), ("numpy", "cpu"), 0),
        (("jax", "cpu"), ("torch", "cpu"), 1),
        (("jax", "cpu"), ("tensorflow", "cpu"), 0),
        (("numpy", "cpu"), ("cupy", "gpu"), 1),
        (("torch", "gpu"), ("cupy", "gpu"), 0),
        (("torch", "gpu"), ("jax", "gpu"), 1),
        (("torch", "gpu"), ("torch", "cpu"), 1),
        (("cupy", "gpu"), ("pyclesperanto", "gpu"), 2),
    ],
)
def test_conversions_cost_what_the_libraries_cannot_share(source: Any, target: Any, copies: int) -> None:
    assert conversion_bytes(*source, *target, 60) == copies * 60


KINDS: Mapping[str, tuple[str, ...]] = {
    "numpy": ("cpu",),
    "torch": ("cpu", "gpu"),
    "jax": ("cpu", "gpu"),
    "cupy": ("gpu",),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.sampled_from(list(KINDS)), min_size=1).map(sorted), min_size=1, max_size=4))
def test_no_path_is_cheaper_than_the_plan(chain: list[list[str]]) -> None:
    plan = plan_chain([step(*types) for types in chain], INFO, KINDS, end="numpy")[0]
    nodes = [[(name, kind) for name in types for kind in KINDS[name]] for types in chain]
    costs = []
    for path in itertools.product(*nodes):
        stops = [("numpy", "cpu"), *path, ("numpy", "cpu")]
        costs.append(sum(conversion_bytes(*a, *b, 60) for a, b in itertools.pairwise(stops)))  # type: ignore[arg-type]
    assert plan.cost == plan.bytes_moved == min(costs)


def test_planning_imports_no_library() -> None:
    code = (
        "import sys, memcore\n"
        "steps = [memcore.FunctionStep(len, input=list(memcore.MemoryType), name='any')] * 3\n"
        "info = memcore.ArrayInfo('numpy', (2, 3, 5), 'float64')\n"
        "assert memcore.plan_chain(steps, info, ['cpu', 'gpu'])\n"
        "print(sorted({'torch', 'jax', 'tensorflow', 'cupy', 'pyclesperanto'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Deferred


calls: list[str] = []


@memory_types(["numpy"])
def double(stack: Any, *, times: int = 1) -> Any:
    calls.append("double")
    return stack * 2**times


@double.register("torch")
def double_torch(stack: Any, *, times: int = 1) -> Any:
    calls.append("double_torch")
    return stack * 2**times


@memory_types("torch")
def negate(stack: Any) -> Any:
    calls.append("negate")
    return -stack


def test_nothing_runs_before_the_value_is_asked_for() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    calls.clear()
    conversion_counters.reset()
    conversion_counters.enable()
    try:
        stack = np.ones((2, 3, 5), np.float32)
        deferred = Deferred(stack).then(double, times=2).then(negate)
        assert calls == []
        assert conversion_counters.snapshot() == {}
        assert [each.name for each in deferred.pending] == ["double", "negate"]
        value = deferred.value()
    finally:
        conversion_counters.disable()
    assert calls[-1] == "negate"
    assert type(value) is torch.Tensor
    assert float(value[0, 0, 0]) == -4.0
    assert deferred.pending == ()
    calls.clear()
    assert deferred.value() is value
    np.testing.assert_array_equal(np.asarray(deferred), np.full((2, 3, 5), -4.0))
    assert calls == []


def test_a_deferred_chain_converts_no_more_than_its_plan_says() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    conversion_counters.reset()
    conversion_counters.enable()
    try:
        deferred = Deferred(torch.ones(2, 3, 5)).then(double).then(negate).then(double)
        assert deferred.plan().conversions == ()
        deferred.value()
    finally:
        conversion_counters.disable()
    assert {route for _, _, route in conversion_counters.snapshot()} <= {"identity"}
    conversion_counters.reset()


def test_a_step_that_has_run_does_not_run_again_because_a_later_one_fails() -> None:
    answers = iter([ZeroDivisionError("no"), None])

    def moody(stack: Any) -> Any:
        if error := next(answers):
            raise error
        return stack

    def count_up(stack: Any) -> Any:
        stack += 1
        return stack

    deferred = Deferred(np.zeros((1, 2, 3), np.float32))
    deferred = deferred.then(FunctionStep(count_up, input="numpy")).then(FunctionStep(moody, input="numpy"))
    with pytest.raises(ZeroDivisionError):
        deferred.value()
    assert [each.name for each in deferred.pending] == ["moody"]
    np.testing.assert_array_equal(deferred.value(), np.ones((1, 2, 3)))


def test_one_deferred_stack_may_branch() -> None:
    base = Deferred(np.ones((1, 1, 1), np.float32))
    twice, thrice = base.then(double), base.then(double).then(double)
    assert float(np.asarray(thrice)[0, 0, 0]) == 4.0
    assert float(np.asarray(twice)[0, 0, 0]) == 2.0
    assert float(np.asarray(base)[0, 0, 0]) == 1.0


def test_a_value_may_be_asked_for_in_any_memory_type() -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    value = Deferred(np.ones((1, 2, 3), np.float32)).then(double).value("jax")
    assert isinstance(value, jax.Array)
    cle = pytest.importorskip("pyclesperanto", reason="needs pyclesperanto")
    on_device = Deferred(np.ones((1, 2, 3), np.float32), gpu_id=0).then(double).value("pyclesperanto")
    assert isinstance(on_device, cle.Array)
    with pytest.raises(ContractError, match="gpu_id"):
        Deferred(np.ones((1, 2, 3), np.float32)).value("pyclesperanto")


def test_only_a_stack_is_deferred() -> None:
    with pytest.raises(ContractError, match=r"\[Z, Y, X\]"):
        Deferred(np.ones((2, 3)))
