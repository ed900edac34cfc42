"""The names of the memory types, and how a device is named."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, TypeAlias

# A framework's own array. The frameworks aren't imported, so their types can't be spelled here.
Array: TypeAlias = Any

# An accelerator's index as this process's frameworks number it, or host memory.
GpuId: TypeAlias = int | Literal["cpu"]


class MemoryType(StrEnum):
    """The array libraries that come with memcore; `register_backend` adds further names."""

    NUMPY = "numpy"
    CUPY = "cupy"
    TORCH = "torch"
    TENSORFLOW = "tensorflow"
    JAX = "jax"
    PYCLESPERANTO = "pyclesperanto"
