"""Aligned host memory, and the owner behind arrays that are lent.

JAX shares host memory only where it starts at a multiple of 64 bytes, and TensorFlow aborts the process on
less; `numpy.empty` of a mebibyte and more starts at 16 past one. A `HostBlock` is aligned memory. A
`HostBuffer` is one loan of it: the object at the root of every alias, which ends with the last of them.
"""

from __future__ import annotations

import errno
import math
import mmap
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from memcore.errors import DtypeError

ALIGNMENT = 64

# From here on a block is its own mapping, which goes back to the system when the block dies; the C library's
# heap keeps what lies under its (moving) threshold.
MAPPED_FROM = 32 << 10

HUGE_PAGE = 2 << 20


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike, alignment: int = ALIGNMENT) -> NDArray[Any]:
    """A new C-contiguous array whose first byte is at a multiple of `alignment`, values undefined.

    NumPy's own allocator owns the memory, so its reuse of freed memory applies. Raises DtypeError for dtypes
    that hold references: undefined ones crash the process.
    """
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise DtypeError(f"{dtype} holds references, not values; choose a dtype with array.astype first")
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + alignment, np.uint8)
    start = -address_of(raw) % alignment
    return np.ndarray(shape, dtype, raw, start)


class HostBlock:
    """`nbytes` of aligned host memory, given back to the system when the last reference goes.

    Its address is a multiple of 64; from 2 MiB on, of 2 MiB, and whole huge pages are asked for: filling 512
    MiB of fresh small pages takes ten times as long as reused ones.
    """

    __slots__ = ("__weakref__", "_memory", "address", "nbytes")

    def __init__(self, nbytes: int, *, huge_pages: bool = True) -> None:
        self.nbytes = nbytes
        if nbytes < MAPPED_FROM:
            self._memory = aligned_empty((nbytes,), np.uint8)
            self.address = address_of(self._memory)
            return
        spare = HUGE_PAGE if nbytes >= HUGE_PAGE else 0
        # private, since shared anonymous memory (mmap's default) gets no huge pages
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            mapping = mmap.mmap(-1, nbytes + spare, flags=flags)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise MemoryError(f"the system has no {nbytes} bytes of address space or memory left") from error
        self._memory = np.frombuffer(mapping, np.uint8)
        start = address_of(self._memory)
        skip = -start % HUGE_PAGE if spare else 0
        self.address = start + skip
        if spare and hasattr(mmap, "MADV_HUGEPAGE"):
            # Only huge pages that end inside the block: one that reached past it would be memory that
            # nobody counts.
            try:
                mapping.madvise(mmap.MADV_NOHUGEPAGE)
                if huge_pages:
                    mapping.madvise(mmap.MADV_HUGEPAGE, skip, nbytes // HUGE_PAGE * HUGE_PAGE)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a kernel without huge pages, such as a real-time one
                    raise


class Memory(Protocol):
    """Host memory that a `HostBuffer` can lend: a `HostBlock`, or what keeps one."""

    @property
    def address(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


class HostBuffer:
    """One loan of a block: the owner at the root of every array over it.

    NumPy makes it the base of `array()`, and each slice, memoryview, tensor or DLPack import keeps it alive.
    When the last alias dies, `on_release(block)` is called, possibly by the garbage collector inside any
    other call: it must only append to a queue, never take a lock.

    A `frozen` buffer lends only read-only arrays, and says that nobody else writes to the block. That makes
    it safe to share with libraries whose arrays are immutable.
    """

    __slots__ = ("__weakref__", "_on_release", "block", "frozen")

    def __init__(
        self,
        block: Memory,
        *,
        frozen: bool = False,
        on_release: Callable[[Any], None] | None = None,
    ) -> None:
        self.block = block
        self.frozen = frozen
        self._on_release = on_release

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self.block.nbytes,),
            "typestr": "|u1",
            "data": (self.block.address, self.frozen),
            "version": 3,
        }

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """The first bytes of the block as a C-contiguous array; read-only if frozen."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > self.block.nbytes:
            raise ValueError(f"{nbytes} bytes asked of a block of {self.block.nbytes}")
        # NumPy keeps the plain bytes, and with them this owner, as the base of every view
        return np.ndarray(shape, dtype, np.asarray(self))

    def detach(self) -> None:
        """Forget `on_release`: the block then simply dies with the last alias."""
        self._on_release = None

    def __del__(self) -> None:
        if self._on_release is not None:
            self._on_release(self.block)


class _WritableAlias:
    """The array interface of a read-only array without its flag, for libraries that can't import the flag."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, array: NDArray[Any]) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self._owner = array


def writable_alias(array: NDArray[Any]) -> NDArray[Any]:
    """`array` itself, or the same memory without the read-only flag.

    Only for handing memory to a library that won't write to it, or whose caller has accepted that it may.
    """
    return array if array.flags.writeable else np.asarray(_WritableAlias(array))


def root_owner(array: NDArray[Any]) -> object:
    """The object that owns the array's memory: the end of its chain of bases."""
    owner: object = array
    while True:
        if isinstance(owner, np.ndarray):
            base: object = owner.base
        elif isinstance(owner, memoryview):
            base = owner.obj
        elif isinstance(owner, _WritableAlias):
            base = owner._owner
        else:
            return owner
        if base is None:
            return owner
        owner = base


def address_of(array: NDArray[Any]) -> int:
    """Address of the first element."""
    return int(array.__array_interface__["data"][0])
