"""JAX and TensorFlow: bytes are counted while an array lives, and given back by deletion or donation."""

import gc
import warnings
from typing import Any

import numpy as np
import pytest

from pools import ArrayPool, LiveAliasError, PoolExhaustedError, PoolSet
from pools.account import AccountLease

jax = pytest.importorskip("jax", reason="needs jax")

SHAPE = (4, 8, 32)  # 4 KiB of float32


@pytest.fixture
def pool() -> ArrayPool:
    return PoolSet("10KiB").pool("jax", "cpu")


@pytest.fixture
def lease(pool: ArrayPool) -> AccountLease:
    lease = pool.lease(SHAPE, "float32")
    assert isinstance(lease, AccountLease)
    return lease


def test_bytes_count_until_the_array_dies(pool: ArrayPool, lease: AccountLease) -> None:
    array = lease.array
    lease.end()
    assert pool.stats().bytes_in_use == 4096
    with pytest.raises(PoolExhaustedError):
        pool.lease((2, *SHAPE), "float32")
    del array
    pool.lease((2, *SHAPE), "float32").release()


def test_a_donated_array_is_replaced_by_its_result(pool: ArrayPool, lease: AccountLease) -> None:
    before = lease.array
    pointer = before.unsafe_buffer_pointer()
    lease.replace(jax.jit(lambda x: x + 1, donate_argnums=0)(before))
    assert before.is_deleted()
    assert lease.array.unsafe_buffer_pointer() == pointer
    assert (np.asarray(lease.array) == 1).all()
    assert pool.stats().bytes_in_use == 4096
    lease.release(timeout_s=20)  # the deleted array is still referred to, and holds nothing
    assert pool.stats().bytes_in_use == 0


def test_what_was_not_donated_can_not_be_replaced(lease: AccountLease) -> None:
    """A donation that changes the dtype does nothing, and JAX warns of it at best."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = jax.jit(lambda x: x.astype("int8"), donate_argnums=0)(lease.array)
    with pytest.raises(ValueError, match="not donated"):
        lease.replace(result)
    assert lease.array.dtype == np.float32


def test_a_larger_result_needs_a_lease_of_its_own(lease: AccountLease) -> None:
    lease.array.delete()
    with pytest.raises(ValueError, match="8192 bytes"):
        lease.replace(jax.numpy.zeros((2, *SHAPE), "float32"))


def test_deleting_frees_whoever_refers_to_the_array(pool: ArrayPool, lease: AccountLease) -> None:
    array = lease.array
    lease.delete()
    assert array.is_deleted()
    assert (lease.ended, pool.stats().bytes_in_use) == (True, 0)


def test_release_refuses_while_something_refers_to_the_array(pool: ArrayPool, lease: AccountLease) -> None:
    holder = [lease.array]
    with pytest.raises(LiveAliasError):
        lease.release(timeout_s=0)
    holder.clear()
    lease.release()
    assert pool.stats().bytes_in_use == 0


def test_arrays_are_frozen_already(lease: AccountLease) -> None:
    assert lease.freeze() is lease.array


def test_dtypes_that_jax_would_narrow_are_refused(pool: ArrayPool) -> None:
    if jax.config.jax_enable_x64:
        pytest.skip("64-bit types are enabled")
    with pytest.raises(TypeError, match="jax would narrow float64"):
        pool.lease(SHAPE, "float64")
    assert pool.budget.used == 0


def test_tensorflow_can_not_delete() -> None:
    pytest.importorskip("tensorflow", reason="needs tensorflow")
    pool = PoolSet("10KiB").pool("tensorflow", "cpu")
    lease: Any = pool.lease(SHAPE, "float32")
    with pytest.raises(TypeError, match="drop every reference"):
        lease.delete()
    assert lease.array.shape == SHAPE
    lease.release()
    assert pool.stats().bytes_in_use == 0


def test_a_frozen_host_buffer_is_lent_to_jax_without_a_copy() -> None:
    from memcore import convert_memory

    pool = PoolSet("1MiB").pool("numpy", "cpu")
    lease = pool.lease(SHAPE, "float32")
    lease.array[:] = 5
    array = convert_memory(lease.freeze(), "numpy", "jax", "cpu")
    assert array.unsafe_buffer_pointer() == lease.array.ctypes.data
    with pytest.raises(LiveAliasError):
        lease.release(timeout_s=0)
    lease.end()
    with pool.acquire(SHAPE, "float32") as other:
        other[:] = 6
    assert (np.asarray(array) == 5).all()
    del array
    gc.collect()
    del other
    assert pool.stats().bytes_in_use == 0
