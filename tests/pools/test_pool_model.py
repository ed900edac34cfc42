"""The pool against a model: every figure equal after every step, no buffer lent twice to eight threads."""

import random
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from pools import ArrayPool, Lease, LiveAliasError, PoolExhaustedError, PoolStats
from pools.block import Block
from pools.host_store import HostStore
from pools.sizes import size_class

LIMIT = 20_000
IDLE_LIMIT = 12_000
NBYTES = st.integers(0, 9000) | st.sampled_from([1, 64, 512, 513, 4096, LIMIT - 1, LIMIT, LIMIT + 1])


@dataclass
class Model:
    """What a pool without threads and garbage does, in the plainest way."""

    idle: list[int] = field(default_factory=list)  # sizes, the oldest first
    in_use: int = 0
    hits: int = 0
    misses: int = 0
    peak: int = 0
    trimmed: int = 0
    refused: int = 0

    def acquire(self, nbytes: int) -> int | None:
        """The size of the buffer, or None for a refusal."""
        nbytes = max(nbytes, 1)
        for size in (size_class(nbytes), nbytes):
            if size in self.idle:
                # the newest of its size
                del self.idle[len(self.idle) - 1 - self.idle[::-1].index(size)]
                self.hits += 1
                return self._lent(size)
        self.misses += 1
        while self._left() < nbytes and self.idle:
            self.trim(nbytes - self._left())
        if self._left() < nbytes:
            self.refused += 1
            return None
        return self._lent(min(size_class(nbytes), self._left()))

    def _left(self) -> int:
        return LIMIT - self.in_use - sum(self.idle)

    def _lent(self, size: int) -> int:
        self.in_use += size
        self.peak = max(self.peak, self.in_use)
        return size

    def give_back(self, size: int) -> None:
        self.in_use -= size
        self.idle.append(size)
        self.trim(sum(self.idle) - IDLE_LIMIT)

    def trim(self, nbytes: int) -> int:
        freed = 0
        while freed < nbytes and self.idle:
            freed += self.idle.pop(0)
        self.trimmed += freed
        return freed

    def stats(self) -> PoolStats:
        return PoolStats(
            self.hits, self.misses, self.in_use, sum(self.idle), self.peak, self.trimmed, self.refused
        )


class CountingStore(HostStore):
    """Knows the bytes that really exist, and refuses to exceed the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.exists = 0
        self.most = 0
        self._lock = threading.Lock()

    def allocate(self, nbytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Block:
        with self._lock:
            self.exists += nbytes
            self.most = max(self.most, self.exists)
        return super().allocate(nbytes, shape, dtype)

    def free(self, block: Block) -> None:
        super().free(block)
        with self._lock:
            self.exists -= block.nbytes


class PoolMachine(RuleBasedStateMachine):
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.store = CountingStore(LIMIT)
        self.pool = ArrayPool(LIMIT, idle_limit=IDLE_LIMIT, store=self.store)
        self.model = Model()
        self.aliases: list[tuple[np.ndarray, int, int]] = []  # view, its value, its buffer's size
        self.values = 0

    @rule(target=leases, nbytes=NBYTES)
    def acquire(self, nbytes: int) -> tuple[Lease, int, int] | None:
        size = self.model.acquire(nbytes)
        if size is None:
            with pytest.raises(PoolExhaustedError):
                self.pool.lease(nbytes, "uint8")
            return None
        lease = self.pool.lease(nbytes, "uint8")
        assert lease.nbytes == size
        self.values = self.values % 250 + 1
        lease.array[:] = self.values
        return lease, self.values, size

    @rule(held=consumes(leases))
    def end(self, held: tuple[Lease, int, int] | None) -> None:
        if held is not None:
            lease, value, size = held
            assert (lease.array == value).all()
            lease.end()
            self.model.give_back(size)

    @rule(held=consumes(leases))
    def end_with_an_alias_left(self, held: tuple[Lease, int, int] | None) -> None:
        if held is not None:
            lease, value, size = held
            self.aliases.append((lease.array[1:], value, size))
            lease.end()

    @precondition(lambda self: self.aliases)
    @rule(which=st.randoms(use_true_random=False))
    def drop_an_alias(self, which: random.Random) -> None:
        _, _, size = self.aliases.pop(which.randrange(len(self.aliases)))
        self.model.give_back(size)

    @rule(held=consumes(leases))
    def release(self, held: tuple[Lease, int, int] | None) -> None:
        if held is not None:
            lease, _, size = held
            lease.release()
            self.model.give_back(size)

    @rule(held=leases)
    def refuse_to_release(self, held: tuple[Lease, int, int] | None) -> None:
        if held is not None and not held[0].ended:
            view = memoryview(held[0].array)
            with pytest.raises(LiveAliasError):
                held[0].release(timeout_s=0)
            del view

    @rule(held=leases)
    def freeze(self, held: tuple[Lease, int, int] | None) -> None:
        if held is not None and not held[0].ended:
            frozen = held[0].freeze()
            assert (frozen == held[1]).all()
            assert not frozen.flags.writeable

    @rule(nbytes=st.integers(0, LIMIT))
    def trim(self, nbytes: int) -> None:
        assert self.pool.trim(nbytes) == self.model.trim(nbytes)

    @invariant()
    def figures_are_equal(self) -> None:
        assert self.pool.stats() == self.model.stats()
        assert self.store.exists == self.pool.budget.used == self.model.in_use + sum(self.model.idle)
        assert self.store.most <= LIMIT

    @invariant()
    def aliases_see_what_was_written(self) -> None:
        for view, value, _ in self.aliases:
            assert (view == value).all()


TestPoolAgainstModel = PoolMachine.TestCase
TestPoolAgainstModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

THREADS = 8
OPERATIONS = 100_000
EXAMPLES = 4


@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(seed=st.integers(0, 2**32), limit=st.integers(30_000, 200_000), idle_share=st.floats(0, 1))
def test_eight_threads_never_share_a_buffer_nor_exceed_a_limit(
    seed: int, limit: int, idle_share: float
) -> None:
    """10**5 operations in all: acquire, write, check, release in every way, trim, ask for figures."""
    store = CountingStore(limit)
    pool = ArrayPool(limit, idle_limit=int(limit * idle_share), store=store)
    taken: set[int] = set()
    failures: list[str] = []
    counted = [(0, 0)] * THREADS

    def work(thread: int) -> None:
        chance = random.Random(seed + thread)
        held: list[tuple[Any, np.ndarray, int]] = []
        lent = refused = 0
        for _ in range(OPERATIONS // EXAMPLES // THREADS):
            act = chance.random()
            if act < 0.5:
                try:
                    lease = pool.lease(chance.randrange(2, 12_000), "uint8")
                except PoolExhaustedError:
                    refused += 1
                    continue
                lent += 1
                view = lease.array[1:]
                address = lease.array.ctypes.data
                if address in taken:
                    failures.append("lent twice")
                taken.add(address)
                view[0] = view[-1] = thread
                if chance.random() < 0.5:
                    lease.end()
                held.append((lease, view, address))
            elif act < 0.95 and held:
                lease, view, address = held.pop(chance.randrange(len(held)))
                if view[0] != thread or view[-1] != thread:
                    failures.append("overwritten")
                taken.discard(address)
                del lease, view
            elif act < 0.98:
                pool.trim(chance.randrange(limit))
            elif pool.stats().bytes_held > limit:
                failures.append("figures beyond the limit")
        for _, _, address in held:
            taken.discard(address)
        counted[thread] = lent, refused

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = pool.stats()
    assert failures == []
    assert store.most <= limit
    assert stats.hits + stats.misses - stats.refused == sum(lent for lent, _ in counted)
    assert stats.refused == sum(refused for _, refused in counted)
    assert (stats.bytes_in_use, stats.bytes_idle) == (0, store.exists)
    assert pool.budget.used == store.exists
    pool.trim()
    assert store.exists == 0
