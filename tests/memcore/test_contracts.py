"""Declarations: what goes in and comes out is checked; a scheduler reads them, also after pickling."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import numpy as np
import pytest

from memcore import Contract, ContractError, FunctionStep, MemoryType, UnknownMemoryTypeError, memory_types
from memcore.contracts import implementations_of
from tests.memcore.sample_steps import add, add_torch, fetch

torch = pytest.importorskip("torch", reason="needs torch")

STACK = np.ones((2, 3, 5), np.float32)


def test_a_call_goes_to_the_implementation_for_its_type() -> None:
    assert type(add(STACK, amount=2)) is np.ndarray
    tensor = add(torch.from_numpy(STACK), amount=2)
    assert type(tensor) is torch.Tensor
    assert float(tensor[1, 2, 4]) == 3.0
    # Each implementation is still callable by its own name.
    assert type(add_torch(torch.ones(1, 1, 1))) is torch.Tensor


def test_what_is_accepted_is_named() -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    with pytest.raises(ContractError, match="add accepts numpy, cupy, torch, but was given jax"):
        add(jax.numpy.ones((2, 3, 5)))
    with pytest.raises(UnknownMemoryTypeError, match="list"):
        add([[[1]]])


@pytest.mark.parametrize("shape", [(3, 5), (1, 2, 3, 5), ()])
def test_a_stack_is_3d_on_the_way_in(shape: tuple[int, ...]) -> None:
    with pytest.raises(ContractError, match=r"\[Z, Y, X\]"):
        add(np.ones(shape))


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (STACK[0], r"gave back shape \(3, 5\)"),
        (torch.ones(2, 3, 5), "gave back torch, where numpy"),
        ({"mask": STACK[0]}, r"gave back shape \(3, 5\)"),
        ((STACK, STACK[0, 0]), r"gave back shape \(5,\)"),
    ],
    ids=["2-D", "type", "named", "second"],
)
def test_a_result_that_breaks_the_declaration_is_refused(result: Any, problem: str) -> None:
    @memory_types("numpy")
    def bad(stack: Any) -> Any:
        return result

    with pytest.raises(ContractError, match=problem):
        bad(STACK)


def test_a_masked_result_is_refused() -> None:
    @memory_types("numpy")
    def masks(stack: Any) -> Any:
        return np.ma.masked_less(stack, 0)

    with pytest.raises(UnknownMemoryTypeError, match="filled"):
        masks(STACK)


def test_named_stacks_may_come_with_a_table() -> None:
    class Table:
        """Like a data frame: it has a shape and is no array."""

        shape = (2, 2)

    @memory_types("numpy")
    def measures(stack: Any) -> Any:
        return {"stack": stack, "cells": Table(), "columns": {"area": [1, 2]}}

    assert set(measures(STACK)) == {"stack", "cells", "columns"}


def test_a_step_may_change_the_memory_type() -> None:
    assert type(fetch(torch.from_numpy(STACK))) is np.ndarray
    (implementation,) = implementations_of(fetch)
    assert implementation.contract.output_type("torch") == "numpy"


def test_the_declaration_survives_pickling_and_wrapping() -> None:
    again = pickle.loads(pickle.dumps(add))
    assert again is add

    @functools.wraps(add)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        return add(*arguments, **keywords)

    for function in (again, wrapped):
        first, second = implementations_of(function)
        assert first.contract.input == (MemoryType.NUMPY, MemoryType.CUPY)
        assert second.contract.input == (MemoryType.TORCH,)
    assert add.__name__ == "add"
    assert add.__doc__ == "Add a number."


def test_a_scheduler_reads_the_contract() -> None:
    first, second = (each.contract for each in implementations_of(add))
    assert (first.splittable_for(), first.halo_for(amount=3)) == ("z", (1, 2, 2))
    assert first.workspace_for((2, 3, 5), "float32") == 7
    assert first.output_for((2, 3, 5), "float32") == ((2, 3, 5), "float32")
    # What register isn't given is as in the first declaration.
    assert (second.splittable_for(), second.halo_for()) == (None, (1, 2, 2))


def test_halo_workspace_and_result_may_depend_on_the_keywords() -> None:
    contract = Contract(
        ("numpy",),
        halo=lambda sigma=1.0: (0, round(3 * sigma), round(3 * sigma)),
        workspace=lambda shape, dtype, sigma: int(np.prod(shape) * np.dtype(dtype).itemsize * sigma),
        output_like=lambda shape, dtype: ((1, *shape[1:]), dtype),
    )
    assert contract.halo_for(sigma=2.0, unrelated="x") == (0, 6, 6)
    assert contract.workspace_for((2, 3, 5), "uint16", sigma=2) == 120
    assert contract.output_for((2, 3, 5), "uint16", sigma=2) == ((1, 3, 5), "uint16")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"input": ()}, "at least one"),
        ({"input": "mxnet"}, "mxnet"),
        ({"input": ["numpy", "numpy"]}, "twice"),
        ({"input": "numpy", "output": "mxnet"}, "mxnet"),
        ({"input": "numpy", "splittable": "x"}, "splittable"),
        ({"input": "numpy", "halo": (1, 2)}, "halo"),
        ({"input": "numpy", "halo": (0, -1, 0)}, "halo"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_declaration_that_makes_no_sense_is_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ContractError, match=problem):
        memory_types(**arguments)(lambda stack: stack)


def test_one_memory_type_has_one_implementation() -> None:
    @memory_types("numpy")
    def step(stack: Any) -> Any:
        return stack

    with pytest.raises(ContractError, match="numpy"):
        step.register(["torch", "numpy"])(lambda stack: stack)


def test_a_function_step_takes_over_the_implementations() -> None:
    step = FunctionStep(add)
    assert step.name == "add"
    assert step.memory_types == ("numpy", "cupy", "torch")
    assert step.implementation_for("torch").function.__name__ == "add_torch"
    assert float(step(STACK, amount=4)[0, 0, 0]) == 5.0
    with pytest.raises(ContractError, match="add accepts numpy, cupy, torch, not jax"):
        step.implementation_for("jax")
    again = pickle.loads(pickle.dumps(step))
    assert again.memory_types == step.memory_types
    narrow = pickle.loads(pickle.dumps(FunctionStep(add, input="torch", name="mine")))
    assert (narrow.name, narrow.memory_types) == ("mine", ("torch",))


def test_a_function_step_may_be_restricted() -> None:
    step = FunctionStep(add, input=["torch", "numpy"])
    assert step.memory_types == ("torch", "numpy")
    with pytest.raises(ContractError, match="none of jax"):
        FunctionStep(add, input="jax")


def test_an_undecorated_function_is_declared_from_outside() -> None:
    step = FunctionStep(np.negative, input="numpy", splittable="zyx", halo=(0, 1, 1))
    np.testing.assert_array_equal(step(STACK), -STACK)
    contract = step.implementation_for("numpy").contract
    assert (contract.splittable_for(), contract.halo_for()) == ("zyx", (0, 1, 1))
    with pytest.raises(ContractError, match="FunctionStep"):
        FunctionStep(np.negative)
    with pytest.raises(ContractError, match="its decorator"):
        FunctionStep(add, input="numpy", halo=(0, 0, 0))


def test_a_keyword_only_context_is_seen() -> None:
    @memory_types("numpy")
    def knows(stack: Any, *, context: Any) -> Any:
        return stack

    @memory_types("numpy")
    def does_not(stack: Any, context: Any = None) -> Any:
        return stack

    assert implementations_of(knows)[0].takes_context
    assert not implementations_of(does_not)[0].takes_context


def test_a_class_is_refused_when_it_is_decorated():
    with pytest.raises(ContractError, match="Model is a class: give it a class attribute"):

        @memory_types("numpy")
        class Model:
            def __call__(self, stack):
                return stack
