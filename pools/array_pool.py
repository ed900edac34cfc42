"""The pool: arrays lent, taken back when nothing sees them any more, and lent again."""

import gc
import threading
from collections import deque
from collections.abc import Callable, Sequence
from math import prod
from operator import index
from os import getpid
from time import monotonic
from typing import Any, NoReturn

from memcore.errors import OutOfDeviceMemoryError
from memcore.info import bytes_text
from memcore.memory_type import GpuId
from pools.block import Block
from pools.budget import Budget
from pools.errors import DevicePoolExhaustedError, ForkedPoolError, PoolExhaustedError
from pools.holder import Holder, current_holder
from pools.host_store import HostStore
from pools.idle import IdleBlocks
from pools.lease import Lease
from pools.sizes import parse_size
from pools.stats import LeaseInfo, PoolStats, holder_text
from pools.store import Store
from pools.virtual import VirtualDeviceMemory


class ArrayPool:
    """Reusable arrays of one memory type on one device, under a limit in bytes.

    A buffer is lent again only when nothing can see it any more: no view, slice, memoryview or import into
    another framework. It is the owner behind every array that says so, which dies with the last alias; not a
    count of references to the array that was lent.

    Parameters
    ----------
    limit
        Bytes in use and idle, at most; an int, a text like "4GiB", or a `Budget` shared with other pools.
    idle_limit
        Bytes kept for reuse, at most; by default the whole limit.
    store
        Where buffers come from; by default host memory as NumPy arrays.
    virtual
        A virtual device that is charged for every buffer, before it is allocated.
    relieve
        Called outside every lock with a number of bytes when the limit is reached, or (then with True) when
        an allocation failed: makes others give back idle memory and returns how much they did.

    Notes
    -----
    Thread-safe: any thread may acquire, and an array may die on any thread; but don't acquire or release in
    a `__del__`, which may run in the middle of either. A pool can be neither pickled nor used after a fork.
    """

    def __init__(
        self,
        limit: "int | str | Budget",
        *,
        idle_limit: int | str | None = None,
        memory_type: str = "numpy",
        device: GpuId = "cpu",
        store: Store | None = None,
        virtual: VirtualDeviceMemory | None = None,
        relieve: Callable[[int, bool], int] | None = None,
    ) -> None:
        self.memory_type = memory_type
        self.device = device
        self.budget = limit if isinstance(limit, Budget) else Budget(limit)
        self.idle_limit = self.budget.limit if idle_limit is None else parse_size(idle_limit)
        self._store = store if store is not None else HostStore()
        self._virtual = virtual
        self._relieve = relieve
        self._lock = threading.Lock()
        self._pid = getpid()
        self._closed = False
        # Invariant, under the lock: a block is in exactly one of _lent and _idle, or its last owner waits
        # in _returned (then it still counts as lent).
        self._lent: set[Block] = set()
        self._idle = IdleBlocks()
        self._returned: deque[Block] = deque()
        self._hits = self._misses = self._refused = 0
        self._bytes_lent = self._bytes_peak = self._bytes_trimmed = 0

    def acquire(
        self, shape: int | Sequence[int], dtype: Any, *, job: str | None = None, step: str | None = None
    ) -> Lease:
        """An array of this shape and dtype for a `with` block: `with pool.acquire(shape, dtype) as array:`.

        Its values are whatever the last user left; fill it. `job` and `step` name who holds it, by default
        the surrounding `held_by`.

        Raises
        ------
        PoolExhaustedError
            The bytes don't fit under the limit.
        """
        kind = self._store.dtype(dtype)
        sides = (shape,) if isinstance(shape, int) else tuple(map(index, shape))
        if sides and min(sides) < 0:
            raise ValueError(f"negative dimensions in shape {sides}")
        holder = (job, step) if job is not None or step is not None else current_holder()
        block = self._block(prod(sides) * kind.itemsize or 1, sides, kind, holder)
        return self._store.lease_type(self, block, sides, kind)

    lease = acquire

    def stats(self) -> PoolStats:
        """What the pool did and holds now."""
        self.check_process()
        with self._lock:
            self._drain()
            return PoolStats(
                self._hits,
                self._misses,
                self._bytes_lent,
                self._idle.nbytes,
                self._bytes_peak,
                self._bytes_trimmed,
                self._refused,
            )

    def leases(self) -> list[LeaseInfo]:
        """Every buffer that somebody holds, the longest held first."""
        self.check_process()
        now = monotonic()
        with self._lock:
            self._drain()
            lent = [
                LeaseInfo(
                    self.memory_type, self.device, block.shape, str(block.dtype), block.nbytes,
                    now - block.since, *block.holder, block.ended,
                )
                for block in self._lent
            ]  # fmt: skip
        return sorted(lent, key=lambda lease: -lease.age_s)

    def trim(self, nbytes: int | None = None) -> int:
        """Free idle buffers, least recently used first, until `nbytes` are freed (all by default).

        Returns the bytes freed. Buffers in use are never touched.
        """
        self.check_process()
        with self._lock:
            self._drain()
            return self._free_oldest(self._idle.nbytes if nbytes is None else nbytes)

    def idle_since(self) -> float | None:
        """When the oldest idle buffer was given back, in seconds of `time.monotonic`; None without any."""
        self.check_process()
        with self._lock:
            self._drain()
            oldest = self._idle.oldest()
            return None if oldest is None else oldest.since

    def cached(self) -> bool:
        """Whether what the pool frees goes to a cache of its framework first."""
        return self._store.cached()

    def check_process(self) -> None:
        """Raise ForkedPoolError in a forked child: another thread of the parent may have held the lock."""
        if getpid() != self._pid:
            raise ForkedPoolError(
                f"the {self.memory_type} pool on {self.device} belongs to process {self._pid}; "
                f"make a new one in process {getpid()}, or spawn processes instead of forking them"
            )

    def close(self) -> None:
        """Free what is idle and refuse new leases. Arrays still seen stay valid until they die."""
        self.check_process()
        with self._lock:
            self._closed = True
            self._drain()
            self._free_oldest(self._idle.nbytes)

    def _block(self, nbytes: int, shape: tuple[int, ...], dtype: Any, holder: Holder) -> Block:
        size = self._store.size(nbytes)
        if getpid() != self._pid:
            self.check_process()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the {self.memory_type} pool on {self.device} is closed")
            if self._returned:
                self._drain()
            block = self._idle.take(size)
            if block is None and nbytes != size:
                block = self._idle.take(nbytes)
            if block is not None:
                self._hits += 1
                return self._lend(block, shape, dtype, holder)
            self._misses += 1
        granted = self._room(size, nbytes)
        if not granted:
            self._refuse(nbytes, holder)
        try:
            block = self._allocate(granted, shape, dtype, holder)
        except BaseException:
            self.budget.give(granted)
            raise
        with self._lock:
            return self._lend(block, shape, dtype, holder)

    def _room(self, size: int, nbytes: int) -> int:
        """Take `size` bytes of the budget, or as few as will do; 0 if no idle memory is left to give."""
        least = self._store.least(nbytes)
        collected = False
        while True:
            with self._lock:
                self._drain()
            if granted := self.budget.take(size, least):
                return granted
            short = least - self.budget.free
            if short <= 0:
                continue  # somebody has given bytes back since
            if self.trim(short) or (self._relieve is not None and self._relieve(short, False)):
                continue
            if collected:
                return 0
            gc.collect()  # arrays in reference cycles are nobody's any more
            collected = True

    def _allocate(self, nbytes: int, shape: tuple[int, ...], dtype: Any, holder: Holder) -> Block:
        """A new block. If there is no memory, others give back what is idle, and it is tried once more."""
        try:
            return self._allocate_once(nbytes, shape, dtype, holder)
        except Exception as error:
            if self._relieve is None or not self._store.is_oom(error):
                raise
        # outside the except block: the error's traceback would pin arrays that are to be given back
        self._relieve(nbytes, True)
        try:
            return self._allocate_once(nbytes, shape, dtype, holder)
        except Exception as error:
            if isinstance(error, MemoryError) or not self._store.is_oom(error):
                raise
            raise OutOfDeviceMemoryError(
                f"{self.memory_type} has no {nbytes} bytes ({bytes_text(nbytes)}) on {self.device}, "
                f"after all idle memory was given back: {error}",
                device=str(self.device),
                requested=nbytes,
            ) from error

    def _allocate_once(self, nbytes: int, shape: tuple[int, ...], dtype: Any, holder: Holder) -> Block:
        if self._virtual is None:
            return self._store.allocate(nbytes, shape, dtype)
        owner = f"{self.memory_type} pool{holder_text(holder)}"
        charge = self._virtual.charge(nbytes, owner=owner)
        try:
            block = self._store.allocate(nbytes, shape, dtype)
        except BaseException:
            charge.release()
            raise
        block.charge = charge
        return block

    def _refuse(self, nbytes: int, holder: Holder) -> NoReturn:
        with self._lock:
            self._refused += 1
            in_use, idle = self._bytes_lent, self._idle.nbytes
        kind = PoolExhaustedError if self.device == "cpu" else DevicePoolExhaustedError
        raise kind(
            f"{self.memory_type} pool on {self.device}: {nbytes} bytes ({bytes_text(nbytes)}) asked"
            f"{holder_text(holder)}, but {self.budget} are taken ({bytes_text(in_use)} in use and "
            f"{bytes_text(idle)} idle in this pool). Release arrays, or raise the limit"
        )

    def _export(self, block: Block, *, frozen: bool) -> Any:
        """A further owner for a block whose lease is alive."""
        self.check_process()
        owner = self._store.owner(block, self._returned.append, frozen=frozen)
        with self._lock:
            block.exports += 1
        return owner

    def _drain(self) -> None:
        """Take back the blocks whose last owner has died. Called under the lock."""
        while self._returned:
            block = self._returned.popleft()
            block.exports -= 1
            if block.exports:
                continue
            self._lent.remove(block)
            self._bytes_lent -= block.nbytes
            if self._closed or not self._store.recycles:
                self._free(block)
                continue
            if self._store.marks_work:
                self._store.returned(block)
            self._idle.add(block)
            if self._idle.nbytes > self.idle_limit:
                self._free_oldest(self._idle.nbytes - self.idle_limit)

    def _lend(self, block: Block, shape: tuple[int, ...], dtype: Any, holder: Holder) -> Block:
        """Note a new lease. Called under the lock."""
        block.exports = 1
        block.shape = shape
        block.dtype = dtype
        block.holder = holder
        block.since = monotonic()
        block.ended = False
        self._lent.add(block)
        self._bytes_lent += block.nbytes
        if self._bytes_lent > self._bytes_peak:
            self._bytes_peak = self._bytes_lent
        return block

    def _free_oldest(self, nbytes: int) -> int:
        """Free idle blocks until `nbytes` are freed. Called under the lock: none is lent meanwhile."""
        freed = 0
        while freed < nbytes and (block := self._idle.oldest()) is not None:
            self._idle.remove(block)
            self._free(block)
            freed += block.nbytes
        self._bytes_trimmed += freed
        return freed

    def _free(self, block: Block) -> None:
        self._store.free(block)
        if block.charge is not None:
            block.charge.release()
        self.budget.give(block.nbytes)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pool can't be pickled: its buffers belong to this process; make one in each")
