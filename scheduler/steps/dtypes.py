"""Which dtypes the built-in steps take, and which they compute in and give."""

import math
from typing import Any

import numpy as np

from memcore import DtypeError

PIXEL_DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64")
"""What a step takes; masks, 64-bit integers, half precision and complex numbers are converted first."""


def dtype_name(array: Any) -> str:
    """The dtype of an array of any framework by NumPy's name, as in "uint16"."""
    dtype = array.dtype
    name = getattr(dtype, "name", None)
    return str(name) if name is not None else str(dtype).removeprefix("torch.")


def require_pixels(step: str, dtype: Any) -> str:
    """Return the dtype's name, or raise `DtypeError` if a filter can't take it without changing values."""
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in PIXEL_DTYPES:
        raise DtypeError(
            f"{step} takes {', '.join(PIXEL_DTYPES)}, not {name}: put the step convert_dtype before it"
        )
    return name


def float_dtype(step: str, dtype: Any) -> str:
    """The dtype in which `step` computes: NumPy's promotion of `dtype` with float32, which holds every value.

    float32 for integers of up to 16 bits and float32; float64 for 32-bit integers and float64.
    """
    return str(np.result_type(np.dtype(require_pixels(step, dtype)), np.float32).name)


def require_float32(step: str, memory_type: str, dtype: str) -> str:
    """Return `dtype` if it is float32; else raise `DtypeError`: `memory_type` has no other."""
    if dtype != "float32":
        raise DtypeError(
            f"{step} computes 32-bit integers and float64 in float64, which {memory_type} doesn't have here: "
            'put convert_dtype with dtype "float32" before it, or run it on numpy'
        )
    return dtype


def float_nbytes(step: str, shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of a stack of `shape` in the dtype in which `step` computes `dtype`."""
    return math.prod(shape) * np.dtype(float_dtype(step, dtype)).itemsize


def jax_float_dtype(step: str, array: Any) -> str:
    """`float_dtype` of a JAX array; `DtypeError` where it is float64 and JAX has no 64 bits."""
    import jax

    dtype = float_dtype(step, array.dtype)
    return dtype if jax.config.jax_enable_x64 else require_float32(step, "JAX without jax_enable_x64", dtype)
