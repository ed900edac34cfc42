"""Every implementation of a built-in step gives what NumPy's gives, within what its docstring states."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.steps.resolve import resolve_step

Run = Callable[..., NDArray[Any]]
PSF = (np.arange(1, 3 * 5 * 7 + 1, dtype=float).reshape(3, 5, 7) % 11).tolist()

# (step, keywords, tolerance in float32, in float64): relative to the largest value that goes in or comes out.
CASES: list[tuple[str, dict[str, Any], float, float]] = [
    ("gaussian", {"sigma": 2.0}, 1e-6, 1e-14),
    ("gaussian", {"sigma": [0.6, 0.0, 3.3]}, 1e-6, 1e-14),
    ("gaussian", {"sigma": 0.0}, 0.0, 0.0),
    ("gaussian", {"sigma": [4.0, 12.0, 9.0]}, 1e-6, 1e-14),
    ("subtract_background", {"radius": 6}, 0.0, 0.0),
    ("subtract_background", {"radius": 50}, 0.0, 0.0),
    ("rescale_intensity", {}, 1e-6, 1e-14),
    ("rescale_intensity", {"percentiles": [1.0, 99.8], "out_range": [0, 65535]}, 1e-6, 1e-14),
    ("rescale_intensity", {"in_range": [20, 90], "out_range": [-3, 7]}, 1e-6, 1e-14),
    ("max_projection", {}, 0.0, 0.0),
    ("richardson_lucy", {"sigma": [0.7, 1.5, 1.5], "iterations": 10}, 1e-5, 1e-12),
    ("richardson_lucy", {"psf": PSF, "iterations": 20}, 1e-5, 1e-12),
    ("convert_dtype", {"dtype": "uint8", "rule": "saturate"}, 0.0, 0.0),
    ("convert_dtype", {"dtype": "float32", "rule": "exact"}, 0.0, 0.0),
]
STACK, PLANE = (7, 37, 53), (1, 41, 29)


def offered_cases() -> list[Any]:
    """Each case with each memory type that the step is offered for, NumPy aside."""
    offered = []
    for number, (use, keywords, single, double) in enumerate(CASES):
        for memory_type in resolve_step(use, with_=keywords).step.memory_types:
            places = [str(memory_type)] if memory_type not in ("numpy", "cupy") else []
            on_gpu = [f"{memory_type} on gpu"] if memory_type in ("cupy", "torch", "jax") else []
            for place in places + on_gpu:
                marks = [pytest.mark.gpu] if place in on_gpu else []
                values = (place, use, keywords, single, double)
                offered.append(pytest.param(*values, id=f"{use}{number}-{place}", marks=marks))
    return offered


def disagreement(result: NDArray[Any], expected: NDArray[Any], stack: NDArray[Any]) -> float:
    """The largest difference, relative to the largest value; the forms are equal."""
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    scale = max(float(np.abs(expected).max()), float(np.abs(stack).max()))
    return float(np.abs(result.astype(np.float64) - expected.astype(np.float64)).max()) / scale


@pytest.mark.parametrize(("dtype", "shape"), [("uint16", STACK), ("float32", STACK), ("uint8", PLANE)])
@pytest.mark.parametrize(("memory_type", "use", "keywords", "tolerance", "_double"), offered_cases())
def test_agrees_with_numpy(
    run: Run,
    make_stack: Run,
    memory_type: str,
    use: str,
    keywords: dict[str, Any],
    tolerance: float,
    _double: float,
    dtype: str,
    shape: tuple[int, int, int],
) -> None:
    stack = make_stack(shape, dtype)
    result = run(memory_type, use, stack, **keywords)
    assert disagreement(result, run("numpy", use, stack, **keywords), stack) <= tolerance


@pytest.mark.parametrize("dtype", ["float64", "uint32"])
@pytest.mark.parametrize(
    ("memory_type", "use", "keywords", "_single", "tolerance"),
    [case for case in offered_cases() if not case.values[0].startswith(("jax", "pyclesperanto"))],
)
def test_agrees_with_numpy_in_double_precision(
    run: Run,
    make_stack: Run,
    memory_type: str,
    use: str,
    keywords: dict[str, Any],
    _single: float,
    tolerance: float,
    dtype: str,
) -> None:
    stack = make_stack(STACK, dtype)
    result = run(memory_type, use, stack, **keywords)
    expected = run("numpy", use, stack, **keywords)
    assert disagreement(result, expected, stack) <= tolerance
    if use in ("gaussian", "richardson_lucy", "rescale_intensity"):
        assert result.dtype == np.float64
