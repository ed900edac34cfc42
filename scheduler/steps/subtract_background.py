"""`subtract_background`: the white top-hat of each slice."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from memcore import DtypeError, memory_types
from scheduler.steps.dtypes import dtype_name, require_pixels
from scheduler.steps.separable import ALLOWANCE_BYTES
from scheduler.steps.top_hat import pyclesperanto_top_hat

STEP = "subtract_background"

BLOCK_BYTES = 64 << 20
"""What CuPy works on at a time."""

Pick = Callable[[Any, Any], Any]
Join = Callable[[list[Any], int], Any]


def window_radius(radius: int) -> int:
    """Check `radius`: whole pixels, at least 1."""
    if isinstance(radius, bool) or not isinstance(radius, int) or radius < 1:
        raise ValueError(f"radius is a whole number of pixels, at least 1; got {radius!r}")
    return radius


def _require_unwrapped(dtype: str) -> str:
    if require_pixels(STEP, dtype).startswith("int"):
        raise DtypeError(
            f"{STEP} doesn't take {dtype}: a difference can be larger than it holds; "
            'put the step convert_dtype with dtype "float32" before it'
        )
    return dtype


def _halo(radius: int = 50) -> tuple[int, int, int]:
    # The opening looks one radius far for the minimum and another for the maximum.
    return 0, 2 * window_radius(radius), 2 * window_radius(radius)


def _plane_workspace(shape: tuple[int, ...], dtype: str) -> int:
    return 2 * shape[1] * shape[2] * np.dtype(dtype).itemsize + ALLOWANCE_BYTES


def _cupy_workspace(shape: tuple[int, ...], dtype: str) -> int:
    # Of a block: what the minimum and the maximum give along each axis, and the opening.
    plane = shape[1] * shape[2] * np.dtype(dtype).itemsize
    return 4 * min(max(BLOCK_BYTES, plane), shape[0] * plane) + ALLOWANCE_BYTES


def _stack_workspace(shape: tuple[int, ...], dtype: str) -> int:
    return 2 * math.prod(shape) * np.dtype(dtype).itemsize


def _padded_planes_workspace(shape: tuple[int, ...], _dtype: str, radius: int = 50) -> int:
    # Planes of 8 bytes a pixel with the reach of the window: values, runs of the doubling, and their join.
    _, rows, columns = shape
    return 8 * 8 * (rows + 2 * radius) * (columns + 2 * radius) + ALLOWANCE_BYTES


@memory_types("numpy", slice_by_slice=True, splittable="zyx", halo=_halo, workspace=_plane_workspace)
def subtract_background(stack: NDArray[Any], *, radius: int = 50) -> NDArray[Any]:
    """Subtract from each slice its background: what is left without what is narrower than a window.

    The background is the grey-scale opening (a minimum, then a maximum, over a square window of 2 * radius +
    1 pixels), and the result is the white top-hat: Meyer, "Iterative image transformations for an automatic
    screening of cervical smears", J. Histochem. Cytochem. 27 (1979) 128-135; Serra, "Image Analysis and
    Mathematical Morphology" (1982), ch. XII. It is the flat-bottomed kin of the rolling ball of Sternberg,
    "Biomedical image processing", IEEE Computer 16 (1983) 22-34. Choose `radius` larger than the widest
    object's half width.

    The background is never brighter than the image, so nothing becomes negative and nothing is rounded: the
    dtype stays. In a noisy image the minimum lies below the mean background; smooth first (`gaussian`) where
    that matters.

    Parameters
    ----------
    stack
        [Z, Y, X]; uint8 to uint32, float32 or float64, without NaN; never written. Signed integers are
        refused: a difference can be larger than they hold.
    radius
        Half the side of the window, in pixels, at least 1. A window reaches no further than the slice.

    Returns
    -------
    A new stack of the same shape and dtype.

    Raises
    ------
    DtypeError
        Another dtype.
    ValueError
        `radius` isn't a whole number of at least 1.

    Notes
    -----
    Minimum, maximum and difference are exact, so that every implementation gives the very values
    of NumPy's, and a block with its halo gives those of the whole.
    """
    _require_unwrapped(dtype_name(stack))
    side = 2 * window_radius(radius) + 1
    out = np.empty_like(stack, order="C", subok=False)
    for plane, result in zip(stack, out, strict=True):
        ndimage.grey_opening(plane, size=(side, side), output=result, mode="nearest")
        np.subtract(plane, result, out=result)
    return out


@subtract_background.register("cupy", workspace=_cupy_workspace)
def subtract_background_cupy(stack: Any, *, radius: int = 50) -> Any:
    """`subtract_background` by cupyx.scipy.ndimage."""
    import cupy
    from cupyx.scipy import ndimage as cupy_ndimage

    _require_unwrapped(dtype_name(stack))
    side = 2 * window_radius(radius) + 1
    with stack.device:
        out = cupy.empty(stack.shape, stack.dtype)
        planes = max(1, BLOCK_BYTES // max(1, stack[0].nbytes))
        for start in range(0, len(stack), planes):
            block = stack[start : start + planes]
            opened = cupy_ndimage.grey_opening(block, size=(1, side, side), mode="nearest")
            cupy.subtract(block, opened, out=out[start : start + planes])
        return out


@subtract_background.register("torch", workspace=_padded_planes_workspace)
def subtract_background_torch(stack: Any, *, radius: int = 50) -> Any:
    """`subtract_background` on torch tensors, slice by slice; integers are compared as signed ones."""
    import torch

    dtype = _require_unwrapped(dtype_name(stack))
    reach = window_radius(radius)
    comparable = {"uint8": torch.int32, "uint16": torch.int32, "uint32": torch.int64}.get(dtype)
    out = torch.empty(stack.shape, dtype=stack.dtype, device=stack.device)
    with torch.no_grad():
        for plane, result in zip(stack, out, strict=True):
            values = plane if comparable is None else plane.to(comparable)
            background = _opened(values, reach, torch.minimum, torch.maximum, torch.concat)
            result.copy_(values - background)
    return out


@subtract_background.register("jax", workspace=_padded_planes_workspace)
def subtract_background_jax(stack: Any, *, radius: int = 50) -> Any:
    """`subtract_background` on JAX arrays, slice by slice; compiled once for each shape and radius."""
    _require_unwrapped(dtype_name(stack))
    return _jax_top_hat()(stack, window_radius(radius))


@functools.cache
def _jax_top_hat() -> Any:
    import jax
    import jax.numpy as jnp

    def top_hat(stack: Any, reach: int) -> Any:
        def of_plane(plane: Any) -> Any:
            return plane - _opened(plane, reach, jnp.minimum, jnp.maximum, jnp.concatenate)

        return jax.lax.map(of_plane, stack)

    return jax.jit(top_hat, static_argnums=1)


@subtract_background.register("pyclesperanto", workspace=_stack_workspace)
def subtract_background_pyclesperanto(stack: Any, *, radius: int = 50) -> Any:
    """`subtract_background` by pyclesperanto's own top-hat, whose box ends at the border in the same way.

    uint32 by kernels that don't go through float32, as the library's do.
    """
    import pyclesperanto as cle

    dtype = _require_unwrapped(dtype_name(stack))
    reach = window_radius(radius)
    out = cle.create(stack.shape, dtype=stack.dtype, device=stack.device)
    if dtype == "uint32":
        return pyclesperanto_top_hat(stack, reach, out)
    return cle.top_hat(stack, out, reach, reach, 0, "box")


def _opened(plane: Any, reach: int, least: Pick, most: Pick, join: Join) -> Any:
    for pick in (least, most):
        for axis in (0, 1):
            plane = _windowed(plane, reach, axis, pick, join)
    return plane


def _windowed(plane: Any, reach: int, axis: int, pick: Pick, join: Join) -> Any:
    """`pick` over windows of 2 * reach + 1 along an axis, the edge repeated, by doubling."""
    length = plane.shape[axis]
    first, last = _part(plane, axis, 0, 1), _part(plane, axis, length - 1, 1)
    running = join([first] * reach + [plane] + [last] * reach, axis)
    window, done = 2 * reach + 1, 1
    while 2 * done <= window:
        kept = running.shape[axis] - done
        running = pick(_part(running, axis, 0, kept), _part(running, axis, done, kept))
        done *= 2
    # Two overlapping runs cover a window that isn't a power of two.
    return pick(_part(running, axis, 0, length), _part(running, axis, window - done, length))


def _part(plane: Any, axis: int, start: int, length: int) -> Any:
    return plane[start : start + length] if axis == 0 else plane[:, start : start + length]
