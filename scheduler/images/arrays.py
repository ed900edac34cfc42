"""Arrays that a step takes from a file: a flat field, a dark frame, a measured point spread function."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from scheduler.images.errors import ImageError
from scheduler.images.sources import find_stacks, read_stack


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """An array in a file, described by its form and by a digest of its values; picklable and hashable."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    digest: str

    @classmethod
    def of(cls, path: str | Path) -> Self:
        """Read the file and describe what is in it, the same file once. Errors as of `read_array`.

        A file counts as the same while its size and time are; `read` would find that it isn't.
        """
        path = Path(path)
        if not path.is_file():  # a folder's time says nothing of the chunks in it
            return cls(str(path), *_described(path))
        found = path.stat()
        return cls(
            str(path), *_described_once(path.absolute(), found.st_ino, found.st_size, found.st_mtime_ns)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def read(self) -> np.ndarray[Any, Any]:
        """The array, in C order, which nobody can write to; its bytes are in memory once, not twice.

        Raises
        ------
        ImageError
            As `read_array`, or other values are in the file than when it was described.
        """
        array = read_array(self.path)
        if _digest(array) != self.digest:
            raise ImageError(
                f"{self.path} has changed since the run began: its {array.dtype.name} {array.shape} has "
                "other values; put the old one back, or start a new run"
            )
        # unlike a flag of the array, that of the buffer can't be set back
        locked = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data.toreadonly()
        return np.frombuffer(locked, array.dtype).reshape(array.shape)


def _described(path: Path) -> tuple[tuple[int, ...], str, str]:
    array = read_array(path)
    return array.shape, array.dtype.name, _digest(array)


@lru_cache(maxsize=256)
def _described_once(path: Path, *_version: int) -> tuple[tuple[int, ...], str, str]:
    return _described(path)


def read_array(path: str | Path) -> np.ndarray[Any, Any]:
    """The array in a `.npy` file, [Y, X] or [Z, Y, X], or the one image of a TIFF or OME-Zarr.

    One plane comes as [Y, X], a stack as [Z, Y, X]; dtype as stored, byte order native.

    Raises
    ------
    ImageError
        No such file, damaged, several images or channels in it, or no array of numbers in 2-D or 3-D.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return _read_npy(path)
    # braces are a pattern's, and every other character stands for itself but *
    if not path.exists() or "*" in path.name:
        raise ImageError(f"{path}: there is no such file")
    try:
        sources = find_stacks(path.parent, path.name.replace("{", "{{").replace("}", "}}"))
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error
    if len(sources) != 1:
        names = ", ".join(source.name for source in sources[:4])
        raise ImageError(f"{path}: holds {len(sources)} images where one is wanted: {names}")
    stack = np.empty(sources[0].shape, sources[0].dtype)
    read_stack(sources[0], stack)
    return stack[0] if len(stack) == 1 else stack


def _read_npy(path: Path) -> np.ndarray[Any, Any]:
    try:
        # a map holds the header against the file's size first, but what is read by it would be resident
        # beside the array; pickles, which run code, are refused
        np.load(path, mmap_mode="r", allow_pickle=False)
        array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise ImageError(f"{path}: not a readable .npy file: {error}") from error
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "biufc":
        raise ImageError(
            f"{path}: an array [Y, X] or [Z, Y, X] of numbers is wanted, not {array.dtype} {array.shape}"
        )
    if not array.dtype.isnative:
        array = array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))
    return array


def _digest(array: np.ndarray[Any, Any]) -> str:
    values = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    values.update(np.ascontiguousarray(array).data)
    return values.hexdigest()
