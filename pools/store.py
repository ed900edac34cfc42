"""Where a pool's blocks come from, and how they become arrays of one memory type."""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any
from weakref import ref

import numpy as np

from pools.block import Block, map_block, unmap_block
from pools.owner import Owner, view_of


class Store(ABC):
    """Allocates, lends and frees the blocks of one memory type on one device. Has no state of a pool."""

    @abstractmethod
    def allocate(self, nbytes: int) -> Block:
        """A new block; raises what the framework raises when there is no memory."""

    @abstractmethod
    def free(self, block: Block) -> None:
        """Give the block's memory back. Nothing sees it any more."""

    @abstractmethod
    def lend(self, owner: Owner, shape: tuple[int, ...], dtype: Any, *, writeable: bool) -> Any:
        """The owner's block as an array. Only the array, and what is made of it, keeps the owner alive."""

    def dtype(self, dtype: Any) -> Any:
        """The dtype in the form that `lend` takes, with an `itemsize`."""
        return np.dtype(dtype)

    def returned(self, block: Block) -> None:  # noqa: B027  (most stores have nothing to note)
        """Note that nothing sees the block any more; device work may still use it (`block.pending`)."""

    def remember(self, array: Any) -> Callable[[], Any]:
        """A weak reference to the lent array."""
        return ref(array)

    def wait(self) -> None:  # noqa: B027  (host memory has no device to wait for)
        """Wait for the work that was given to the device."""

    def settle(self, unseen: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `unseen` is true; False if it isn't within `timeout_s` seconds.

        Asynchronous frameworks let go of an array when their work is done, JAX only at its next operation
        or at a garbage collection.
        """
        if unseen():
            self.wait()
            return True
        deadline = monotonic() + timeout_s
        self.wait()
        gc.collect()
        pause = 0.0005
        while not unseen():
            left = deadline - monotonic()
            if left <= 0:
                return False
            # no event tells of a death: finalizers may not lock
            sleep(min(pause, left))
            pause = min(pause * 2, 0.02)
            if pause == 0.02:
                self.wait()
                gc.collect()
        return True


class HostStore(Store):
    """Host memory as NumPy arrays: aligned, mapped from the system, with huge pages where asked for."""

    def __init__(self, *, huge_pages: bool = True) -> None:
        self.huge_pages = huge_pages

    def allocate(self, nbytes: int) -> Block:
        return map_block(nbytes, huge_pages=self.huge_pages)

    def free(self, block: Block) -> None:
        unmap_block(block)

    def lend(self, owner: Owner, shape: tuple[int, ...], dtype: Any, *, writeable: bool) -> Any:
        owner.readonly = not writeable
        return view_of(owner, shape, dtype)

    def dtype(self, dtype: Any) -> Any:
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"a pool holds plain bytes, and dtype {kind} holds Python objects")
        return kind
