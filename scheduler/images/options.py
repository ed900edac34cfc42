"""How outputs are stored."""

from dataclasses import dataclass
from typing import Any

from scheduler.images.errors import OutputError
from scheduler.images.patterns import nearest

COMPRESSIONS = ("default", "none", "zlib", "zstd", "lzw")
ZARR_COMPRESSIONS = ("default", "none", "zlib", "zstd")
ZARR_VERSIONS = ("0.4", "0.5")
DOWNSAMPLES = ("mean", "nearest")


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a stack is stored; the formats that have no such choice ignore it.

    `compression`: `default` is none for TIFF, which every program reads, and zstd for OME-Zarr. OME-Zarr
    alone has `chunks` (z, y, x), `levels` (of the pyramid; 1 is the full resolution alone), `zarr_version`,
    and `downsample`: a pixel of the next level is the `mean` of four, or with `nearest` one of them, which
    keeps labels whole. Bool and integers of 32 and 64 bits are never averaged.
    """

    compression: str = "default"
    zarr_version: str = "0.5"
    chunks: tuple[int, int, int] | None = None
    levels: int = 1
    downsample: str = "mean"

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise OutputError(
                f"there is no compression {self.compression!r}{nearest(self.compression, COMPRESSIONS)}"
            )
        if self.zarr_version not in ZARR_VERSIONS:
            raise OutputError(f"there is no OME-Zarr version {self.zarr_version!r}, only 0.4 and 0.5")
        if self.chunks is not None and (len(self.chunks) != 3 or min(self.chunks) < 1):
            raise OutputError(f"chunks are three lengths (z, y, x) of 1 or more, not {self.chunks}")
        if self.downsample not in DOWNSAMPLES:
            raise OutputError(
                f"there is no downsample {self.downsample!r}{nearest(self.downsample, DOWNSAMPLES)}"
            )
        if not 1 <= self.levels <= 16:
            raise OutputError(f"levels must be 1 to 16, not {self.levels}")


def check_options(format: str, **options: Any) -> None:
    """OutputError if `WriteOptions(**options)` can't be, or a format doesn't have that compression."""
    compression = WriteOptions(**options).compression
    if format == "ome-zarr" and compression not in ZARR_COMPRESSIONS:
        raise OutputError(f"ome-zarr has no compression {compression!r}; it has zstd, zlib and none")


DEFAULT_OPTIONS = WriteOptions()
