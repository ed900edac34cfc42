"""The pool of host arrays: what it lends, what it refuses, and what it says about itself."""

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from pools import ArrayPool, ForkedPoolError, LeaseEndedError, LiveAliasError, PoolExhaustedError, held_by
from pools.host_store import HostStore
from pools.sizes import parse_size, size_class

MIB = 1 << 20


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_buffer_is_lent_again_after_the_with_block() -> None:
    pool = ArrayPool(MIB)
    with pool.acquire((3, 5, 7), "uint16") as array:
        assert (array.shape, array.dtype, array.flags.c_contiguous) == ((3, 5, 7), np.uint16, True)
        array[:] = 9
        first = address(array)
    del array
    with pool.acquire((7, 5, 3), np.uint16) as array:
        assert address(array) == first
    assert (pool.stats().hits, pool.stats().misses) == (1, 1)


def test_the_name_bound_by_as_is_an_alias_too() -> None:
    pool = ArrayPool(MIB)
    with pool.acquire(100, "uint8") as array:
        array[:] = 1
    with pool.acquire(100, "uint8") as other:
        other[:] = 2
    assert (array == 1).all()


@pytest.mark.parametrize("dtype", ["bool", ">u2", "float16", "complex128", "M8[ns]", "i4,f8", "S3", "V5"])
def test_any_plain_dtype(dtype: str) -> None:
    pool = ArrayPool(MIB)
    with pool.acquire((2, 3), dtype) as array:
        assert array.dtype == np.dtype(dtype)
        array[:] = np.zeros((), dtype)


def test_extension_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    with ArrayPool(MIB).acquire((2, 3), ml_dtypes.bfloat16) as array:
        array[:] = 1.5
        assert array.dtype == ml_dtypes.bfloat16
        assert float(array.sum()) == 9.0


@pytest.mark.parametrize("dtype", [None, "nonsense", 3])
def test_what_is_no_dtype(dtype: object) -> None:
    with pytest.raises(TypeError):
        ArrayPool(MIB).acquire(3, dtype)


def test_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="Python objects"):
        ArrayPool(MIB).acquire(3, object)


@pytest.mark.parametrize("shape", [(), (0,), (4, 0, 5), 7])
def test_odd_shapes(shape: int | tuple[int, ...]) -> None:
    with ArrayPool(MIB).acquire(shape, "float32") as array:
        assert array.shape == (shape if isinstance(shape, tuple) else (shape,))


def test_negative_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        ArrayPool(MIB).acquire((-2, -3), "uint8")


@pytest.mark.parametrize("nbytes", [1, 64, 513, 5000, 32 << 10, 100_000, 2 * MIB, 5 * MIB + 1])
def test_buffers_are_aligned(nbytes: int) -> None:
    with ArrayPool("64MiB").acquire(nbytes, "uint8") as array:
        assert address(array) % (2 * MIB if nbytes >= 2 * MIB else 64) == 0
        array[:] = 255
        assert array[-1] == 255


def test_size_classes_waste_an_eighth_at_most() -> None:
    sizes = {
        513,
        1024,
        1025,
        *(2**e + d for e in range(9, 40) for d in (-1, 0, 1, 2 ** (e - 3), 2 ** (e - 3) + 1)),
    }
    for nbytes in sizes - {511, 512}:
        assert nbytes <= size_class(nbytes) <= nbytes * 1.125
        assert size_class(size_class(nbytes)) == size_class(nbytes)
    assert [size_class(n) for n in (1, 64, 65, 511, 512)] == [64, 64, 128, 512, 512]


def test_the_limit_holds_to_the_byte() -> None:
    pool = ArrayPool(1000)
    with pool.acquire(1000, "uint8") as array:
        assert array.size == 1000
        assert pool.stats().bytes_in_use == 1000
    del array
    with pytest.raises(PoolExhaustedError, match="1001 bytes"):
        pool.acquire(1001, "uint8")
    assert pool.stats().refused == 1


def test_bytes_given_back_between_two_looks_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread frees after we were refused and before we look how much is missing."""
    pool = ArrayPool(1000)
    take, given = pool.budget.take, iter([lambda: None, lambda: pool.budget.give(1000)])
    pool.budget.take(1000, 1000)

    def refused(nbytes: int, at_least: int) -> int:
        granted = take(nbytes, at_least)
        next(given, lambda: None)()
        return granted

    monkeypatch.setattr(pool.budget, "take", refused)
    with pool.acquire(1000, "uint8") as array:
        assert array.size == 1000


def test_idle_buffers_of_another_size_make_room() -> None:
    pool = ArrayPool(1000)
    with pool.acquire(900, "uint8"):
        pass
    with pool.acquire(600, "uint8"):
        assert pool.stats().bytes_held <= 1000
    assert pool.stats().bytes_trimmed > 0


def test_the_oldest_idle_buffer_goes_first() -> None:
    pool = ArrayPool(MIB)
    for size in (1024, 2048, 4096):
        with pool.acquire(size, "uint8"):
            pass
    assert pool.trim(1) == 1024
    assert pool.trim() == 2048 + 4096
    assert pool.stats().bytes_idle == 0


def test_idle_bytes_are_bounded() -> None:
    pool = ArrayPool(MIB, idle_limit=3000)
    for size in (1024, 2048, 2560):
        with pool.acquire(size, "uint8"):
            pass
        assert pool.stats().bytes_idle <= 3000


def test_release_waits_for_the_last_alias_or_raises_and_stays_valid() -> None:
    pool = ArrayPool(MIB)
    lease = pool.lease((4, 6), "int32", job="A01", step="blur")
    view = lease.array[1:]
    view[:] = 5
    with pytest.raises(LiveAliasError, match="job A01 step blur"):
        lease.release(timeout_s=0.01)
    assert not lease.ended
    assert (lease.array[1:] == 5).all()
    del view
    lease.release()
    assert pool.stats().bytes_in_use == 0
    with pytest.raises(LeaseEndedError):
        _ = lease.array
    with pytest.raises(LeaseEndedError):
        lease.release()


def test_release_waits_for_an_alias_on_another_thread() -> None:
    pool = ArrayPool(MIB)
    lease = pool.lease(100, "uint8")
    let_go = threading.Event()
    views = [lease.array[3:]]

    def hold() -> None:
        let_go.wait(20)
        views.clear()

    thread = threading.Thread(target=hold)
    thread.start()
    with pytest.raises(LiveAliasError):
        lease.release(timeout_s=0)
    let_go.set()
    lease.release(timeout_s=20)
    thread.join()
    assert pool.stats().bytes_in_use == 0


def test_a_frozen_array_can_never_be_written_again() -> None:
    pool = ArrayPool(MIB)
    lease = pool.lease(10, "uint8")
    lease.array[:] = 3
    before = address(lease.array)
    frozen = lease.freeze()
    assert address(frozen) == before
    assert frozen.tolist() == [3] * 10
    for array in (frozen, frozen.view(), frozen[2:]):
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
    with pytest.raises(LiveAliasError):
        lease.release(timeout_s=0)
    assert not lease.array.flags.writeable
    del frozen, array
    lease.release()


def test_a_frozen_buffer_is_writeable_for_the_next_lease() -> None:
    pool = ArrayPool(MIB)
    lease = pool.lease(10, "uint8")
    lease.freeze()
    lease.release()
    with pool.acquire(10, "uint8") as array:
        array[:] = 1
    assert pool.stats().hits == 1


def test_freeze_is_refused_while_a_writeable_alias_lives() -> None:
    lease = ArrayPool(MIB).lease(10, "uint8")
    view = memoryview(lease.array)
    with pytest.raises(LiveAliasError, match="frozen"):
        lease.freeze(timeout_s=0)
    view[0] = 7
    assert lease.array[0] == 7


def test_leases_say_who_holds_what() -> None:
    pool = ArrayPool(MIB)
    with held_by("A01_s1", "gaussian"):
        lease = pool.lease((2, 3), "uint16")
    with pool.acquire(5, "uint8", job="B02") as kept:
        pass
    first, second = pool.leases()
    assert (first.job, first.step, first.shape, first.dtype, first.ended) == (
        "A01_s1", "gaussian", (2, 3), "uint16", False,
    )  # fmt: skip
    assert (second.job, second.ended) == ("B02", True)
    assert "job A01_s1 step gaussian: its lease was never released" in str(first)
    assert "an alias outlives" in str(second)
    del kept
    lease.release()
    assert pool.leases() == []


def test_a_lease_that_nobody_kept_gives_its_buffer_back() -> None:
    pool = ArrayPool(MIB)
    pool.lease(10, "uint8")
    assert pool.stats().bytes_in_use == 0


def test_arrays_outlive_a_closed_pool() -> None:
    pool = ArrayPool(MIB)
    with pool.acquire(10, "uint8") as array:
        array[:] = 4
    pool.close()
    assert array.tolist() == [4] * 10
    with pytest.raises(RuntimeError, match="closed"):
        pool.acquire(10, "uint8")
    del array
    assert pool.stats().bytes_held == 0
    del pool


def test_arrays_outlive_a_forgotten_pool() -> None:
    array = ArrayPool("64MiB").acquire(4 * MIB, "uint8").array
    array[:] = 6
    assert array[-1] == 6


def test_pools_and_leases_are_not_pickled() -> None:
    pool = ArrayPool(MIB)
    for thing in (pool, pool.lease(3, "uint8")):
        with pytest.raises(TypeError, match="this process"):
            pickle.dumps(thing)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_child_is_refused() -> None:
    pool = ArrayPool(MIB)
    lease = pool.lease(3, "uint8")
    child = os.fork()
    if child == 0:
        refused = 0
        for use in (lambda: pool.acquire(3, "uint8"), lambda: lease.release(0), pool.stats, pool.trim):
            try:
                use()
            except ForkedPoolError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4


@pytest.mark.parametrize("error", [PoolExhaustedError, LiveAliasError, LeaseEndedError, ForkedPoolError])
def test_errors_survive_pickling(error: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(error("64 MiB asked")))
    assert (type(again), again.args) == (error, ("64 MiB asked",))


def test_sizes_as_people_write_them() -> None:
    assert [parse_size(size) for size in (5, "4GiB", "512 MiB", "1kB")] == [5, 4 << 30, 512 << 20, 1000]
    for wrong in (-1, "-1GiB", "lots", "4 apples"):
        with pytest.raises(ValueError, match=r"."):
            parse_size(wrong)
    for wrong_type in (True, 1.5, None):
        with pytest.raises(TypeError, match="4GiB"):
            parse_size(wrong_type)  # type: ignore[arg-type]


def mapping_at(where: int) -> dict[str, str] | None:
    """What the kernel says of the mapping that holds this address; None if nothing is mapped there."""
    found: dict[str, str] | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            if found is not None:
                break
            start, _, end = first.partition("-")
            if int(start, 16) <= where < int(end, 16):
                found = {}
        elif found is not None:
            found[first[:-1]] = rest.strip()
    return found


linux_only = pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux")


@linux_only
def test_large_buffers_ask_for_huge_pages_unless_told_not_to() -> None:
    for huge_pages, flag in ((True, "hg"), (False, "nh")):
        pool = ArrayPool("64MiB", store=HostStore(huge_pages=huge_pages))
        with pool.acquire(8 * MIB, "uint8") as array:
            mapping = mapping_at(address(array))
            assert mapping is not None
            assert flag in mapping["VmFlags"].split()


@linux_only
def test_a_buffer_takes_no_memory_beyond_what_is_counted() -> None:
    """Huge pages that reached past the block would be memory that nobody counts."""
    pool = ArrayPool("64MiB")
    with pool.acquire(9 * MIB - 4096, "uint8") as array:
        array[:] = 1
        mapping = mapping_at(address(array))
        assert mapping is not None
        assert int(mapping["Rss"].split()[0]) * 1024 <= pool.stats().bytes_in_use


@linux_only
def test_trimming_unmaps() -> None:
    pool = ArrayPool("64MiB")
    with pool.acquire(32 * MIB, "uint8") as array:
        array[:] = 1
        where = address(array)
    del array
    assert mapping_at(where) is not None
    assert pool.trim() == 32 * MIB
    assert mapping_at(where) is None
