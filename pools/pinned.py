"""Pinned host memory: pages locked for the device, which copies to and from them on its own."""

from typing import Any, Final

import numpy as np

from memcore.backend import Backend
from memcore.host import MAPPED_FROM, HostBlock, HostBuffer
from pools.block import Block
from pools.host_store import HostStore, host_block
from pools.store import Released

PAGE: Final = 4096


class PinnedStore(HostStore):
    """NumPy arrays in pinned memory, of whole pages and no more.

    CuPy's and torch's own pinned allocators round up to powers of two (cupy#7742, torch#95823); here pages
    are mapped and then locked. Locking is slow, so that pooling matters most.

    A copy to the device goes on after the call that started it, and keeps no reference to its source: a
    buffer is lent again only when the work is done that its streams had when the last alias died.
    """

    marks_work = True
    works_apart = True

    def __init__(self, backend: Backend, gpu_id: int) -> None:
        super().__init__(huge_pages=False)
        self._backend = backend
        self._gpu_id: Any = backend.validate_gpu_id(gpu_id)

    def size(self, nbytes: int) -> int:
        # from this size on a block is a mapping of its own, and shares no page
        return max(-(-nbytes // PAGE) * PAGE, MAPPED_FROM)

    def least(self, nbytes: int) -> int:
        return self.size(nbytes)

    def allocate(self, nbytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Block:  # noqa: ARG002
        return host_block(_Pinned(self._backend, self._gpu_id, HostBlock(nbytes, huge_pages=False)))

    def owner(self, block: Block, released: Released, *, frozen: bool) -> HostBuffer:
        stream = self._backend.current_stream(self._gpu_id)
        if stream is not None and stream not in block.streams:
            block.streams.append(stream)
        return super().owner(block, released, frozen=frozen)

    def returned(self, block: Block) -> None:
        block.pending = self._backend.work_mark(block.streams, self._gpu_id)
        block.streams = []

    def is_oom(self, error: Exception) -> bool:
        return self._backend.is_oom(error) or super().is_oom(error)

    def wait(self) -> None:
        super().wait()
        self._backend.synchronize(self._gpu_id)


class _Pinned:
    """Pages that are unlocked before they are unmapped, when the device has done with them."""

    __slots__ = ("_backend", "_block", "_gpu_id", "address", "nbytes")

    def __init__(self, backend: Backend, gpu_id: Any, block: HostBlock) -> None:
        with backend.entered(gpu_id):  # else a context is made on device 0, for good
            backend.pin(block.address, block.nbytes)
        self.address, self.nbytes = block.address, block.nbytes
        self._block = block
        self._backend = backend
        self._gpu_id = gpu_id

    def __del__(self) -> None:
        if hasattr(self, "_block"):  # else pinning has failed
            self._backend.synchronize(self._gpu_id)
            with self._backend.entered(self._gpu_id):
                self._backend.unpin(self.address)
