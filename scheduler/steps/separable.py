"""Correlation with three symmetric weight vectors, along z, then y, then x, on each framework.

`source` is [Z, Y, X] of any pixel dtype and is never written, unless it is `out` itself where that is
allowed; the result is [Z, Y, X] in the float dtype asked for. Beyond an edge the outermost voxel is repeated.

Each sum is formed in one order, from the outermost pair of weights inwards, whatever the shape of the array
and the place in it. That is what makes a block with its halo equal to the whole, bit for bit; a library's
convolution routine may choose another order for another shape.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Kernels = Sequence[NDArray[np.float64]]

CPU_BLOCK_BYTES = 4 << 20
"""What torch works on at a time in host memory: a few of these stay in the cache."""

GPU_BLOCK_BYTES = 32 << 20
"""What torch works on at a time on a GPU: enough to fill it."""

ALLOWANCE_BYTES = 1 << 20
"""More than a library's line buffers, casting buffers and weight vectors take."""


def numpy_separable(source: NDArray[Any], kernels: Kernels, out: NDArray[Any]) -> NDArray[Any]:
    """Fill `out` and return it; `out` may be `source`. SciPy sums each line in double precision."""
    for axis, weights in _wide(kernels):
        ndimage.correlate1d(source, weights, axis, output=out, mode="nearest")
        source = out
    if source is not out:
        np.copyto(out, source)
    return out


def cupy_separable(source: Any, kernels: Kernels, out: Any, scratch: Any) -> Any:
    """Fill `out` and return it; `source`, `out` and `scratch` are three arrays."""
    import cupy
    from cupyx.scipy import ndimage as cupy_ndimage

    wide = _wide(kernels)
    for done, (axis, weights) in enumerate(wide):
        # Alternate so that the last pass ends in `out`.
        target = out if (len(wide) - done) % 2 else scratch
        cupy_ndimage.correlate1d(source, cupy.asarray(weights), axis, output=target, mode="nearest")
        source = target
    if source is not out:
        cupy.copyto(out, source)
    return out


def torch_separable(source: Any, kernels: Kernels, out: Any) -> Any:
    """Fill `out` and return it; `out` may be `source`. Works through blocks: see `torch_block_bytes`."""
    import torch

    with torch.no_grad():
        if source is not out and kernels[0].size == 1:
            out.copy_(source)
        elif kernels[0].size > 1:
            for rows in _blocks(out, axis=1):
                block = source[:, rows].to(out.dtype)
                out[:, rows] = _torch_pass(block, kernels[0], 0)
        for planes in _blocks(out, axis=0):
            block = out[planes]
            for axis, weights in _wide(kernels):
                if axis:
                    block = _torch_pass(block, weights, axis)
            out[planes] = block
    return out


def _torch_pass(block: Any, weights: NDArray[np.float64], axis: int) -> Any:
    import torch

    length, radius = block.shape[axis], weights.size // 2
    edge = [-1, -1, -1]
    edge[axis] = radius
    padded = torch.cat(
        (block.narrow(axis, 0, 1).expand(edge), block, block.narrow(axis, length - 1, 1).expand(edge)), axis
    )
    pair = torch.empty_like(block)
    total = torch.zeros_like(block)
    for tap in range(radius):
        torch.add(padded.narrow(axis, tap, length), padded.narrow(axis, 2 * radius - tap, length), out=pair)
        # Not add(alpha=...): a fused multiply-add would round vectors and their remainders differently.
        total.add_(pair.mul_(float(weights[tap])))
    torch.mul(block, float(weights[radius]), out=pair)
    return total.add_(pair)


def _blocks(array: Any, axis: int) -> list[slice]:
    limit = CPU_BLOCK_BYTES if array.device.type == "cpu" else GPU_BLOCK_BYTES
    return _block_slices(tuple(array.shape), array.element_size(), axis, limit)


def _block_slices(shape: tuple[int, ...], itemsize: int, axis: int, limit: int) -> list[slice]:
    """Slices along `axis` of about `limit` bytes each, at least one element long."""
    length = shape[axis]
    step = max(1, limit * length // max(1, math.prod(shape) * itemsize))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def torch_block_bytes(shape: tuple[int, ...], dtype: str, radius: Sequence[int]) -> int:
    """An upper bound in bytes for what `torch_separable` holds at once beside its source and its result."""
    itemsize = np.dtype(dtype).itemsize
    limit = min(GPU_BLOCK_BYTES, math.prod(shape) * itemsize)
    peaks = []
    for blocked_axis, passed_axes in ((1, (0,)), (0, (1, 2))):
        block = max(limit, math.prod(shape) * itemsize // shape[blocked_axis])
        # The last block's result, this block, the pair, the sum, and the padded copy.
        padded = max(1 + 2 * radius[axis] / shape[axis] for axis in passed_axes)
        peaks.append(block * (4 + padded))
    return math.ceil(max(peaks)) + ALLOWANCE_BYTES


def jax_pass_bytes(shape: tuple[int, ...], dtype: str, radius: Sequence[int]) -> int:
    """An upper bound in bytes for what a pass of `jax_separable` holds beside its result."""
    stack = math.prod(shape) * np.dtype(dtype).itemsize
    padded = max(1 + 2 * reach / side for side, reach in zip(shape, radius, strict=True))
    # The stack before the pass, its padded copy, and what XLA keeps to make that.
    return math.ceil(stack * (2.25 + padded)) + ALLOWANCE_BYTES


def jax_separable(source: Any, kernels: Kernels, dtype: str) -> Any:
    """Return a new array on the source's device; each pass is compiled once for each shape and radius."""
    stack = source.astype(dtype)
    for axis, weights in _wide(kernels):
        # One compiled function for all passes would hold the padded stacks of all three at once.
        stack = _jax_pass()(stack, weights.astype(dtype), axis)
    return stack


@functools.cache
def _jax_pass() -> Any:
    import jax
    import jax.numpy as jnp

    def one_pass(stack: Any, weights: Any, axis: int) -> Any:
        radius = weights.shape[0] // 2
        widths = [(radius, radius) if each == axis else (0, 0) for each in range(3)]
        return _sum_of_pairs(jnp.pad(stack, widths, mode="edge"), weights, axis, stack.shape[axis])

    return jax.jit(one_pass, static_argnums=2)


def tensorflow_separable(source: Any, kernels: Kernels, dtype: str) -> Any:
    """Return a new tensor on the source's device; works through blocks: see `tensorflow_pass_bytes`."""
    import tensorflow as tf

    with tf.device(source.device):
        stack = tf.cast(source, dtype)
        for axis, weights in _wide(kernels):
            across = 1 if axis == 0 else 0
            limit = CPU_BLOCK_BYTES if "CPU" in source.device else GPU_BLOCK_BYTES
            blocks = []
            for block in _block_slices(tuple(stack.shape), np.dtype(dtype).itemsize, across, limit):
                part = _along(stack, across, block.start, block.stop - block.start)
                first, last = _along(part, axis, 0, 1), _along(part, axis, part.shape[axis] - 1, 1)
                radius = weights.size // 2
                padded = tf.concat([first] * radius + [part] + [last] * radius, axis)
                blocks.append(_sum_of_pairs(padded, tf.constant(weights, dtype), axis, part.shape[axis]))
            stack = tf.concat(blocks, across)
        return stack


def tensorflow_pass_bytes(shape: tuple[int, ...], dtype: str, radius: Sequence[int]) -> int:
    """An upper bound in bytes for what a pass of `tensorflow_separable` holds beside its result."""
    # The stack before the pass and the parts of the next; every slice, pair and product is a tensor.
    return 2 * math.prod(shape) * np.dtype(dtype).itemsize + 2 * torch_block_bytes(shape, dtype, radius)


def _sum_of_pairs(padded: Any, weights: Any, axis: int, length: int) -> Any:
    radius = weights.shape[0] // 2
    total = None
    for tap in range(radius):
        pair = _along(padded, axis, tap, length) + _along(padded, axis, 2 * radius - tap, length)
        total = pair * weights[tap] if total is None else total + pair * weights[tap]
    return total + _along(padded, axis, radius, length) * weights[radius]


def _along(array: Any, axis: int, start: int, length: int) -> Any:
    return array[(slice(None),) * axis + (slice(start, start + length),)]


def pyclesperanto_separable(source: Any, kernels: Kernels, out: Any, scratch: Any) -> Any:
    """Fill `out` and return it; `source`, `out` and `scratch` are three float32 arrays on one device."""
    import pyclesperanto as cle

    wide = _wide(kernels)
    for done, (axis, weights) in enumerate(wide):
        shape = [1, 1, 1]
        shape[axis] = weights.size
        kernel = cle.push(weights.astype(np.float32).reshape(shape), device=source.device)
        target = out if (len(wide) - done) % 2 else scratch
        cle.convolve(source, kernel, target)
        source = target
    if source is not out:
        cle.copy(source, out)
    return out


def _wide(kernels: Kernels) -> list[tuple[int, NDArray[np.float64]]]:
    """The axes with more than one weight, and the weights; a single weight is 1."""
    return [(axis, weights) for axis, weights in enumerate(kernels) if weights.size > 1]
