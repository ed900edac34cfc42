"""`richardson_lucy`: deconvolution of a stack blurred by a known point spread function."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import ArrayLike, NDArray

from memcore import memory_types
from memcore.contracts import Split
from scheduler.steps.dtypes import dtype_name, float_dtype, float_nbytes, jax_float_dtype, require_float32
from scheduler.steps.fourier import FourierBlur, blur_fft_shape
from scheduler.steps.kernels import Sigma, gaussian_kernels, gaussian_radius
from scheduler.steps.lucy import cupy_lucy, fourier_lucy, jax_lucy, numpy_lucy, pyclesperanto_lucy, torch_lucy
from scheduler.steps.psf import normalized_psf, psf_sides
from scheduler.steps.separable import ALLOWANCE_BYTES, jax_pass_bytes, torch_block_bytes

STEP = "richardson_lucy"

Psf = ArrayLike | None
BlurBytes = Callable[[tuple[int, ...], str, Sequence[int]], int]


def _result(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
    return shape, float_dtype(STEP, dtype)


def _splittable(psf: Psf = None) -> Split:
    # An FFT rounds differently for another shape: its blocks would differ from the whole in their last bits.
    return "zyx" if psf is None else None


def _halo(sigma: Sigma | None = None, psf: Psf = None, iterations: int = 10) -> tuple[int, int, int]:
    blurs = 2 * _checked(sigma, psf, iterations) - 1
    if psf is not None:
        z, y, x = (blurs * (side // 2) for side in psf_sides(psf))
    else:
        z, y, x = (blurs * reach for reach in gaussian_radius(sigma or 0.0))
    return z, y, x


def _workspace(stacks: int, *, blur_bytes: BlurBytes | None = None, ffts: int = 5) -> Any:
    """Bytes beside stack and result: so many stacks of floats, and what a blur needs."""

    def workspace(shape: tuple[int, ...], dtype: str, sigma: Sigma | None = None, psf: Psf = None) -> int:
        floats = float_dtype(STEP, dtype)
        kept = (stacks + (floats != str(np.dtype(dtype)))) * float_nbytes(STEP, shape, dtype)
        if psf is not None:
            planes, rows, columns = blur_fft_shape(shape, psf_sides(psf))
            spectrum = planes * rows * (columns // 2 + 1) * 2 * np.dtype(floats).itemsize
            return kept + ffts * spectrum + ALLOWANCE_BYTES
        if blur_bytes is not None:
            return kept + blur_bytes(shape, floats, gaussian_radius(sigma or 0.0))
        return kept + ALLOWANCE_BYTES

    return workspace


@memory_types("numpy", splittable=_splittable, halo=_halo, workspace=_workspace(1), output_like=_result)
def richardson_lucy(
    stack: NDArray[Any], *, sigma: Sigma | None = None, psf: Psf = None, iterations: int = 10
) -> NDArray[Any]:
    """Sharpen a [Z, Y, X] stack of photon counts by Richardson-Lucy deconvolution in three dimensions.

    From a flat estimate e, `iterations` times: e <- e * correlate(stack / convolve(e, psf), psf). Richardson,
    "Bayesian-based iterative method of image restoration", J. Opt. Soc. Am. 62 (1972) 55-59; Lucy, "An
    iterative technique for the rectification of observed distributions", Astron. J. 79 (1974) 745-754. The
    first iteration from a flat estimate is one correlation. Noise grows with the iterations: 10 to 30 are
    usual.

    Subtract the camera's offset first: counts are proportional to light. Beyond its edge every blurred image
    continues with its outermost voxel.

    Parameters
    ----------
    stack
        uint8 to uint32, int8 to int32, float32 or float64, zero or more, without NaN; never written.
    sigma
        Of a Gaussian PSF, in pixels: a number or three for (z, y, x). It is summed along the axes, as in
        `gaussian`.
    psf
        Or any PSF, as a [Z, Y, X] array, nested lists, or the full path of a TIFF or `.npy` file, which a
        config may have under `arrays` as well; its centre is the voxel at shape // 2, and it is scaled to
        sum 1. It is applied by FFT in the result's dtype (on pyclesperanto by direct sums).
    iterations
        At least 1.

    Returns
    -------
    A new stack of the same shape, zero or more: float32 for integers of up to 16 bits and
    float32, float64 for 32-bit integers and float64.

    Raises
    ------
    DtypeError
        Another dtype; or float64 is needed where the framework doesn't have it (pyclesperanto; JAX without
        x64).
    ValueError
        A negative or NaN voxel; both or neither of `sigma` and `psf`; a PSF or number that can't be.

    Notes
    -----
    Every implementation agrees with NumPy's within 1e-5 of the largest value for float32 and up
    to 20 iterations (rounding grows with them), within 1e-12 of it for float64. With `sigma` each gives for a
    block with its halo, bit for bit, what it gives for the whole; with `psf` the step isn't splittable.
    """
    _checked(sigma, psf, iterations)
    dtype = float_dtype(STEP, stack.dtype)
    _require_counts(float(stack.min()))
    counts = stack.astype(dtype, copy=False)
    if psf is not None:
        return np.asarray(fourier_lucy(counts, _fourier_blur(counts, psf, dtype), iterations))
    return numpy_lucy(counts, gaussian_kernels(sigma or 0.0), iterations)


@richardson_lucy.register("cupy", workspace=_workspace(3, ffts=9))
def richardson_lucy_cupy(
    stack: Any, *, sigma: Sigma | None = None, psf: Psf = None, iterations: int = 10
) -> Any:
    """`richardson_lucy` on CuPy arrays."""
    _checked(sigma, psf, iterations)
    dtype = float_dtype(STEP, stack.dtype)
    with stack.device:
        _require_counts(float(stack.min()))
        counts = stack.astype(dtype, copy=False)
        if psf is not None:
            return fourier_lucy(counts, _fourier_blur(counts, psf, dtype), iterations)
        return cupy_lucy(counts, gaussian_kernels(sigma or 0.0), iterations)


@richardson_lucy.register("torch", workspace=_workspace(1, blur_bytes=torch_block_bytes, ffts=7))
def richardson_lucy_torch(
    stack: Any, *, sigma: Sigma | None = None, psf: Psf = None, iterations: int = 10
) -> Any:
    """`richardson_lucy` on torch tensors."""
    import torch

    _checked(sigma, psf, iterations)
    dtype = float_dtype(STEP, dtype_name(stack))
    with torch.no_grad():
        counts = stack.to(getattr(torch, dtype))
        _require_counts(float(counts.min()))
        if psf is not None:
            return fourier_lucy(counts, _fourier_blur(counts, psf, dtype), iterations)
        return torch_lucy(counts, gaussian_kernels(sigma or 0.0), iterations)


@richardson_lucy.register("jax", workspace=_workspace(2, blur_bytes=jax_pass_bytes, ffts=9))
def richardson_lucy_jax(
    stack: Any, *, sigma: Sigma | None = None, psf: Psf = None, iterations: int = 10
) -> Any:
    """`richardson_lucy` on JAX arrays."""
    _checked(sigma, psf, iterations)
    dtype = jax_float_dtype(STEP, stack)
    _require_counts(float(stack.min()))
    counts = stack.astype(dtype)
    if psf is not None:
        return fourier_lucy(counts, _fourier_blur(counts, psf, dtype), iterations)
    return jax_lucy(counts, gaussian_kernels(sigma or 0.0), iterations, dtype)


@richardson_lucy.register("pyclesperanto", workspace=_workspace(3, ffts=1))
def richardson_lucy_pyclesperanto(
    stack: Any, *, sigma: Sigma | None = None, psf: Psf = None, iterations: int = 10
) -> Any:
    """`richardson_lucy` on pyclesperanto arrays: every blur is a direct sum, also with `psf`."""
    import pyclesperanto as cle

    _checked(sigma, psf, iterations)
    require_float32(STEP, "pyclesperanto", float_dtype(STEP, stack.dtype))
    # Its minimum passes over NaN, which is all that differs from itself.
    if dtype_name(stack) == "float32" and cle.maximum_of_all_pixels(cle.not_equal(stack, stack)):
        _require_counts(math.nan)
    _require_counts(float(cle.minimum_of_all_pixels(stack)))
    if psf is not None:
        return pyclesperanto_lucy(stack, normalized_psf(psf), iterations)
    return pyclesperanto_lucy(stack, gaussian_kernels(sigma or 0.0), iterations)


def _fourier_blur(counts: Any, psf: ArrayLike, dtype: str) -> FourierBlur:
    xp = array_api_compat.array_namespace(counts)
    return FourierBlur.of(xp, counts, normalized_psf(psf), dtype, array_api_compat.device(counts))


def _checked(sigma: Sigma | None, psf: Psf, iterations: int) -> int:
    if (sigma is None) == (psf is None):
        raise ValueError(f"{STEP} needs either sigma, for a Gaussian PSF, or psf, an array, and not both")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations is a whole number, at least 1; got {iterations!r}")
    return iterations


def _require_counts(smallest: float) -> None:
    if not smallest >= 0:
        raise ValueError(f"{STEP} takes counts, zero or more; the smallest voxel is {smallest:g}")
