"""What memcore says about arrays, devices and memory, as plain picklable records."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from memcore.memory_type import GpuId

# The dtypes that cross between libraries, and their size in bytes.
ITEM_SIZES = {
    "bool": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}

# What an element takes that isn't a number: a pointer.
REFERENCE_SIZE = 8


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array without its values: enough to plan with.

    `dtype` is the NumPy name, such as "uint16" or "bfloat16", or the NumPy code where the byte order is
    foreign (">u2"). `device` is the `gpu_id`, or "cpu" for host memory.
    """

    memory_type: str
    shape: tuple[int, ...]
    dtype: str
    device: GpuId = "cpu"

    @property
    def nbytes(self) -> int:
        """Bytes of the values, without padding or overlap."""
        return math.prod(self.shape) * item_size(self.dtype)

    def __str__(self) -> str:
        where = place_text(self.device)
        return f"{self.memory_type} {self.dtype} {self.shape}, {bytes_text(self.nbytes)}, {where}"


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A place where arrays of one memory type can live.

    `kind` is "gpu" for an accelerator of its own and "cpu" for host memory, logical CPU devices included.
    `physical_id` is a PCI address or UUID that two libraries agree on, where the library tells one.
    """

    gpu_id: GpuId
    kind: Literal["cpu", "gpu"]
    name: str
    physical_id: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryHeld:
    """Bytes that a library's own allocator holds on a device, and how many of them it can give back now."""

    held: int
    reclaimable: int


def item_size(dtype: str) -> int:
    """Bytes of one element of the dtype with that name.

    Dtypes that only one library has tell their bits in their name: float8_e4m3fn, void48, datetime64.
    """
    size = ITEM_SIZES.get(dtype)
    if size is not None:
        return size
    if dtype[:1] in "<>":
        import numpy as np

        return np.dtype(dtype).itemsize
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else REFERENCE_SIZE


def bytes_text(nbytes: int) -> str:
    """The bytes in binary units, whole where they are whole: "512 MiB", "1.5 GiB", "12 bytes"."""
    size = float(nbytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def place_text(device: GpuId) -> str:
    """Where an array lives, for messages."""
    return "in host memory" if device == "cpu" else f"on device {device}"
