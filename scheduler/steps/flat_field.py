"""`flat_field`: each slice divided by the illumination of the field of view."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcore import DtypeError, StackError, memory_types
from scheduler.steps.dtypes import dtype_name, float_dtype, float_nbytes, jax_float_dtype
from scheduler.steps.separable import ALLOWANCE_BYTES

STEP = "flat_field"


def _float_output(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
    return shape, float_dtype(STEP, dtype)


def _frames(shape: tuple[int, ...], dtype: str) -> int:
    # The flat field and the dark frame in floating point, the gain before and after its scaling, and a mask.
    return 5 * float_nbytes(STEP, (1, *shape[1:]), dtype) + ALLOWANCE_BYTES


def _frames_and_stacks(shape: tuple[int, ...], dtype: str) -> int:
    return _frames(shape, dtype) + 2 * float_nbytes(STEP, shape, dtype)


def _one_plane(name: str, array: Any, plane: tuple[int, ...]) -> Any:
    """The [Y, X] of a frame, which may come as [1, Y, X].

    StackError if it isn't of the stack's size, DtypeError if it is complex.
    """
    if dtype_name(array).startswith("complex"):
        raise DtypeError(f"{STEP}: {name} is {dtype_name(array)}, and a frame has real values")
    shape = tuple(array.shape)
    if shape not in (plane, (1, *plane)):
        raise StackError(f"{STEP}: {name} has the shape {shape}, and the stack's slices have {plane}")
    return array.reshape(plane)


def _corrected(stack: Any, flat: Any, dark: Any, floating: Any, mean: Any) -> Any:
    """(stack - dark) / gain with a gain of mean 1; `floating` makes new arrays, `mean` is over a plane."""
    plane = tuple(stack.shape[1:])
    gain = floating(_one_plane("flat", flat, plane))
    offset = None if dark is None else floating(_one_plane("dark", dark, plane))
    if offset is not None:
        gain = gain - offset
    less = "" if dark is None else " less the dark frame"
    if not bool((gain > 0).all()):
        raise ValueError(f"{STEP}: the flat field{less} isn't above 0 everywhere: it divides the image")
    average = mean(gain)
    if not bool(average < math.inf):
        raise ValueError(
            f"{STEP}: the flat field{less} isn't finite in {dtype_name(gain)}, or its mean isn't"
        )
    gain = gain / average
    if not bool((gain > 0).all()):
        raise ValueError(
            f"{STEP}: the flat field{less} has values so far below its mean that {dtype_name(gain)} "
            "has no such gain"
        )
    # In place, but for JAX.
    result = floating(stack)
    if offset is not None:
        result -= offset
    result /= gain
    return result


@memory_types("numpy", slice_by_slice=True, splittable="z", workspace=_frames, output_like=_float_output)
def flat_field(stack: NDArray[Any], *, flat: NDArray[Any], dark: NDArray[Any] | None = None) -> NDArray[Any]:
    """Correct uneven illumination: each slice less the dark frame, over the flat field scaled to a mean of 1.

    The dark frame is taken off the flat field too. This is the classical two-point correction: Model,
    "Intensity calibration and flat-field correction for fluorescence microscopes", Current Protocols in
    Cytometry 68 (2014) 10.14.

    Parameters
    ----------
    stack
        [Z, Y, X]; any pixel dtype of up to 32 bits, or float64; never written.
    flat, dark
        [Y, X] or [1, Y, X] of the slices' size: an evenly bright specimen, and one without light. In a config
        they are files under `arrays`.

    Returns
    -------
    A new stack in floating point: float32, or float64 for 32-bit integers and float64.

    Raises
    ------
    StackError
        A frame isn't of the slices' size.
    ValueError
        The flat field, less the dark frame, has a value that isn't above 0 or isn't finite.
    DtypeError
        The stack's dtype is none of these, or a frame is complex.

    Notes
    -----
    Other implementations give the same within 1e-6 of the largest value in float32, 1e-14 in float64.
    """
    dtype = float_dtype(STEP, dtype_name(stack))
    result: NDArray[Any] = _corrected(
        stack,
        flat,
        dark,
        lambda array: array.astype(dtype, order="C"),
        lambda plane: plane.mean(dtype=np.float64).astype(dtype),
    )
    return result


@flat_field.register("cupy")
def flat_field_cupy(stack: Any, *, flat: Any, dark: Any = None) -> Any:
    """`flat_field` on CuPy arrays."""
    dtype = float_dtype(STEP, dtype_name(stack))
    with stack.device:
        return _corrected(
            stack,
            flat,
            dark,
            lambda array: array.astype(dtype),
            lambda plane: plane.mean(dtype="float64").astype(dtype),
        )


@flat_field.register("torch")
def flat_field_torch(stack: Any, *, flat: Any, dark: Any = None) -> Any:
    """`flat_field` on torch tensors."""
    import torch

    dtype = getattr(torch, float_dtype(STEP, dtype_name(stack)))
    return _corrected(
        stack,
        flat,
        dark,
        lambda array: array.to(dtype, copy=True),
        lambda plane: plane.mean(dtype=torch.float64).to(dtype),
    )


@flat_field.register("jax", workspace=_frames_and_stacks)
def flat_field_jax(stack: Any, *, flat: Any, dark: Any = None) -> Any:
    """`flat_field` on JAX arrays."""
    dtype = jax_float_dtype(STEP, stack)
    return _corrected(
        stack, flat, dark, lambda array: array.astype(dtype), lambda plane: plane.mean(dtype=dtype)
    )
