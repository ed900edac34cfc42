"""Carrying a stack through its chain of steps in one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memcore import backend_of, convert_memory, memory_type_of
from memcore.memory_type import GpuId
from pools.oom import is_oom
from scheduler.steps.context import StepContext
from scheduler.steps.resolve import ResolvedStep


class StepFailedError(RuntimeError):
    """A step raised; the message names the step, the array it was given, and what it said."""

    def __init__(self, step: str, stack: str, error: str) -> None:
        super().__init__(step, stack, error)

    def __str__(self) -> str:
        step, stack, error = self.args
        return f"step {step} failed on a {stack} stack: {error}"


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One step of a chain with the memory type that a plan gives it and where its arrays live."""

    resolved: ResolvedStep
    memory_type: str
    gpu_id: GpuId


def run_chain(
    stack: Any, steps: Sequence[ChainStep], *, make_context: Callable[[ChainStep], StepContext]
) -> Any:
    """Pass a `[Z, Y, X]` stack through `steps`; returns the last result as a NumPy array.

    Between two steps the array is converted only where the plan changes its memory type. The result may be
    `stack` itself or a view of it.

    Raises
    ------
    StepFailedError
        A step raised. Out of memory passes through as it is.
    """
    array = stack
    for step in steps:
        array = convert_memory(array, memory_type_of(array), step.memory_type, step.gpu_id)
        array = _call(step, array, make_context)
    return convert_memory(array, memory_type_of(array), "numpy", "cpu")


def _call(step: ChainStep, array: Any, make_context: Callable[[ChainStep], StepContext]) -> Any:
    implementation = step.resolved.step.implementation_for(step.memory_type)
    keywords = dict(step.resolved.parameters)
    if implementation.takes_context:
        keywords["context"] = make_context(step)
    try:
        return implementation(array, **keywords)
    except Exception as error:
        if is_oom(error):
            raise
        given = backend_of(step.memory_type).describe(array)
        raise StepFailedError(step.resolved.name, str(given), f"{type(error).__name__}: {error}") from error
