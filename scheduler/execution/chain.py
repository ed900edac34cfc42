"""Carrying a stack through its chain of steps in one process."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memcore import ContractError, backend_of, convert_memory, memory_type_of
from memcore.memory_type import GpuId
from pools.holder import current_holder, held_by
from pools.oom import is_oom
from scheduler.core.blocks import Shape, cut
from scheduler.core.model import Split
from scheduler.execution.errors import shortened
from scheduler.images.errors import said
from scheduler.steps.context import StepContext
from scheduler.steps.resolve import ResolvedStep


class MakeContext(Protocol):
    """Makes the context of a step's call; `z_start` is the first plane's index in the whole stack."""

    def __call__(self, step: "ChainStep", z_start: int = 0) -> StepContext: ...


class StepFailedError(RuntimeError):
    """A step raised; the message names the step, the array it was given, and what it said."""

    def __init__(self, step: str, stack: str, error: str) -> None:
        super().__init__(step, stack, error)

    def __str__(self) -> str:
        step, stack, error = self.args
        return f"step {step} failed on {stack}: {error}"


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One step of a chain with the memory type that a plan gives it and where its arrays live."""

    resolved: ResolvedStep
    memory_type: str
    gpu_id: GpuId
    on_host: bool = False
    """A step for NumPy in a GPU's chain: it doesn't need the GPU."""


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
) -> Any:
    """Pass a `[Z, Y, X]` stack through `steps`; returns the last result as a NumPy array.

    Between two steps the array is converted only where the plan changes its memory type. The result may be
    `stack` itself or a view of it.

    Parameters
    ----------
    segment
        Entered for each run of steps that need the device, with both transfers; steps on the host between
        them run outside.
    on_step
        Called before each step.

    Raises
    ------
    StepFailedError
        A step raised. Out of memory passes through as it is.
    """
    array = stack
    stays = [(on_host, list(some)) for on_host, some in groupby(steps, key=attrgetter("on_host"))]
    last = max((number for number, (on_host, _) in enumerate(stays) if not on_host), default=-1)
    for number, (on_host, some) in enumerate(stays):
        held = contextlib.nullcontext() if on_host or segment is None else segment(last=number == last)
        with held:
            for step in some:
                on_step(step)
                array = convert_memory(array, memory_type_of(array), step.memory_type, step.gpu_id)
                array = _call(step, array, make_context)
            array = convert_memory(array, memory_type_of(array), "numpy", "cpu")
    return array


def run_chain_in_blocks(
    stack: NDArray[Any],
    steps: Sequence[ChainStep],
    split: Split,
    *,
    make_context: MakeContext,
    make_output: Callable[[Shape, str], NDArray[Any]],
    on_step: Callable[[ChainStep], None] = lambda _: None,
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
        result = run_chain(part, steps, make_context=at_z, on_step=on_step)
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

    The halos of steps that follow one another add up.
    """
    axes, total = "zyx", [0, 0, 0]
    for resolved, memory_type in steps:
        contract = resolved.step.implementation_for(memory_type).contract
        along = contract.splittable_for(**resolved.parameters)
        if along is None and contract.slice_by_slice:
            along = "z"
        if along is None:
            return None
        axes = min(axes, along, key=len)
        total = [a + b for a, b in zip(total, contract.halo_for(**resolved.parameters), strict=True)]
    return axes, (total[0], total[1], total[2])


def _call(step: ChainStep, array: Any, make_context: MakeContext | partial[StepContext]) -> Any:
    implementation = step.resolved.step.implementation_for(step.memory_type)
    keywords = dict(step.resolved.parameters)
    if implementation.takes_context:
        keywords["context"] = make_context(step)
    try:
        with held_by(current_holder()[0], step.resolved.name):
            return implementation(array, **keywords)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        # A step that calls sys.exit would end the worker process, and nobody could say why. A Ctrl-C of the
        # terminal reaches main threads alone: one that comes from a step is the step's.
        if is_oom(error):
            raise
        given = backend_of(step.memory_type).describe(array)
        raise StepFailedError(step.resolved.name, str(given), shortened(said(error))) from error
