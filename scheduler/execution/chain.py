"""Carrying stacks through their chain of steps in one process."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memcore import ContractError, convert_memory, memory_type_of
from scheduler.core.blocks import Shape, cut
from scheduler.core.model import Split
from scheduler.execution.step_call import (
    ChainStep,
    MakeContext,
    ReadArray,
    StepFailedError,
    StepTable,
    call_step,
)
from scheduler.images.arrays import ArrayFile
from scheduler.steps.carried import STACK, told_apart
from scheduler.steps.context import StepContext
from scheduler.steps.resolve import ResolvedStep

__all__ = [
    "ChainStep",
    "MakeContext",
    "Segment",
    "StepFailedError",
    "chain_halo",
    "run_chain",
    "run_chain_in_blocks",
    "run_named_chain",
    "steps_of",
]


class Segment(Protocol):
    """The context of a chain's stay on its device; `last` is true for the last one."""

    def __call__(self, *, last: bool) -> contextlib.AbstractContextManager[None]: ...


def run_chain(
    stack: Any,
    steps: Sequence[ChainStep],
    *,
    make_context: MakeContext | partial[StepContext],
    segment: Segment | None = None,
    on_step: Callable[[ChainStep], None] = lambda _: None,
    read_array: ReadArray = ArrayFile.read,
) -> Any:
    """`run_named_chain` for what can be done in blocks: one stack goes in, one and no table comes out.

    Raises
    ------
    ContractError
        The chain gave several stacks, or a table.
    """
    stacks = {STACK: stack}
    tables = run_named_chain(
        stacks, steps, make_context=make_context, segment=segment, on_step=on_step, read_array=read_array
    )
    if tables or len(stacks) != 1:
        given = [*stacks, *(f"a table by {table.label}" for table in tables)]
        raise ContractError(
            f"one stack is wanted of each block, and the chain gave {', '.join(given)}: "
            "a step that gives more isn't splittable"
        )
    return stacks.popitem()[1]


def run_named_chain(
    stacks: dict[str, Any],
    steps: Sequence[ChainStep],
    *,
    make_context: MakeContext | partial[StepContext],
    segment: Segment | None = None,
    on_step: Callable[[ChainStep], None] = lambda _: None,
    read_array: ReadArray = ArrayFile.read,
) -> list[StepTable]:
    """Pass the `[Z, Y, X]` stacks in `stacks` through `steps`, which puts the results in their place.

    Afterwards `stacks` holds what the chain gives, by name, as NumPy arrays; each may be one that went in, or
    a view of it. Returned are the tables that steps gave. Between two steps an array is converted only where
    the plan changes its memory type.

    Parameters
    ----------
    segment
        Entered for each run of steps that need the device, with both transfers; steps on the host between
        them run outside.
    on_step
        Called before each step.
    read_array
        Gives an array that a step takes from a file, as a NumPy array.

    Raises
    ------
    StepFailedError
        A step raised. Out of memory passes through as it is.
    """
    tables = []
    names = iter(told_apart([step.resolved.name for step in steps]))
    stays = [(on_host, list(some)) for on_host, some in groupby(steps, key=attrgetter("on_host"))]
    last = max((number for number, (on_host, _) in enumerate(stays) if not on_host), default=-1)
    for number, (on_host, some) in enumerate(stays):
        held = contextlib.nullcontext() if on_host or segment is None else segment(last=number == last)
        with held:
            for step in some:
                on_step(step)
                tables += call_step(
                    step, stacks, make_context=make_context, read_array=read_array, called=next(names)
                )
            for name in stacks:
                stacks[name] = convert_memory(stacks[name], memory_type_of(stacks[name]), "numpy", "cpu")
    return tables


def run_chain_in_blocks(
    stack: NDArray[Any],
    steps: Sequence[ChainStep],
    split: Split,
    *,
    make_context: MakeContext,
    make_output: Callable[[Shape, str], NDArray[Any]],
    on_step: Callable[[ChainStep], None] = lambda _: None,
    read_array: ReadArray = ArrayFile.read,
) -> NDArray[Any]:
    """The same result as `run_chain`, bit for bit, one block after another.

    Each block is a copy with the halo of the whole chain, so that a step may write to it. `make_output` gives
    the NumPy array of a shape and dtype that the blocks are joined in; `make_context` gets the index of the
    block's first plane too.

    Raises
    ------
    ContractError
        The chain isn't splittable along `split.axes`.
    """
    reach = chain_halo(steps_of(steps))
    if reach is None or not set(split.axes) <= set(reach[0]):
        raise ContractError(f"the chain can't be cut along {split.axes}: a step in it isn't splittable so")
    shape: Shape = (stack.shape[0], stack.shape[1], stack.shape[2])
    out: NDArray[Any] | None = None
    for block in cut(shape, split.axes, split.blocks, reach[1]):
        at_z = partial(make_context, z_start=block.read[0].start)
        part = np.array(stack[block.read], order="C")
        result = run_chain(part, steps, make_context=at_z, on_step=on_step, read_array=read_array)
        if result.shape != part.shape:
            raise ContractError(f"a splittable chain made {result.shape} of a block of shape {part.shape}")
        if out is None:
            out = make_output(shape, result.dtype.name)
        out[block.place] = result[block.keep]
    assert out is not None
    return out


def steps_of(steps: Sequence[ChainStep]) -> list[tuple[ResolvedStep, str]]:
    """The steps with the memory type that each runs on."""
    return [(step.resolved, step.memory_type) for step in steps]


def chain_halo(steps: Sequence[tuple[ResolvedStep, str]]) -> tuple[str, Shape] | None:
    """The axes along which a chain may be cut, and the halo (z, y, x) that it needs; None if it can't be cut.

    The halos of steps that follow one another add up. A chain of several stacks can't be cut. Arrays that a
    step takes from files aren't cut with the stack, and belong to its planes, or to places in them: with one
    of several planes a chain can't be cut, with one [Y, X] only along z.
    """
    axes, total = "zyx", [0, 0, 0]
    for resolved, memory_type in steps:
        if resolved.inputs or resolved.outputs:
            return None
        for file in resolved.arrays.values():
            if any(length > 1 for length in file.shape[:-2]):
                return None
            if any(length > 1 for length in file.shape[-2:]):
                axes = "z"
        contract = resolved.step.implementation_for(memory_type).contract
        along = contract.splittable_for(**resolved.declared_with)
        if along is None and contract.slice_by_slice:
            along = "z"
        if along is None:
            return None
        axes = min(axes, along, key=len)
        total = [a + b for a, b in zip(total, contract.halo_for(**resolved.declared_with), strict=True)]
    return axes, (total[0], total[1], total[2])
