"""Where the planes of one stack are, and what they must look like."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# (z, y, x) in micrometres; z is None where the file tells the pixel size but not the plane distance.
PhysicalSize = tuple[float | None, float, float]


@dataclass(frozen=True, slots=True)
class StackMetadata:
    """What is written beside the pixels: sizes in µm, the channel's name, and how the stack came about."""

    physical_size_um: PhysicalSize | None = None
    channel_name: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlaneRef:
    """One [Y, X] plane: page `page` of the TIFF `path`, or plane `page` of the Zarr array in folder `path`.

    `sample` picks one sample of a page that has several (RGB). `offset` is where the plane's bytes begin in a
    file that has one directory for many contiguous planes (ImageJ beyond 4 GiB, MetaMorph); then `page` is 0.
    """

    path: str
    page: int = 0
    sample: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class StackSource:
    """A [Z, Y, X] stack in files: `planes[z]` is plane z, `fields` is what names the stack among the others.

    `dtype` is NumPy's name, byte order native. `problem` says why a stack that was found can't be read, where
    that is known already; its `shape` is then no more than a place holder.
    """

    fields: tuple[tuple[str, str], ...]
    planes: tuple[PlaneRef, ...]
    shape: tuple[int, int, int]
    dtype: str
    physical_size_um: PhysicalSize | None = None
    channel_name: str | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """The fields as one word, fit for a file name: `well-A01_site-1_channel-1`."""
        return "_".join(f"{field}-{value}" for field, value in self.fields) or "stack"

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded stack."""
        z, y, x = self.shape
        return z * y * x * np.dtype(self.dtype).itemsize
