"""Microscopy-like stacks, and a step run on any framework's arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

import memcore
from scheduler.steps.resolve import resolve_step
from tests.cuda import on_cuda


def microscopy_stack(shape: tuple[int, int, int], dtype: str, seed: int = 7) -> NDArray[Any]:
    """Bright blurred spots on a gradient and a camera offset, with shot noise, as a fluorescence stack is."""
    rng = np.random.default_rng(seed)
    spots = ndimage.gaussian_filter((rng.random(shape) > 0.995).astype(np.float64), (0.8, 1.6, 1.6))
    gradient = np.linspace(5, 25, shape[2])
    limit = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 65535
    expected = 10 + gradient + spots / max(spots.max(), 1e-9) * min(limit / 3, 9000)
    return np.minimum(rng.poisson(expected), limit).astype(dtype)


def run_step(memory_type: str, use: str, stack: NDArray[Any], **keywords: Any) -> NDArray[Any]:
    """What the implementation for `memory_type` makes of a copy of `stack`, as a NumPy array.

    "torch on gpu" and the like are the first accelerator's; other arrays are in host memory if they can be.
    """
    memory_type, _, gpu = memory_type.partition(" on ")
    if gpu:
        on_cuda(memory_type)
    gpu_id: int | str = 0 if gpu or memory_type in ("cupy", "pyclesperanto") else "cpu"
    if memory_type != "numpy":
        pytest.importorskip(memory_type, reason=f"needs {memory_type}", exc_type=ImportError)
    step = resolve_step(use, with_=keywords).step
    given = memcore.convert_memory(stack, "numpy", memory_type, gpu_id, copy=True)
    result = step.implementation_for(memory_type)(given, **keywords)
    return memcore.convert_memory(result, memory_type, "numpy", "cpu")


@pytest.fixture(scope="session")
def run() -> Callable[..., NDArray[Any]]:
    return run_step


@pytest.fixture(scope="session")
def make_stack() -> Callable[..., NDArray[Any]]:
    return microscopy_stack
