"""Byte sizes: how limits are written, and how requests are rounded so that buffers can be shared."""

from functools import lru_cache
from typing import Final

ALIGNMENT: Final = 64
"""JAX imports host memory without a copy only at this alignment."""


def parse_size(size: int | str) -> int:
    """Bytes of an int or of a text like "4GiB" or "512 MB".

    Raises
    ------
    ValueError
        The text is no size, or it is negative.
    TypeError
        Neither int nor text; a bool is no size.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"a size in bytes is an int or a text like '4GiB', not {size!r}")
    if isinstance(size, str):
        from dask.utils import parse_bytes

        size = int(parse_bytes(size))
    if size < 0:
        raise ValueError(f"a size in bytes can't be negative: {size}")
    return size


@lru_cache(maxsize=4096)
def size_class(nbytes: int) -> int:
    """The bytes of the buffer that serves a request of `nbytes`: at most an eighth (12.5 %) more.

    Eight classes for each power of two. Below 512 bytes the step is the alignment.
    """
    # (2**e, 2**(e+1)] is cut into steps of 2**(e-3)
    step = max(ALIGNMENT, 1 << max((nbytes - 1).bit_length() - 4, 0))
    return max(-(-nbytes // step) * step, ALIGNMENT)
