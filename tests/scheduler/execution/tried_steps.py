"""Steps for the tests of the scheduler, which any worker can import; what they are told goes by files."""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memcore import memory_types
from scheduler.steps.context import StepContext

DEADLINE_S = 120.0
Stack = NDArray[np.float32]


@memory_types("numpy")
def doubled(stack: Stack) -> Stack:
    """Doubles its input in place."""
    stack *= 2
    return stack


@memory_types("numpy")
def pooled(stack: Stack, *, context: StepContext) -> Stack:
    """A result in memory of the worker's pool, which the next job gets."""
    lease = context.pool.lease(stack.shape, stack.dtype)
    array: Stack = lease.array
    array[:] = stack
    return array


@memory_types("numpy")
def noted(stack: Stack, *, path: str, context: StepContext) -> Stack:
    """Adds its job to the lines of a file."""
    with Path(path).open("a") as file:
        file.write(f"{context.job_id}\n")
    return stack


@memory_types("numpy")
def held(stack: Stack, *, folder: str, context: StepContext) -> Stack:
    """Says that it has begun, by a file JOB.began, and waits for one called JOB.go."""
    Path(folder, f"{context.job_id}.began").touch()
    until = time.monotonic() + DEADLINE_S
    while not Path(folder, f"{context.job_id}.go").exists():
        if time.monotonic() > until:
            raise TimeoutError(f"nobody has let {context.job_id} go")
        time.sleep(0.01)
    return stack


@memory_types("numpy")
def paused(stack: Stack) -> Stack:
    """Takes a moment."""
    time.sleep(0.02)
    return stack


@memory_types("numpy")
def broken(stack: Stack) -> Stack:
    """Never works."""
    raise ValueError("no such luck")


@memory_types("numpy")
def compared(image: Stack, nuclei: Stack) -> tuple[dict[str, Stack], dict[str, list[float]]]:
    """Two stacks from two, and a table of them."""
    return {"sum": image + nuclei, "image": image}, {"mean": [float(image.mean()), float(nuclei.mean())]}


@memory_types("numpy")
def difference(a: Stack, b: Stack) -> Stack:
    """Of two stacks."""
    return np.subtract(a, b).astype(a.dtype)


class _TwoWords(Exception):
    """Can't be rebuilt from its arguments: there is one, and two are wanted."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


@memory_types("numpy")
def strange_table(stack: Stack) -> tuple[Stack, dict[str, list[object]]]:
    """A table with what pickles and can't be unpickled."""
    return stack, {"what": [_TwoWords("a", "b")]}


def undeclared(stack: Stack) -> Stack:
    """Nobody has said what it takes."""
    return stack
