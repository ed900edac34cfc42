"""A point spread function, given as an array or in a file."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import ArrayLike, NDArray

from memcore import convert_memory, memory_type_of
from memcore.registry import resembles_array


def normalized_psf(psf: ArrayLike) -> NDArray[np.float64]:
    """The PSF as [Z, Y, X] with odd sides and sum 1; its centre is the voxel at shape // 2.

    `psf` is an array, nested lists, or the full path of a `.npy` or TIFF file with one. An even side gets a
    plane of zeros at its end, which leaves that centre where it was.

    Raises
    ------
    ValueError
        Not 3-D, empty, with a negative or infinite value, or all zero; or a file that isn't there, can't be
        read, or is named by half a path.
    """
    if isinstance(psf, str):
        psf = _read(Path(psf))
    elif resembles_array(psf) and not isinstance(psf, np.ndarray):
        # From a file under `arrays` it comes as the stack does, on its device.
        psf = convert_memory(psf, memory_type_of(psf), "numpy", "cpu")
    values = np.asarray(psf, dtype=np.float64)
    if values.ndim != 3 or values.size == 0:
        raise ValueError(f"psf is a [Z, Y, X] array; got shape {values.shape}")
    total = values.sum()
    if not np.isfinite(total) or values.min() < 0 or total <= 0:
        raise ValueError("psf holds intensities: zero or more, finite, and not all zero")
    return np.pad(values / total, [(0, 1 - side % 2) for side in values.shape])


def psf_sides(psf: Any) -> tuple[int, ...]:
    """The shape of `normalized_psf(psf)`; of an array described by a shape alone, without its values.

    Raises
    ------
    ValueError
        As `normalized_psf`, or the shape isn't that of a [Z, Y, X].
    """
    if isinstance(psf, str | list | tuple | np.ndarray):
        return normalized_psf(psf).shape
    if len(psf.shape) != 3:
        raise ValueError(f"psf is a [Z, Y, X] array; got shape {tuple(psf.shape)}")
    return tuple(side + 1 - side % 2 for side in psf.shape)


def _read(path: Path) -> Any:
    if not path.is_absolute():
        raise ValueError(f"psf {str(path)!r} must be a full path: a worker may run in another folder")
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False)
        return tifffile.imread(path)
    except (OSError, ValueError) as error:  # tifffile's own error is a ValueError
        raise ValueError(f"psf {path} can't be read: {error}") from error
