"""`gaussian`: smoothing with a Gaussian."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcore import memory_types
from scheduler.steps.dtypes import dtype_name, float_dtype, float_nbytes, jax_float_dtype, require_float32
from scheduler.steps.kernels import Sigma, gaussian_kernels, gaussian_radius
from scheduler.steps.separable import (
    ALLOWANCE_BYTES,
    cupy_separable,
    jax_pass_bytes,
    jax_separable,
    numpy_separable,
    pyclesperanto_separable,
    tensorflow_pass_bytes,
    tensorflow_separable,
    torch_block_bytes,
    torch_separable,
)


def _result(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
    return shape, float_dtype("gaussian", dtype)


def _halo(sigma: Sigma) -> tuple[int, int, int]:
    return gaussian_radius(sigma)


def _one_more(shape: tuple[int, ...], dtype: str) -> int:
    return float_nbytes("gaussian", shape, dtype)


def _torch_workspace(shape: tuple[int, ...], dtype: str, sigma: Sigma) -> int:
    return torch_block_bytes(shape, float_dtype("gaussian", dtype), gaussian_radius(sigma))


def _jax_workspace(shape: tuple[int, ...], dtype: str, sigma: Sigma) -> int:
    return jax_pass_bytes(shape, float_dtype("gaussian", dtype), gaussian_radius(sigma))


def _tensorflow_workspace(shape: tuple[int, ...], dtype: str, sigma: Sigma) -> int:
    return tensorflow_pass_bytes(shape, float_dtype("gaussian", dtype), gaussian_radius(sigma))


@memory_types("numpy", splittable="zyx", halo=_halo, workspace=ALLOWANCE_BYTES, output_like=_result)
def gaussian(stack: NDArray[Any], *, sigma: Sigma) -> NDArray[Any]:
    """Smooth a [Z, Y, X] stack with a Gaussian of `sigma` pixels, a number or three for (z, y, x).

    The kernel ends at 4 sigma (radius int(4 * sigma + 0.5)) and has sum 1; beyond its edge the stack
    continues with its outermost voxel. An axis with sigma 0 isn't touched, and along z a single plane stays
    as it is. On NumPy this is `scipy.ndimage.gaussian_filter(stack, sigma, mode="nearest", output=...)`,
    summed in double precision.

    Parameters
    ----------
    stack
        uint8 to uint32, int8 to int32, float32 or float64; never written.
    sigma
        Standard deviation in pixels, zero or more.

    Returns
    -------
    A new stack of the same shape: float32 for integers of up to 16 bits and float32, float64
    for 32-bit integers and float64.

    Raises
    ------
    DtypeError
        Another dtype; or float64 is needed where the framework doesn't have it (pyclesperanto; JAX without
        x64).
    ValueError
        `sigma` isn't one number or three, or one is negative or not finite.

    Notes
    -----
    Every implementation agrees with NumPy's within 1e-6 of the largest absolute value in the
    stack for float32, and within 1e-14 of it for float64. Each gives for a block with its halo, bit for bit,
    what it gives for the whole.
    """
    kernels = gaussian_kernels(sigma)
    out = np.empty(stack.shape, float_dtype("gaussian", stack.dtype))
    return numpy_separable(stack, kernels, out)


@gaussian.register("cupy", workspace=_one_more)
def gaussian_cupy(stack: Any, *, sigma: Sigma) -> Any:
    """`gaussian` by cupyx.scipy.ndimage, which sums in the dtype of the result."""
    import cupy

    kernels, dtype = gaussian_kernels(sigma), float_dtype("gaussian", stack.dtype)
    with stack.device:
        out, scratch = cupy.empty(stack.shape, dtype), cupy.empty(stack.shape, dtype)
        return cupy_separable(stack, kernels, out, scratch)


@gaussian.register("torch", workspace=_torch_workspace)
def gaussian_torch(stack: Any, *, sigma: Sigma) -> Any:
    """`gaussian` on torch tensors, block by block."""
    import torch

    kernels, dtype = gaussian_kernels(sigma), float_dtype("gaussian", dtype_name(stack))
    out = torch.empty(stack.shape, dtype=getattr(torch, dtype), device=stack.device)
    return torch_separable(stack, kernels, out)


@gaussian.register("jax", workspace=_jax_workspace)
def gaussian_jax(stack: Any, *, sigma: Sigma) -> Any:
    """`gaussian` on JAX arrays, compiled once for each shape and radius."""
    return jax_separable(stack, gaussian_kernels(sigma), jax_float_dtype("gaussian", stack))


@gaussian.register("tensorflow", workspace=_tensorflow_workspace)
def gaussian_tensorflow(stack: Any, *, sigma: Sigma) -> Any:
    """`gaussian` on TensorFlow tensors."""
    return tensorflow_separable(stack, gaussian_kernels(sigma), float_dtype("gaussian", dtype_name(stack)))


@gaussian.register("pyclesperanto", workspace=_one_more)
def gaussian_pyclesperanto(stack: Any, *, sigma: Sigma) -> Any:
    """`gaussian` by `convolve` with the same weights: pyclesperanto's own Gaussian ends at other radii."""
    import pyclesperanto as cle

    kernels = gaussian_kernels(sigma)
    dtype = require_float32("gaussian", "pyclesperanto", float_dtype("gaussian", stack.dtype))
    out = cle.create(stack.shape, dtype=np.dtype(dtype), device=stack.device)
    scratch = cle.create(stack.shape, dtype=np.dtype(dtype), device=stack.device)
    return pyclesperanto_separable(stack, kernels, out, scratch)
