"""Blocks: the raw memory that a pool recycles, mapped from the system or allocated by a framework."""

import errno
import mmap
from time import monotonic
from typing import Any, Final

import numpy as np

from pools.holder import Holder
from pools.sizes import ALIGNMENT

HUGE_PAGE: Final = 2 << 20
_MAPPED_FROM: Final = 32 << 10  # from here on a size class is a whole number of pages


class Block:
    """One buffer of a pool, and who has it. The pool's lock guards every field but `address`.

    `exports` counts the owners that make its memory visible; the block is free when none is left.
    """

    __slots__ = (
        "address", "dtype", "ended", "exports", "holder", "memory", "nbytes", "pending", "shape", "since",
    )  # fmt: skip

    def __init__(self, nbytes: int, address: int, memory: Any) -> None:
        self.nbytes = nbytes
        self.address = address
        self.memory = memory
        self.exports = 0
        self.shape: tuple[int, ...] = ()
        self.dtype: Any = None
        self.holder: Holder = (None, None)
        self.since = 0.0
        self.ended = False
        self.pending: Any = None

    def lend(self, shape: tuple[int, ...], dtype: Any, holder: Holder) -> None:
        """Note a new lease. Called under the pool's lock."""
        self.exports = 1
        self.shape = shape
        self.dtype = dtype
        self.holder = holder
        self.since = monotonic()
        self.ended = False


def map_block(nbytes: int, *, huge_pages: bool) -> Block:
    """A block of host memory at a multiple of 64 bytes; from 2 MiB on, at one of 2 MiB.

    Its pages are zero, and are taken from the system when they are first touched. With `huge_pages` the
    system is asked for pages of 2 MiB, where whole ones fit.

    Raises
    ------
    MemoryError
        The system refuses.
    """
    if nbytes < _MAPPED_FROM:
        small = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
        return Block(nbytes, -(-small.ctypes.data // ALIGNMENT) * ALIGNMENT, small)
    large = nbytes >= HUGE_PAGE
    # private: shared anonymous memory (mmap's default) is shmem, which has no huge pages by default
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        memory = mmap.mmap(-1, nbytes + (HUGE_PAGE if large else 0), flags=flags)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(f"the system has no {nbytes} bytes to map") from error
    start = np.frombuffer(memory, dtype=np.uint8).ctypes.data
    address = -(-start // HUGE_PAGE) * HUGE_PAGE if large else start
    if large and huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        # whole huge pages only: one that reached past the block would be memory that nobody counts
        memory.madvise(mmap.MADV_HUGEPAGE, address - start, nbytes // HUGE_PAGE * HUGE_PAGE)
    return Block(nbytes, address, memory)


def unmap_block(block: Block) -> None:
    """Give the block's memory back to the system at once.

    Unmapped, not only advised: after MADV_FREE the memory still counts as ours, after MADV_DONTNEED it
    costs as much as new.
    """
    memory, block.memory = block.memory, None
    if isinstance(memory, mmap.mmap):
        memory.close()
