"""`rescale_intensity`: a linear map of the intensities to a range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcore import memory_types
from memcore.contracts import Split
from scheduler.steps.dtypes import dtype_name, float_dtype, float_nbytes, jax_float_dtype
from scheduler.steps.separable import ALLOWANCE_BYTES

STEP = "rescale_intensity"
Pair = Sequence[float]


@dataclass(frozen=True, slots=True)
class Scaling:
    """clip(x, low, high), minus low, divided by span, times width, plus start: each rounded, in this order.

    A brightest voxel of `high` then becomes exactly 1 before it is multiplied.
    """

    low: float
    high: float
    span: float
    width: float
    start: float


def _result(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
    return shape, float_dtype(STEP, dtype)


def _splittable(
    percentiles: Pair = (0.0, 100.0), in_range: Pair | None = None, out_range: Pair = (0.0, 1.0)
) -> Split:
    # Ranges that can't be are found here, before there is a stack.
    _ranks(1, percentiles, in_range)
    _scaling((0.0, 1.0), in_range, out_range)
    return None if in_range is None else "zyx"


def _is_counted(dtype: Any) -> bool:
    """Whether the values are few enough to count each of them."""
    return np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize <= 2


def _numpy_workspace(shape: tuple[int, ...], dtype: str, in_range: Pair | None = None) -> int:
    if in_range is not None:
        return ALLOWANCE_BYTES
    if _is_counted(dtype):
        return 3 * 8 * math.prod(shape[1:]) + (4 << 20)
    return math.prod(shape) * np.dtype(dtype).itemsize + ALLOWANCE_BYTES


def _torch_workspace(shape: tuple[int, ...], dtype: str, in_range: Pair | None = None) -> int:
    if in_range is not None:
        return ALLOWANCE_BYTES
    if _is_counted(dtype):
        return 3 * 8 * math.prod(shape[1:]) + (4 << 20)
    # kthvalue keeps a copy of the values and an int64 index for each.
    return math.prod(shape) * (2 * np.dtype(dtype).itemsize + 16)


def _sorted_workspace(shape: tuple[int, ...], dtype: str) -> int:
    # The sort's two copies, and the result's two predecessors where arrays are immutable.
    return 2 * math.prod(shape) * np.dtype(dtype).itemsize + 2 * float_nbytes(STEP, shape, dtype)


@memory_types("numpy", splittable=_splittable, workspace=_numpy_workspace, output_like=_result)
def rescale_intensity(
    stack: NDArray[Any],
    *,
    percentiles: Pair = (0.0, 100.0),
    in_range: Pair | None = None,
    out_range: Pair = (0.0, 1.0),
) -> NDArray[Any]:
    """Map intensities linearly from a range or percentiles to `out_range`, and clip what lies beyond.

    Parameters
    ----------
    stack
        [Z, Y, X]; uint8 to uint32, int8 to int32, float32 or float64, without NaN; never written.
    percentiles
        (low, high) in percent, 0 <= low < high <= 100, of the whole stack. A percentile is a value that
        occurs in it: of n voxels in order, the one at index round(percent / 100 * (n - 1)), halves rounded to
        even.
    in_range
        (low, high) in intensities, instead of percentiles: the same map for every stack.
    out_range
        What low and high become; any two finite numbers.

    Returns
    -------
    A new stack of the same shape: float32 for integers of up to 16 bits and float32, float64
    for 32-bit integers and float64. A stack without contrast becomes the first number of `out_range`
    everywhere.

    Raises
    ------
    DtypeError
        Another dtype.
    ValueError
        A range that isn't two finite numbers in order.

    Notes
    -----
    Every implementation finds the very percentiles of NumPy's, and agrees with it within 1e-6 of the width of
    `out_range` (1e-14 in float64). Splittable only with `in_range`: percentiles belong to the whole stack.
    """
    dtype = float_dtype(STEP, stack.dtype)
    ranks = _ranks(stack.size, percentiles, in_range)
    scaling = _scaling(_numpy_values_at(stack, ranks), in_range, out_range)
    out = stack.astype(dtype, order="C")
    np.clip(out, scaling.low, scaling.high, out=out)
    out -= scaling.low
    out /= scaling.span
    out *= scaling.width
    out += scaling.start
    return out


@rescale_intensity.register("cupy", workspace=_sorted_workspace)
def rescale_intensity_cupy(
    stack: Any,
    *,
    percentiles: Pair = (0.0, 100.0),
    in_range: Pair | None = None,
    out_range: Pair = (0.0, 1.0),
) -> Any:
    """`rescale_intensity` on CuPy arrays."""
    import cupy

    dtype = float_dtype(STEP, stack.dtype)
    ranks = _ranks(stack.size, percentiles, in_range)
    with stack.device:
        ordered = _picked(cupy.partition(stack.ravel(), list(ranks)), ranks) if ranks else []
        scaling = _scaling(ordered, in_range, out_range)
        out = stack.astype(dtype, order="C")
        cupy.clip(out, scaling.low, scaling.high, out=out)
        out -= scaling.low
        out /= scaling.span
        out *= scaling.width
        out += scaling.start
        return out


@rescale_intensity.register("torch", workspace=_torch_workspace)
def rescale_intensity_torch(
    stack: Any,
    *,
    percentiles: Pair = (0.0, 100.0),
    in_range: Pair | None = None,
    out_range: Pair = (0.0, 1.0),
) -> Any:
    """`rescale_intensity` on torch tensors."""
    import torch

    dtype = float_dtype(STEP, dtype_name(stack))
    ranks = _ranks(stack.numel(), percentiles, in_range)
    with torch.no_grad():
        scaling = _scaling(_torch_values_at(stack, ranks), in_range, out_range)
        out = stack.to(getattr(torch, dtype), copy=True, memory_format=torch.contiguous_format)
        out.clamp_(scaling.low, scaling.high).sub_(scaling.low)
        return out.div_(scaling.span).mul_(scaling.width).add_(scaling.start)


@rescale_intensity.register("jax", workspace=_sorted_workspace)
def rescale_intensity_jax(
    stack: Any,
    *,
    percentiles: Pair = (0.0, 100.0),
    in_range: Pair | None = None,
    out_range: Pair = (0.0, 1.0),
) -> Any:
    """`rescale_intensity` on JAX arrays."""
    import jax.numpy as jnp

    dtype = jax_float_dtype(STEP, stack)
    ranks = _ranks(stack.size, percentiles, in_range)
    ordered = _picked(jnp.sort(stack.ravel()), ranks) if ranks else []
    scaling = _scaling(ordered, in_range, out_range)
    clipped = jnp.clip(stack.astype(dtype), scaling.low, scaling.high)
    return (clipped - scaling.low) / scaling.span * scaling.width + scaling.start


def _ranks(size: int, percentiles: Pair, in_range: Pair | None) -> tuple[int, ...]:
    """The two indices among the ordered voxels, or none where `in_range` is given."""
    if in_range is not None:
        return ()
    low, high = _two_numbers("percentiles", percentiles)
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles are 0 <= low < high <= 100; got {low:g} and {high:g}")
    return round(low / 100 * (size - 1)), round(high / 100 * (size - 1))


def _scaling(found: Sequence[float], in_range: Pair | None, out_range: Pair) -> Scaling:
    low, high = found if in_range is None else _two_numbers("in_range", in_range)
    if in_range is not None and not low < high:
        raise ValueError(f"in_range is (low, high) with low < high; got {low:g} and {high:g}")
    first, last = _two_numbers("out_range", out_range)
    # Without contrast everything equals low, and becomes 0 / 1.
    return Scaling(low, high, (high - low) or 1.0, last - first, first)


def _two_numbers(name: str, pair: Pair) -> tuple[float, float]:
    numbers = tuple(float(value) for value in pair)
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} is two finite numbers; got {pair!r}")
    return numbers


def _numpy_values_at(stack: NDArray[Any], ranks: tuple[int, ...]) -> list[float]:
    if not ranks:
        return []
    if _is_counted(stack.dtype):
        lowest = int(np.iinfo(stack.dtype).min)
        counts = np.zeros(1 << (8 * stack.itemsize), np.int64)
        for plane in stack:
            counts += np.bincount(plane.ravel().astype(np.int64) - lowest, minlength=counts.size)
        reached = np.cumsum(counts)
        return [float(np.searchsorted(reached, rank, side="right") + lowest) for rank in ranks]
    ordered = stack.flatten()
    ordered.partition(sorted(set(ranks)))
    return _picked(ordered, ranks)


def _picked(ordered: Any, ranks: tuple[int, ...]) -> list[float]:
    return [float(ordered[rank]) for rank in ranks]


def _torch_values_at(stack: Any, ranks: tuple[int, ...]) -> list[float]:
    import torch

    if not ranks:
        return []
    if _is_counted(dtype_name(stack)):
        lowest = int(np.iinfo(dtype_name(stack)).min)
        counts = torch.zeros(1 << (8 * stack.element_size()), dtype=torch.int64, device=stack.device)
        for plane in stack:
            counts += torch.bincount(plane.to(torch.int64).flatten() - lowest, minlength=counts.numel())
        reached = counts.cumsum(0).cpu().numpy()
        return [float(np.searchsorted(reached, rank, side="right") + lowest) for rank in ranks]
    values = stack.flatten()
    # torch orders no uint32.
    values = values.to(torch.int64) if dtype_name(stack) == "uint32" else values
    return [float(torch.kthvalue(values, rank + 1).values) for rank in ranks]
