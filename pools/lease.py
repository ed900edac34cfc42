"""A lease: the right to one array of a pool until it is released."""

import gc
from os import getpid
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import ref

from memcore.info import bytes_text
from pools.errors import LeaseEndedError, LiveAliasError
from pools.stats import holder_text

if TYPE_CHECKING:
    from pools.array_pool import ArrayPool
    from pools.block import Block


class Lease:
    """One array of a pool, ours until the lease ends; afterwards it must not be touched.

    Used as `with pool.acquire(shape, dtype) as array:`, or held as an object and given back by `release`.
    The buffer is reused when the lease has ended *and* nothing sees the array any more: leaving the `with`
    block ends the lease, and views that outlive it stay valid and keep the buffer.

    Attributes
    ----------
    shape, dtype, nbytes
        Of the array; `nbytes` is what the buffer takes from the device, its size class.

    Notes
    -----
    A lease belongs to one thread at a time; it may end in another than it began in.
    """

    __slots__ = ("__weakref__", "_array", "_block", "_owner", "_pool", "dtype", "shape")

    def __init__(self, pool: "ArrayPool", block: "Block", shape: tuple[int, ...], dtype: Any) -> None:
        self.shape = shape
        self.dtype = dtype
        self._pool = pool
        self._block = block
        store = pool._store
        owner = store.owner(block, pool._returned.append, frozen=False)
        # only the array holds the owner: the lease must not keep alive what it waits for
        self._array: Any = store.lend(owner, shape, dtype)
        self._owner = ref(owner)

    @property
    def array(self) -> Any:
        """The array, C-contiguous; its values are whatever the last user left.

        Raises
        ------
        LeaseEndedError
            The lease is over.
        """
        array = self._array
        if array is None:
            raise LeaseEndedError(f"{self} has ended; acquire a new one")
        return array

    @property
    def nbytes(self) -> int:
        """Bytes that the buffer takes from its device."""
        return self._block.nbytes

    @property
    def ended(self) -> bool:
        """Whether the lease is over."""
        return self._array is None

    def __enter__(self) -> Any:
        return self.array if self._array is None else self._array

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._array is not None:
            self._block.ended = True
            self._array = None

    def end(self) -> None:
        """End the lease without insisting: what still sees the array keeps the buffer; again is fine."""
        self.__exit__(None, None, None)

    def release(self, timeout_s: float = 1.0) -> None:
        """Wait for device and asynchronous CPU work, then give the buffer back for certain.

        Raises
        ------
        LiveAliasError
            Something still sees the array after `timeout_s` seconds. The lease is still valid.
        LeaseEndedError
            The lease is over already.
        """
        pool = self._pool
        if getpid() != pool._pid:
            pool.check_process()
        again = ref(self._array if self._array is not None else self.array)
        self._array = None
        # from here on the block may be somebody else's
        store = pool._store
        if (store.works_apart or self._owner() is not None) and not store.settle(self._owner, timeout_s):
            self._refuse(again, timeout_s, "released")

    def freeze(self, timeout_s: float = 1.0) -> Any:
        """The array again, now read-only for good, for frameworks that take arrays to be immutable.

        Only when nothing else sees the array: a writeable alias would change what the framework believes
        constant. Afterwards `lease.array` is the frozen array; the lease goes on as before.

        Raises
        ------
        LiveAliasError
            Something still sees the writeable array after `timeout_s` seconds. The lease is still valid.
        LeaseEndedError
            The lease is over already.
        """
        again = ref(self.array)
        # a further owner keeps the block out of the pool's hands while the old one dies
        owner = self._pool._export(self._block, frozen=True)
        self._array = None
        if not self._pool._store.settle(self._owner, timeout_s):
            self._refuse(again, timeout_s, "frozen")
        self._array = self._pool._store.lend(owner, self.shape, self.dtype)
        self._owner = ref(owner)
        return self._array

    def used_on(self, stream: Any) -> None:
        """Say that work on another stream of the framework uses the array.

        The stream that is current when the lease is made needs no saying. The buffer is lent again only in
        order after the work of all of them.
        """
        self._block.streams.append(stream)

    def _refuse(self, again: "ref[Any]", timeout_s: float, what: str) -> None:
        """Put the array back and raise, unless its last alias has died just now."""
        owner = self._owner()
        if owner is None:
            return
        # the array itself, or another over the same memory if only views or imports of it are left
        self._array = again()
        if self._array is None:
            self._array = self._pool._store.lend(owner, self.shape, self.dtype)
        raise LiveAliasError(
            f"{self} can't be {what}: its array is still seen after {timeout_s:g} s{_holders(self._array)}. "
            f"Drop every view and import of it first; leaving the `with` block doesn't insist"
        )

    def __repr__(self) -> str:
        return (
            f"<lease of {self._pool.memory_type} {self.dtype} {self.shape} on {self._pool.device}, "
            f"{bytes_text(self._block.nbytes)}{holder_text(self._block.holder)}>"
        )

    def __reduce__(self) -> Any:
        raise TypeError("a lease can't be pickled: its buffer belongs to this process; copy the array")


def _holders(array: Any) -> str:
    """What holds the array directly, as far as the garbage collector can tell."""
    kinds = sorted({type(holder).__name__ for holder in gc.get_referrers(array)} - {"Lease", "cell"})
    return f", by a {', a '.join(kinds)}" if kinds else ""
