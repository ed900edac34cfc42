"""`convert_dtype`: another dtype, by a rule that is named."""

import math
from typing import Any, Literal

import memcore
from memcore import DtypeError, memory_types
from memcore.dtypes import BLOCK_ELEMENTS as HOST_BLOCK_ELEMENTS
from scheduler.steps.separable import ALLOWANCE_BYTES

Rule = Literal["exact", "saturate", "rescale"]

BYTES_PER_ELEMENT = 64
"""Doubles, masks and limits that the arithmetic of a rule holds for each element; 60 were measured."""

BLOCK_ELEMENTS = 1 << 20
"""Elements that are converted at a time on a device."""


def _result(shape: tuple[int, ...], _dtype: str, dtype: str) -> tuple[tuple[int, ...], str]:
    return shape, dtype


def _numpy_workspace(shape: tuple[int, ...], _dtype: str) -> int:
    # memcore works through host arrays in blocks of whole planes.
    return BYTES_PER_ELEMENT * max(HOST_BLOCK_ELEMENTS, math.prod(shape[1:])) + ALLOWANCE_BYTES


def _block_workspace(shape: tuple[int, ...], _dtype: str) -> int:
    return BYTES_PER_ELEMENT * min(max(BLOCK_ELEMENTS, math.prod(shape[1:])), math.prod(shape))


def _whole_workspace(shape: tuple[int, ...], _dtype: str) -> int:
    return BYTES_PER_ELEMENT * math.prod(shape)


@memory_types("numpy", splittable="zyx", workspace=_numpy_workspace, output_like=_result)
def convert_dtype(stack: Any, *, dtype: str, rule: Rule) -> Any:
    """Give a [Z, Y, X] stack another dtype, by `memcore.convert_dtype`: the same values everywhere.

    Parameters
    ----------
    stack
        Any dtype that memcore knows; never written. With `dtype` already, it is the result itself.
    dtype
        Such as "uint16" or "float32".
    rule
        "exact": every value unchanged, or an error. "saturate": rounded half to even and clipped to the
        dtype's range. "rescale": the full range of the one (0.0 to 1.0 for floats) onto the full range of the
        other.

    Raises
    ------
    DtypeError
        A value that the rule can't keep, or a dtype that the framework doesn't have.
    """
    return memcore.convert_dtype(stack, dtype, rule)


@convert_dtype.register(["cupy", "torch"], workspace=_block_workspace)
def convert_dtype_by_blocks(stack: Any, *, dtype: str, rule: Rule) -> Any:
    """`convert_dtype` a few planes at a time: the arithmetic of a rule is done in doubles."""
    planes = max(1, BLOCK_ELEMENTS // max(1, math.prod(stack.shape[1:])))
    if len(stack) <= planes:
        return memcore.convert_dtype(stack, dtype, rule)
    memory_type = memcore.memory_type_of(stack)
    gpu_id = memcore.device_of(stack)
    out = memcore.backend_of(memory_type).empty(tuple(stack.shape), dtype, gpu_id)
    for start in range(0, len(stack), planes):
        try:
            out[start : start + planes] = memcore.convert_dtype(stack[start : start + planes], dtype, rule)
        except DtypeError as error:
            raise DtypeError(f"{error} (planes counted from {start})") from error
    return out


@convert_dtype.register(["jax", "tensorflow", "pyclesperanto"], workspace=_whole_workspace)
def convert_dtype_whole(stack: Any, *, dtype: str, rule: Rule) -> Any:
    """`convert_dtype` of arrays that can't be filled piece by piece."""
    return memcore.convert_dtype(stack, dtype, rule)
