"""What the jobs of the execution benchmark do: as steps for us, as plain functions for the others.

Importable by every worker process; `compute` is the same code for all.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from timeit import repeat
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from memcore import memory_types

_POINTS = 1 << 13


@memory_types("numpy")
def identity(stack: NDArray[Any]) -> NDArray[Any]:
    """Nothing."""
    return stack


@memory_types("numpy")
def sleeping(stack: NDArray[Any], *, seconds: float) -> NDArray[Any]:
    """Wait without using the processor."""
    time.sleep(seconds)
    return stack


@memory_types("numpy")
def computing(stack: NDArray[Any], *, rounds: int) -> NDArray[Any]:
    """Use the processor for a fixed piece of work."""
    compute(rounds)
    return stack


def compute(rounds: int) -> None:
    """Sines of a small array, again and again: without the interpreter's lock, and without memory traffic."""
    values = np.linspace(0.0, 1.0, _POINTS)
    result = np.empty_like(values)
    for _ in range(rounds):
        np.sin(values, out=result)


def rounds_for(seconds: float) -> int:
    """How many rounds take so long on this machine when nothing else runs."""
    return round(seconds / min(repeat(lambda: compute(100), number=1, repeat=20)) * 100)


def nothing(_array: NDArray[Any]) -> None:
    """Nothing, and nothing comes back."""


def same(array: NDArray[Any]) -> NDArray[Any]:
    """Nothing; the array comes back."""
    return array


def write(array: NDArray[Any], path: str) -> None:
    """Write an OME-TIFF, as a user would."""
    tifffile.imwrite(Path(path), array, ome=True, photometric="minisblack", metadata={"axes": "ZYX"})


def write_safely(array: NDArray[Any], path: str) -> None:
    """Write an OME-TIFF that is there whole or not at all, after a crash of the machine too."""
    partial = Path(f"{path}.part")
    with partial.open("wb") as file:
        tifffile.imwrite(file, array, ome=True, photometric="minisblack", metadata={"axes": "ZYX"})
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(partial.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def with_number(function: Callable[..., Any], _number: int) -> None:
    """For a map over numbers: call a function of an array."""
    function(np.zeros((1, 4, 4), np.uint16))


def sleep(seconds: float, _number: int) -> None:
    """Wait without using the processor."""
    time.sleep(seconds)


def sleep_for(seconds: float) -> None:
    """Wait without using the processor."""
    time.sleep(seconds)


def work(rounds: int, _number: int) -> None:
    """Use the processor for a fixed piece of work."""
    compute(rounds)
