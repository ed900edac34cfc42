"""JAX and TensorFlow: their arrays are immutable, so what is pooled is a budget in bytes, not memory."""

from typing import Any
from weakref import finalize, ref

import numpy as np

from memcore.backend import Backend, numpy_dtype_name
from pools.block import Block
from pools.dlpack import DeviceOwner
from pools.lease import Lease
from pools.store import Released, Store, check_dtype, wait_for_host_work


class AccountLease(Lease):
    """A lease of an immutable array: zeros to begin with, and replaced by what is computed from them."""

    __slots__ = ()

    def replace(self, array: Any) -> None:
        """Count `array` instead, to which the memory of the present one was donated.

        Raises
        ------
        ValueError
            The present array still has its memory (a donation that changes dtype or shape does nothing), or
            the new one is larger: lease its bytes as well.
        """
        store = self._store()
        if not store.backend.is_deleted(self.array):
            raise ValueError(
                f"{self} was not donated: its array still has its memory; donation needs equal dtype "
                f"and shape"
            )
        nbytes = store.backend.describe(array).nbytes
        if nbytes > self.nbytes:
            raise ValueError(f"{self} can't count {nbytes} bytes: lease them instead")
        donor, owner = self._block.memory, self._pool._export(self._block, frozen=False)
        store.count(owner, array)
        self._array, self._owner = array, ref(owner)
        donor()  # whoever still refers to the deleted array holds no memory

    def delete(self) -> None:
        """End the lease and free the memory now, whoever refers to the array: using it raises afterwards.

        Raises
        ------
        TypeError
            The library can't delete (TensorFlow): drop every reference instead.
        """
        store, array = self._store(), self.array
        store.wait()
        if not store.backend.delete(array):
            raise TypeError(
                f"{store.backend.memory_type} can't delete an array: drop every reference, then release()"
            )
        self.end()
        self._block.memory()  # the object may live on, but it holds no memory

    def freeze(self, timeout_s: float = 1.0) -> Any:  # noqa: ARG002
        """The array itself: it is immutable already."""
        return self.array

    def _store(self) -> "AccountStore":
        store = self._pool._store
        assert isinstance(store, AccountStore)
        return store


class AccountStore(Store):
    """Counts arrays that the framework allocates; nothing is recycled, so there are no hits.

    Promised: the bytes of arrays leased here stay under the limit, and count until the array object dies, or
    is deleted or donated. Not promised: that the framework gives the bytes to others then. Both keep what
    they freed in an arena of their own for good, which is to be bounded when the process starts.
    """

    recycles = False
    lease_type = AccountLease

    def __init__(self, backend: Backend, gpu_id: int | str) -> None:
        self.backend = backend
        self._gpu_id: Any = backend.validate_gpu_id(gpu_id)

    def dtype(self, dtype: Any) -> np.dtype[Any]:
        return check_dtype(self.backend, super().dtype(dtype))

    def size(self, nbytes: int) -> int:
        return nbytes  # nothing is rounded that nobody shares

    def allocate(self, nbytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Block:
        return Block(nbytes, 0, self.backend.empty(shape, numpy_dtype_name(dtype), self._gpu_id))

    def owner(self, block: Block, released: Released, *, frozen: bool) -> DeviceOwner:  # noqa: ARG002
        return DeviceOwner(block, released)

    def lend(self, owner: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:  # noqa: ARG002
        array = owner.block.memory
        self.count(owner, array)
        return array

    def count(self, owner: Any, array: Any) -> None:
        """Keep the owner alive as long as the array object: immutable arrays have no views."""
        finalizer = finalize(array, id, owner)
        finalizer.atexit = False
        owner.block.memory = finalizer

    def is_oom(self, error: Exception) -> bool:
        return self.backend.is_oom(error) or super().is_oom(error)

    def wait(self) -> None:
        self.backend.synchronize(self._gpu_id)
        wait_for_host_work()
