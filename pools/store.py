"""Where a pool's blocks come from, and how they become arrays of one memory type."""

import gc
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import numpy as np

from memcore.backend import Backend, numpy_dtype, numpy_dtype_name
from memcore.registry import backend_of
from pools.block import Block
from pools.lease import Lease
from pools.sizes import size_class

Released = Callable[[Block], None]
"""Told when the last alias of a block has died, anywhere: may only append to a queue."""


class Store(ABC):
    """Allocates, lends and frees the blocks of one memory type on one device; the pool decides when."""

    recycles = True
    """Whether a block that nothing sees any more can be lent again."""

    marks_work = False
    """Whether `returned` is to be told of such a block."""

    works_apart = False
    """Whether a device may still work on what no object sees any more."""

    lease_type = Lease

    def dtype(self, dtype: Any) -> np.dtype[Any]:
        """The dtype asked for, as NumPy spells it; taken from torch and by the name of bfloat16 too."""
        if dtype is None:  # NumPy would take it for float64
            raise TypeError("name the dtype: it can't be None")
        try:
            kind: np.dtype[Any] = np.dtype(dtype)
        except TypeError:
            kind = numpy_dtype(str(dtype).rpartition(".")[2])
        if kind.hasobject:
            raise TypeError(f"a pool holds plain bytes, and dtype {kind} holds Python objects")
        return kind

    def size(self, nbytes: int) -> int:
        """The bytes of the block that is to hold `nbytes`."""
        return size_class(nbytes)

    def least(self, nbytes: int) -> int:
        """The bytes of the smallest block that could, where the limit leaves no more."""
        return nbytes

    @abstractmethod
    def allocate(self, nbytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Block:
        """A new block, to be lent with this shape and dtype first; raises what its framework raises."""

    @abstractmethod
    def owner(self, block: Block, released: Released, *, frozen: bool) -> Any:
        """An object that every alias of what is lent keeps alive; its death calls `released(block)`."""

    @abstractmethod
    def lend(self, owner: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """The owner's block as an array. Only the array, and what is made of it, keeps the owner alive."""

    def free(self, block: Block) -> None:
        """Give the block's memory back; nothing sees it any more."""
        block.memory = None

    def returned(self, block: Block) -> None:  # noqa: B027  host memory has no work under way
        """Note that nothing sees the block any more, though work on the device may still use it."""

    def cached(self) -> bool:
        """Whether freed memory goes to a cache of the framework first, which must be drained for others."""
        return False

    def is_oom(self, error: Exception) -> bool:
        """Whether an allocation failed for want of memory."""
        return isinstance(error, MemoryError)

    def wait(self) -> None:  # noqa: B027  most stores have none
        """Wait for the work that was given to the device, or for asynchronous work on the host."""

    def settle(self, owner: Callable[[], Any], timeout_s: float) -> bool:
        """Wait until the owner (a weak reference) is dead; False if it isn't within `timeout_s` seconds.

        Asynchronous frameworks let go of an array when their work is done, JAX only at its next operation
        or at a garbage collection.
        """
        deadline = monotonic() + timeout_s
        if self.works_apart:
            self.wait()
        if owner() is None:
            return True
        self.wait()
        gc.collect()
        pause = 0.0005
        while owner() is not None:
            left = deadline - monotonic()
            if left <= 0:
                return False
            # polled: no event can tell of a death, since finalizers may not lock
            sleep(min(pause, left))
            pause = min(2 * pause, 0.1)
            if pause == 0.1:
                self.wait()
                gc.collect()
        return True


def check_dtype(backend: Backend, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype, if the framework holds it exactly; else TypeError with the remedy."""
    refusal = backend.dtype_refusal(numpy_dtype_name(dtype))
    if refusal is not None:
        raise TypeError(refusal)
    return dtype


def wait_for_host_work() -> None:
    """Wait for what JAX runs asynchronously on the CPU: it reads host arrays after a call has returned."""
    if sys.modules.get("jax") is not None:
        backend_of("jax").synchronize("cpu")
