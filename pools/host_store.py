"""Host memory: aligned blocks mapped from the system, lent as NumPy arrays or as tensors over them."""

from typing import Any

import numpy as np

from memcore.backend import Backend
from memcore.host import HostBlock, HostBuffer
from memcore.memory_type import GpuId
from pools.block import Block
from pools.store import Released, Store, check_dtype, wait_for_host_work


class LentBuffer(HostBuffer):
    """The owner behind one lent array; what NumPy reads of it is written down once for each block."""

    __slots__ = ("__array_interface__",)


class HostStore(Store):
    """NumPy arrays in memory from the system, with huge pages unless they are not wanted."""

    def __init__(self, *, huge_pages: bool = True) -> None:
        self.huge_pages = huge_pages

    def allocate(self, nbytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Block:  # noqa: ARG002
        return host_block(HostBlock(nbytes, huge_pages=self.huge_pages))

    def owner(self, block: Block, released: Released, *, frozen: bool) -> HostBuffer:
        owner = LentBuffer(block, frozen=frozen, on_release=released)
        _, interface = block.memory
        if frozen:
            interface = interface | {"data": (block.address, True)}
        owner.__array_interface__ = interface  # type: ignore[misc]  # a slot over the base's property
        return owner

    def lend(self, owner: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        # NumPy keeps the plain bytes, and with them the owner, as the base of every view
        return np.ndarray(shape, dtype, np.asarray(owner))

    def wait(self) -> None:
        wait_for_host_work()


class HostTensorStore(HostStore):
    """The same memory lent through another library that works on host memory in place, such as torch."""

    def __init__(self, backend: Backend, place: GpuId, *, huge_pages: bool = True) -> None:
        super().__init__(huge_pages=huge_pages)
        self._backend = backend
        self._place = place

    def dtype(self, dtype: Any) -> np.dtype[Any]:
        return check_dtype(self._backend, super().dtype(dtype))

    def owner(self, block: Block, released: Released, *, frozen: bool) -> HostBuffer:
        if frozen and not self._backend.keeps_read_only:
            raise TypeError(
                f"{self._backend.memory_type} has no read-only arrays; lease from the numpy pool to freeze"
            )
        return super().owner(block, released, frozen=frozen)

    def lend(self, owner: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return self._backend.lend(super().lend(owner, shape, dtype), self._place)


def host_block(memory: Any) -> Block:
    """A block over a `HostBlock`, or over what keeps one."""
    interface = {"data": (memory.address, False), "shape": (memory.nbytes,), "typestr": "|u1", "version": 3}
    return Block(memory.nbytes, memory.address, (memory, interface))
