"""Device memory lent through DLPack with a deleter of our own, which tells when the last alias has died.

Every alias that a framework makes of an imported array (view, reshape, another DLPack export) keeps the
managed tensor, and its deleter runs once, after the last. Struct layouts:
https://dmlc.github.io/dlpack/latest/c_api.html
"""

import ctypes
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from pools.block import Block


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_FORMS: Final = {b"dltensor": _Managed, b"dltensor_versioned": _ManagedVersioned}
_CODES: Final = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_BFLOAT: Final = 4

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype = ctypes.c_char_p
_capsule_name.argtypes = (ctypes.py_object,)
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)

# What each managed tensor that some framework holds keeps alive, by its address: itself and its owner.
_lent: dict[int, tuple[Any, ...]] = {}


def _forget(pointer: int, forget: Callable[..., Any] = _lent.pop) -> None:
    forget(pointer, None)


_deleter = _Deleter(_forget)
# A framework may call it while the interpreter is taking its modules down: it must outlive this one.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_deleter))


class DeviceOwner:
    """What the last alias of a lent block keeps alive."""

    __slots__ = ("__weakref__", "block", "released")

    def __init__(self, block: Block, released: Callable[[Block], None]) -> None:
        self.block = block
        self.released = released

    def __del__(self) -> None:
        self.released(self.block)


class LentMemory:
    """A producer of DLPack capsules over a block, for one framework to import; C-contiguous.

    Order of work is the lender's business: the memory is ready for the consumer's stream already.
    """

    def __init__(
        self, owner: DeviceOwner, device: tuple[int, int], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._owner = owner
        self._device = device
        self._shape = shape
        self._dtype = dtype
        self._capsules: list[tuple[int, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or dl_device not in (None, self._device):
            raise BufferError("pool memory is lent where it is, not copied")
        dimensions = len(self._shape)
        sides = ctypes.c_int64 * max(dimensions, 1)
        shape, strides = sides(*self._shape), sides()
        step = 1
        for axis in range(dimensions - 1, -1, -1):
            strides[axis] = step
            step *= self._shape[axis]
        name = b"dltensor_versioned" if max_version is not None and max_version[0] >= 1 else b"dltensor"
        managed: Any = _FORMS[name]()
        if name == b"dltensor_versioned":
            managed.major = 1
        managed.deleter = _deleter
        tensor = managed.tensor
        tensor.data = self._owner.block.address
        tensor.device_type, tensor.device_id = self._device
        tensor.ndim = dimensions
        tensor.code = _BFLOAT if self._dtype.name == "bfloat16" else _CODES[self._dtype.kind]
        tensor.bits = 8 * self._dtype.itemsize
        tensor.lanes = 1
        tensor.shape, tensor.strides = shape, strides
        pointer = ctypes.addressof(managed)
        _lent[pointer] = (managed, shape, strides, self._owner)
        capsule = _new_capsule(pointer, name, None)
        self._capsules.append((pointer, capsule))
        return capsule

    def withdraw(self) -> None:
        """Take back capsules that no framework has consumed."""
        for pointer, capsule in self._capsules:
            if not _capsule_name(capsule).startswith(b"used"):
                _lent.pop(pointer, None)
        self._capsules.clear()


def address_and_device(array: Any) -> tuple[int, tuple[int, int]]:
    """The address (or OpenCL handle) of a device array's memory, and its DLPack device."""
    capsule = array.__dlpack__()
    name = _capsule_name(capsule)
    managed = ctypes.cast(_capsule_pointer(capsule, name), ctypes.POINTER(_FORMS[name])).contents
    tensor = managed.tensor
    return int(tensor.data) + int(tensor.byte_offset), (int(tensor.device_type), int(tensor.device_id))
