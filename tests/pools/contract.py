"""What every pool must do: the cases that CuPy's and RMM's own suites try, and more."""

import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pools import ArrayPool, LeaseEndedError, LiveAliasError, PoolExhaustedError, PoolSet
from pools.block import Block

KIB = 1 << 10
SHAPE = (2, 8, 16)  # 1 KiB of float32


class PoolContract:
    """Subclass it and say how to make a pool set, and how to write and read an array.

    `memory_type` and `gpu_id` name the pool; `recycles` is False where only bytes are counted.
    """

    memory_type: str
    gpu_id: int | str = "cpu"
    recycles = True

    def pools(self, limit: int) -> PoolSet:
        return PoolSet(limit)

    def write(self, array: Any, value: float) -> Any:
        """The array filled with the value; another one where arrays are immutable."""
        array[...] = value
        return array

    def read(self, array: Any) -> np.ndarray:
        return np.asarray(array).copy()

    @pytest.fixture
    def make(self) -> Callable[[int], ArrayPool]:
        made: list[PoolSet] = []

        def pool(limit: int) -> ArrayPool:
            made.append(self.pools(limit))
            return made[-1].pool(self.memory_type, self.gpu_id)

        return pool

    def test_shape_dtype_and_values(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(64 * KIB)
        for dtype in ("uint16", "float32"):
            with pool.acquire((3, 5, 7), dtype) as array:
                assert tuple(array.shape) == (3, 5, 7)
                written = self.read(self.write(array, 9))
                assert (written.dtype, written.shape) == (np.dtype(dtype), (3, 5, 7))
                assert (written == 9).all()
            del array

    def test_a_buffer_comes_back_after_the_with_block(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(64 * KIB)
        for _ in range(5):
            with pool.acquire(SHAPE, "float32") as array:
                assert pool.stats().bytes_in_use == KIB
            del array
        stats = pool.stats()
        assert stats.bytes_in_use == 0
        assert (stats.hits, stats.misses, stats.bytes_idle) == ((4, 1, KIB) if self.recycles else (0, 5, 0))

    def test_whole_buffers_serve_another_shape_and_dtype(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(64 * KIB)
        with pool.acquire(SHAPE, "float32"):
            pass
        with pool.acquire((512,), "uint16") as array:
            assert (self.read(self.write(array, 3)) == 3).all()
        assert pool.stats().hits == (1 if self.recycles else 0)

    def test_a_live_array_keeps_its_values_while_others_come_and_go(
        self, make: Callable[[int], ArrayPool]
    ) -> None:
        pool = make(64 * KIB)
        with pool.acquire(SHAPE, "float32") as array:
            kept = self.write(array, 5)
        del array
        for value in range(20):
            with pool.acquire(SHAPE, "float32") as other:
                self.write(other, value)
            del other
        assert (self.read(kept) == 5).all()

    def test_the_limit_and_one_byte_more(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(1000)
        with pool.acquire((1000,), "uint8"):
            assert pool.stats().bytes_in_use == 1000
        with pytest.raises(PoolExhaustedError, match="1001 bytes"):
            pool.acquire((1001,), "uint8")
        assert (pool.stats().refused, pool.stats().bytes_in_use) == (1, 0)

    def test_two_arrays_that_fit_only_one_at_a_time(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(1000)
        first = pool.lease((600,), "uint8")
        with pytest.raises(PoolExhaustedError):
            pool.lease((600,), "uint8")
        first.release()
        second = pool.lease((700,), "uint8")
        assert pool.stats().bytes_in_use <= 1000
        second.release()

    def test_a_fragmented_limit(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(16 * KIB)
        leases = [pool.lease((KIB,), "uint8") for _ in range(16)]
        for lease in leases[1:]:
            lease.release()
        leases[0].array  # the first stays  # noqa: B018
        with pool.acquire((12 * KIB,), "uint8"):
            assert pool.stats().bytes_held <= 16 * KIB
        with pytest.raises(PoolExhaustedError):
            pool.acquire((15 * KIB + 1,), "uint8")

    def test_freed_on_another_thread(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(64 * KIB)
        arrays = [pool.lease(SHAPE, "float32").array]
        thread = threading.Thread(target=arrays.clear)
        thread.start()
        thread.join()
        assert pool.stats().bytes_in_use == 0

    def test_released_on_another_thread(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(64 * KIB)
        lease = pool.lease(SHAPE, "float32")
        thread = threading.Thread(target=lease.release)
        thread.start()
        thread.join()
        assert (lease.ended, pool.stats().bytes_in_use) == (True, 0)

    def test_arrays_in_reference_cycles_are_collected_before_a_refusal(
        self, make: Callable[[int], ArrayPool]
    ) -> None:
        pool = make(10 * KIB)
        gc.disable()
        try:
            for _ in range(10):
                cycle: list[Any] = [pool.lease(SHAPE, "float32")]
                cycle.append(cycle)
            del cycle
            with pool.acquire((9 * KIB,), "uint8"):
                assert pool.stats().refused == 0
        finally:
            gc.enable()

    def test_a_failing_upstream_leaves_no_trace(
        self, make: Callable[[int], ArrayPool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool = make(64 * KIB)

        def fail(*_: Any) -> Block:
            raise RuntimeError("the driver is gone")

        with monkeypatch.context() as patch:
            patch.setattr(pool._store, "allocate", fail)
            with pytest.raises(RuntimeError, match="the driver is gone"):
                pool.acquire(SHAPE, "float32")
        assert (pool.budget.used, pool.stats().bytes_held) == (0, 0)
        with pool.acquire(SHAPE, "float32") as array:
            assert tuple(array.shape) == SHAPE

    def test_out_of_memory_upstream_is_relieved_and_tried_once_more(
        self, make: Callable[[int], ArrayPool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool = make(64 * KIB)
        with pool.acquire((7 * KIB,), "uint8"):
            pass
        allocate, seen = pool._store.allocate, []

        def fail_once(*arguments: Any) -> Block:
            seen.append(pool.stats().bytes_idle)
            if len(seen) == 1:
                raise MemoryError
            return allocate(*arguments)

        monkeypatch.setattr(pool._store, "allocate", fail_once)
        with pool.acquire((9 * KIB,), "uint8"):
            assert seen == [7 * KIB if self.recycles else 0, 0]

    def test_out_of_memory_for_good_is_raised_with_the_account_whole(
        self, make: Callable[[int], ArrayPool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool = make(64 * KIB)

        def fail(*_: Any) -> Block:
            raise MemoryError("nothing left")

        monkeypatch.setattr(pool._store, "allocate", fail)
        with pytest.raises(MemoryError, match="nothing left"):
            pool.acquire(SHAPE, "float32")
        assert pool.budget.used == 0

    def test_one_pool_does_not_starve_another(self) -> None:
        pools = self.pools(10 * KIB)
        mine = pools.pool(self.memory_type, self.gpu_id)
        other = ArrayPool(mine.budget, memory_type="other")
        with pools._lock:
            pools._pools["other", self.gpu_id] = other
        with other.acquire((8 * KIB,), "uint8"):
            pass
        assert other.stats().bytes_idle == 8 * KIB
        with mine.acquire((9 * KIB,), "uint8"):
            assert other.stats().bytes_idle == 0

    def test_release_raises_while_an_alias_lives(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(64 * KIB)
        lease = pool.lease(SHAPE, "float32")
        alias = lease.array
        with pytest.raises(LiveAliasError):
            lease.release(timeout_s=0)
        assert lease.array is alias
        assert pool.stats().bytes_in_use == KIB
        del alias
        lease.release()
        assert pool.stats().bytes_in_use == 0
        with pytest.raises(LeaseEndedError):
            lease.release()

    def test_arrays_outlive_their_pool(self) -> None:
        pools = self.pools(64 * KIB)
        array = self.write(pools.pool(self.memory_type, self.gpu_id).lease(SHAPE, "float32").array, 6)
        pools.close()
        gone = weakref.ref(pools)
        del pools
        gc.collect()
        assert gone() is None
        assert (self.read(array) == 6).all()

    def test_trim_gives_all_idle_bytes_back(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(64 * KIB)
        held = pool.lease(SHAPE, "float32")
        for size in (1, 2, 3):
            with pool.acquire((size * KIB,), "uint8"):
                pass
        idle = pool.stats().bytes_idle
        assert pool.trim() == idle
        assert pool.budget.used == held.nbytes
        assert pool.stats().bytes_trimmed == idle

    def test_threads_never_share_a_buffer(self, make: Callable[[int], ArrayPool]) -> None:
        pool = make(64 * KIB)
        wrong: list[int] = []

        def churn(value: int) -> None:
            for _ in range(40):
                with pool.acquire(SHAPE, "float32") as array:
                    written = self.write(array, value)
                    if not (self.read(written) == value).all():
                        wrong.append(value)
                del array, written

        threads = [threading.Thread(target=churn, args=(value,)) for value in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert pool.stats().bytes_in_use == 0

    def test_neither_pickled_nor_copied(self, make: Callable[[int], ArrayPool]) -> None:
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(make(64 * KIB))
