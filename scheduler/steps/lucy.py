"""The iteration of Richardson and Lucy on each framework, with few buffers.

`counts` is [Z, Y, X] in the float dtype of the result, zero or more, and is never written. A blur with a
Gaussian is its own mirror image, so that convolution and correlation are the same sums.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.steps.fourier import FourierBlur
from scheduler.steps.separable import (
    Kernels,
    cupy_separable,
    jax_separable,
    numpy_separable,
    pyclesperanto_separable,
    torch_separable,
)

FLOOR = 1e-30
"""The least blurred intensity that is divided by, so that 0 / 0 is 0; far below a count in any unit."""


def numpy_lucy(counts: NDArray[Any], kernels: Kernels, iterations: int) -> NDArray[Any]:
    """Two stacks of floats: the estimate, which is returned, and one for all the rest."""
    estimate = numpy_separable(counts, kernels, np.empty_like(counts, order="C"))
    ratio = np.empty_like(estimate)
    for _ in range(iterations - 1):
        numpy_separable(estimate, kernels, ratio)
        np.maximum(ratio, FLOOR, out=ratio)
        np.divide(counts, ratio, out=ratio)
        estimate *= numpy_separable(ratio, kernels, ratio)
    return estimate


def torch_lucy(counts: Any, kernels: Kernels, iterations: int) -> Any:
    """Two stacks of floats, as on NumPy."""
    import torch

    estimate = torch_separable(
        counts, kernels, torch.empty(counts.shape, dtype=counts.dtype, device=counts.device)
    )
    ratio = torch.empty_like(estimate)
    for _ in range(iterations - 1):
        torch_separable(estimate, kernels, ratio).clamp_(min=FLOOR)
        torch.divide(counts, ratio, out=ratio)
        estimate.mul_(torch_separable(ratio, kernels, ratio))
    return estimate


def cupy_lucy(counts: Any, kernels: Kernels, iterations: int) -> Any:
    """Four stacks of floats: cupyx filters from one array into another."""
    import cupy

    estimate, ratio, correction, scratch = (cupy.empty(counts.shape, counts.dtype) for _ in range(4))
    cupy_separable(counts, kernels, estimate, scratch)
    for _ in range(iterations - 1):
        cupy_separable(estimate, kernels, ratio, scratch)
        cupy.maximum(ratio, FLOOR, out=ratio)
        cupy.divide(counts, ratio, out=ratio)
        estimate *= cupy_separable(ratio, kernels, correction, scratch)
    return estimate


def jax_lucy(counts: Any, kernels: Kernels, iterations: int, dtype: str) -> Any:
    """JAX's arrays are immutable: a new one for each operation."""
    import jax.numpy as jnp

    estimate = jax_separable(counts, kernels, dtype)
    for _ in range(iterations - 1):
        ratio = counts / jnp.maximum(jax_separable(estimate, kernels, dtype), FLOOR)
        estimate = estimate * jax_separable(ratio, kernels, dtype)
    return estimate


def fourier_lucy(counts: Any, blur: FourierBlur, iterations: int) -> Any:
    """By FFT with any PSF, in the namespace of `blur`.

    A transform leaves errors of about the dtype's epsilon times the brightest voxel: what is darker than that
    counts as that when it is divided by, and what is negative is zero.
    """
    xp = blur.xp
    floor = max(FLOOR, float(xp.finfo(counts.dtype).eps) * float(xp.max(counts)))
    estimate = xp.clip(blur.backward(counts), min=0.0)
    for _ in range(iterations - 1):
        ratio = counts / xp.clip(blur.forward(estimate), min=floor)
        estimate = estimate * xp.clip(blur.backward(ratio), min=0.0)
    return estimate


def pyclesperanto_lucy(stack: Any, psf: Kernels | NDArray[np.float64], iterations: int) -> Any:
    """Five stacks of float32, the counts among them; `psf` is three weight vectors, or a [Z, Y, X] array."""
    import pyclesperanto as cle

    counts, estimate, ratio, correction, scratch = (
        cle.create(stack.shape, dtype=np.dtype("float32"), device=stack.device) for _ in range(5)
    )
    cle.copy(stack, counts)
    forward, backward = _pyclesperanto_blurs(psf, scratch)
    backward(counts, estimate)
    for _ in range(iterations - 1):
        forward(estimate, ratio)
        cle.maximum_image_and_scalar(ratio, correction, FLOOR)
        cle.divide_images(counts, correction, ratio)
        backward(ratio, correction)
        cle.multiply_images(estimate, correction, ratio)
        estimate, ratio = ratio, estimate
    return estimate


Blur = Callable[[Any, Any], Any]


def _pyclesperanto_blurs(psf: Kernels | NDArray[np.float64], scratch: Any) -> tuple[Blur, Blur]:
    import pyclesperanto as cle

    if isinstance(psf, np.ndarray):
        # What clEsperanto calls convolve doesn't mirror its kernel: it correlates.
        kernel = cle.push(psf.astype(np.float32), device=scratch.device)
        mirrored = cle.push(np.ascontiguousarray(psf[::-1, ::-1, ::-1], np.float32), device=scratch.device)
        return (
            lambda source, out: cle.convolve(source, mirrored, out),
            lambda source, out: cle.convolve(source, kernel, out),
        )

    def blur(source: Any, out: Any) -> Any:
        return pyclesperanto_separable(source, psf, out, scratch)

    return blur, blur
