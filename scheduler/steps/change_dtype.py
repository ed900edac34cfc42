"""`convert_dtype`: another dtype, by a rule that is named."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import memcore
from memcore import DtypeError, memory_types
from memcore.dtypes import BLOCK_ELEMENTS as HOST_BLOCK_ELEMENTS
from memcore.info import item_size
from scheduler.steps.dtypes import dtype_name
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


def _filled_workspace(shape: tuple[int, ...], _dtype: str) -> int:
    return BYTES_PER_ELEMENT * min(max(BLOCK_ELEMENTS, math.prod(shape[1:])), math.prod(shape))


def _joined_workspace(shape: tuple[int, ...], _dtype: str, dtype: str) -> int:
    # The parts, and what joins them.
    return _filled_workspace(shape, dtype) + 2 * math.prod(shape) * item_size(dtype)


def _host_workspace(shape: tuple[int, ...], _dtype: str, dtype: str) -> int:
    there_and_back = math.prod(shape) * (item_size(_dtype) + item_size(dtype))
    return there_and_back + _numpy_workspace(shape, dtype)


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


@convert_dtype.register(["cupy", "torch"], workspace=_filled_workspace)
def convert_dtype_filling(stack: Any, *, dtype: str, rule: Rule) -> Any:
    """`convert_dtype` a few planes at a time: the arithmetic of a rule is done in doubles."""
    if _is_one_block(stack, dtype, rule):
        return memcore.convert_dtype(stack, dtype, rule)
    memory_type = memcore.memory_type_of(stack)
    out = memcore.backend_of(memory_type).empty(tuple(stack.shape), dtype, memcore.device_of(stack))
    for start, block in _converted_blocks(stack, dtype, rule):
        out[start : start + len(block)] = block
    return out


@convert_dtype.register(["jax", "tensorflow"], workspace=_joined_workspace)
def convert_dtype_joining(stack: Any, *, dtype: str, rule: Rule) -> Any:
    """`convert_dtype` a few planes at a time, for arrays that can't be filled."""
    if _is_one_block(stack, dtype, rule):
        return memcore.convert_dtype(stack, dtype, rule)
    blocks = [block for _, block in _converted_blocks(stack, dtype, rule)]
    if memcore.memory_type_of(stack) == "jax":
        import jax.numpy as jnp

        return jnp.concatenate(blocks)
    import tensorflow as tf

    with tf.device(stack.device):
        return tf.concat(blocks, 0)


@convert_dtype.register("pyclesperanto", workspace=_host_workspace)
def convert_dtype_on_the_host(stack: Any, *, dtype: str, rule: Rule) -> Any:
    """`convert_dtype` where the device has no doubles: memcore takes the values through host memory."""
    return memcore.convert_dtype(stack, dtype, rule)


def _is_one_block(stack: Any, dtype: str, rule: Rule) -> bool:
    return len(stack) <= _planes(stack) or (dtype_name(stack) == dtype and rule != "rescale")


def _planes(stack: Any) -> int:
    plane: int = math.prod(tuple(stack.shape)[1:])
    return max(1, BLOCK_ELEMENTS // max(1, plane))


def _converted_blocks(stack: Any, dtype: str, rule: Rule) -> Iterator[tuple[int, Any]]:
    planes = _planes(stack)
    for start in range(0, len(stack), planes):
        try:
            yield start, memcore.convert_dtype(stack[start : start + planes], dtype, rule)
        except DtypeError as error:
            raise DtypeError(f"{error} (planes counted from {start})") from error
