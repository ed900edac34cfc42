"""The weights of a Gaussian, and how far they reach."""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
from numpy.typing import NDArray

Sigma = float | Sequence[float]

TRUNCATE = 4.0
"""Weights end at this many sigmas, as SciPy's do: what lies beyond is 6e-5 of the whole."""


def sigma_zyx(sigma: Sigma) -> tuple[float, float, float]:
    """One sigma for each of (z, y, x), in pixels, from a number or from three.

    Raises
    ------
    ValueError
        Not one or three numbers, or one of them is negative, infinite or no number at all.
    """
    given = (sigma,) * 3 if isinstance(sigma, Real) else tuple(np.ravel(np.asarray(sigma, dtype=object)))
    if len(given) != 3:
        raise ValueError(f"sigma is one number or three (z, y, x), in pixels; got {len(given)}: {sigma!r}")
    for value in given:
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
            raise ValueError(f"sigma is in pixels, zero or more; got {sigma!r}")
    z, y, x = (float(value) for value in given)
    return z, y, x


def gaussian_radius(sigma: Sigma) -> tuple[int, int, int]:
    """How many planes, rows and columns a Gaussian of `sigma` pixels reaches to each side."""
    z, y, x = (int(TRUNCATE * value + 0.5) for value in sigma_zyx(sigma))
    return z, y, x


def gaussian_kernels(sigma: Sigma) -> tuple[NDArray[np.float64], ...]:
    """Three symmetric weight vectors (z, y, x) of odd length and of sum 1; [1.0] where sigma is 0."""
    return tuple(
        _weights(value, radius)
        for value, radius in zip(sigma_zyx(sigma), gaussian_radius(sigma), strict=True)
    )


def _weights(sigma: float, radius: int) -> NDArray[np.float64]:
    if radius == 0:
        return np.ones(1)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    return np.asarray(weights / weights.sum())
