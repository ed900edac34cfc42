"""Device memory of CuPy, torch and pyclesperanto: raw buffers of the framework, lent through DLPack."""

from typing import Any

import numpy as np

from memcore.backend import Backend
from pools.block import Block
from pools.dlpack import DeviceOwner, LentMemory, address_and_device
from pools.store import Released, Store, check_dtype


class DeviceStore(Store):
    """Arrays of one framework on one device; whole buffers are recycled, whatever the shape and dtype.

    A buffer that was used on one stream and is lent on another is first ordered after the work of the first,
    on the device and without waiting. What a user submits to further streams must be told with
    `lease.used_on(stream)`.
    """

    works_apart = True

    def __init__(self, backend: Backend, gpu_id: int | str) -> None:
        self._backend = backend
        self._gpu_id: Any = backend.validate_gpu_id(gpu_id)
        # one address space for each framework and device: the DLPack device is known from the first block
        self._device: tuple[int, int] | None = None

    def dtype(self, dtype: Any) -> np.dtype[Any]:
        return check_dtype(self._backend, super().dtype(dtype))

    def allocate(self, nbytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Block:  # noqa: ARG002
        memory = self._backend.empty((nbytes,), "uint8", self._gpu_id)
        with self._backend.entered(self._gpu_id):  # torch exports only what is on the current device
            address, self._device = address_and_device(memory)
        # the framework's own allocator takes memory back in the order of the stream that it gave it on
        return Block(nbytes, address, (memory, self._backend.current_stream(self._gpu_id)))

    def free(self, block: Block) -> None:
        if any(stream != block.memory[1] for stream in block.streams):
            self._backend.synchronize(self._gpu_id)
        super().free(block)

    def owner(self, block: Block, released: Released, *, frozen: bool) -> DeviceOwner:
        if frozen:
            raise TypeError(
                f"{self._backend.memory_type} has no read-only arrays; lease from the numpy pool to freeze"
            )
        return DeviceOwner(block, released)

    def lend(self, owner: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        refusal = self._backend.shape_refusal(shape)
        if refusal is not None:
            raise ValueError(refusal)
        assert self._device is not None
        self._order(owner.block)
        memory = LentMemory(owner, self._device, shape, dtype)
        try:
            return self._backend.import_device_array(memory, self._gpu_id)
        finally:
            memory.withdraw()

    def _order(self, block: Block) -> None:
        current = self._backend.current_stream(self._gpu_id)
        for stream in block.streams:
            if stream != current:
                self._backend.wait_for_stream(stream, self._gpu_id)
        block.streams = [] if current is None else [current]

    def cached(self) -> bool:
        return self._backend.memory_held(self._gpu_id).held > 0

    def is_oom(self, error: Exception) -> bool:
        return self._backend.is_oom(error) or super().is_oom(error)

    def wait(self) -> None:
        self._backend.synchronize(self._gpu_id)
