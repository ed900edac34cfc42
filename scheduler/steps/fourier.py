"""Blurring with any point spread function through the FFT, by the array API of NumPy, CuPy, torch and JAX."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

AXES = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class FourierBlur:
    """Convolution and correlation of [Z, Y, X] stacks of one shape with one PSF, the edge voxels repeated.

    `transfer` is the transform of the PSF with its first voxel at the origin: the shift to its centre is made
    by where the result is cut out.
    """

    xp: Any
    fft: Any
    transfer: Any
    shape: tuple[int, ...]
    radius: tuple[int, ...]
    fft_shape: tuple[int, ...]

    @classmethod
    def of(cls, xp: Any, like: Any, psf: NDArray[np.float64], dtype: str, device: Any) -> "FourierBlur":
        """Prepare for stacks of the shape of `like`, in `dtype`, on `device` of the namespace `xp`."""
        radius = tuple(side // 2 for side in psf.shape)
        fft_shape = blur_fft_shape(like.shape, psf.shape)
        small = xp.asarray(psf.astype(dtype), device=device)
        # NumPy's own FFT computes float32 in double precision on the way; SciPy's doesn't.
        fft = scipy.fft if isinstance(small, np.ndarray) else xp.fft
        transfer = fft.rfftn(small, s=fft_shape, axes=AXES)
        return cls(xp, fft, transfer, tuple(like.shape), radius, fft_shape)

    def forward(self, stack: Any) -> Any:
        """Convolve with the PSF: what the microscope would show of `stack`."""
        return self._filter(stack, self.transfer, tuple(2 * reach for reach in self.radius))

    def backward(self, stack: Any) -> Any:
        """Correlate with the PSF."""
        return self._filter(stack, self.xp.conj(self.transfer), (0, 0, 0))

    def _filter(self, stack: Any, transfer: Any, first: tuple[int, ...]) -> Any:
        spectrum = self.fft.rfftn(self._extended(stack), s=self.fft_shape, axes=AXES)
        spectrum = spectrum * transfer
        blurred = self.fft.irfftn(spectrum, s=self.fft_shape, axes=AXES)
        cut = tuple(slice(start, start + side) for start, side in zip(first, self.shape, strict=True))
        return blurred[cut]

    def _extended(self, stack: Any) -> Any:
        for axis, (side, reach) in enumerate(zip(self.shape, self.radius, strict=True)):
            if reach:
                index = np.clip(np.arange(-reach, side + reach), 0, side - 1)
                where = self.xp.asarray(index, device=stack.device)
                stack = self.xp.take(stack, where, axis=axis)
        return stack


def blur_fft_shape(shape: tuple[int, ...], psf_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The transform's sides: the stack and the PSF's reach on both ends, rounded up to fast lengths."""
    return tuple(
        int(scipy.fft.next_fast_len(side + 2 * (width // 2), real=True))
        for side, width in zip(shape, psf_shape, strict=True)
    )
