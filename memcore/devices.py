"""Where arrays are, and moving them within one library."""

from __future__ import annotations

from memcore.memory_type import Array, GpuId
from memcore.registry import backend_for, backend_of


def validate_gpu_id(gpu_id: object, memory_type: str) -> GpuId:
    """The place that `gpu_id` names for a memory type: a device index, or "cpu" for host memory.

    NumPy takes anything and answers "cpu".

    Raises
    ------
    DeviceError
        None, a bool, a negative number, an index that isn't there, or "cpu" for a library without host
        memory.
    """
    return backend_of(memory_type).validate_gpu_id(gpu_id)


def device_of(array: Array) -> GpuId:
    """Where an array lives, as `gpu_id` names it. Raises UnknownMemoryTypeError if it is no plain array."""
    return backend_for(array).device_of(array)


def move_to_device(array: Array, gpu_id: GpuId) -> Array:
    """The array on another device of its own library; the array itself if it is there already.

    Device to device where the library can, else through the host. dtype, shape and values are unchanged.

    Raises
    ------
    DeviceError
        The library has no such device.
    """
    from memcore.conversion import convert_memory

    memory_type = backend_for(array).memory_type
    return convert_memory(array, memory_type, memory_type, gpu_id)
