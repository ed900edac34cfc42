"""Arrays of six libraries, converted strictly: what comes out is exactly what was asked, or an error.

Public names resolve when they are first read, so that `import memcore` loads no array library, NumPy
included.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memcore.backend import Backend as Backend
    from memcore.chain import ChainPlan as ChainPlan
    from memcore.chain import plan_chain as plan_chain
    from memcore.contracts import Contract as Contract
    from memcore.contracts import Implementation as Implementation
    from memcore.contracts import memory_types as memory_types
    from memcore.conversion import ConversionPlan as ConversionPlan
    from memcore.conversion import convert_memory as convert_memory
    from memcore.conversion import plan_conversion as plan_conversion
    from memcore.counters import conversion_counters as conversion_counters
    from memcore.deferred import Deferred as Deferred
    from memcore.devices import device_of as device_of
    from memcore.devices import move_to_device as move_to_device
    from memcore.devices import validate_gpu_id as validate_gpu_id
    from memcore.dtypes import convert_dtype as convert_dtype
    from memcore.errors import BackendUnavailableError as BackendUnavailableError
    from memcore.errors import ContractError as ContractError
    from memcore.errors import ConversionDeviceError as ConversionDeviceError
    from memcore.errors import ConversionDtypeError as ConversionDtypeError
    from memcore.errors import DeviceError as DeviceError
    from memcore.errors import DtypeError as DtypeError
    from memcore.errors import MemcoreError as MemcoreError
    from memcore.errors import MemoryConversionError as MemoryConversionError
    from memcore.errors import OutOfDeviceMemoryError as OutOfDeviceMemoryError
    from memcore.errors import StackError as StackError
    from memcore.errors import UnknownMemoryTypeError as UnknownMemoryTypeError
    from memcore.host import HostBlock as HostBlock
    from memcore.host import HostBuffer as HostBuffer
    from memcore.host import aligned_empty as aligned_empty
    from memcore.info import ArrayInfo as ArrayInfo
    from memcore.info import DeviceInfo as DeviceInfo
    from memcore.info import MemoryHeld as MemoryHeld
    from memcore.memory_type import Array as Array
    from memcore.memory_type import GpuId as GpuId
    from memcore.memory_type import MemoryType as MemoryType
    from memcore.registry import backend_of as backend_of
    from memcore.registry import memory_type_of as memory_type_of
    from memcore.registry import register_backend as register_backend
    from memcore.stacking import stack_slices as stack_slices
    from memcore.stacking import unstack_slices as unstack_slices
    from memcore.status import BackendStatus as BackendStatus
    from memcore.status import backend_status as backend_status
    from memcore.steps import FunctionStep as FunctionStep

_MODULES = {
    "memcore.backend": ("Backend",),
    "memcore.chain": ("ChainPlan", "plan_chain"),
    "memcore.contracts": ("Contract", "Implementation", "memory_types"),
    "memcore.conversion": ("ConversionPlan", "convert_memory", "plan_conversion"),
    "memcore.counters": ("conversion_counters",),
    "memcore.deferred": ("Deferred",),
    "memcore.devices": ("device_of", "move_to_device", "validate_gpu_id"),
    "memcore.dtypes": ("convert_dtype",),
    "memcore.errors": (
        "BackendUnavailableError",
        "ContractError",
        "ConversionDeviceError",
        "ConversionDtypeError",
        "DeviceError",
        "DtypeError",
        "MemcoreError",
        "MemoryConversionError",
        "OutOfDeviceMemoryError",
        "StackError",
        "UnknownMemoryTypeError",
    ),
    "memcore.host": ("HostBlock", "HostBuffer", "aligned_empty"),
    "memcore.info": ("ArrayInfo", "DeviceInfo", "MemoryHeld"),
    "memcore.memory_type": ("Array", "GpuId", "MemoryType"),
    "memcore.registry": ("backend_of", "memory_type_of", "register_backend"),
    "memcore.stacking": ("stack_slices", "unstack_slices"),
    "memcore.status": ("BackendStatus", "backend_status"),
    "memcore.steps": ("FunctionStep",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> object:
    module = _PLACES.get(name)
    if module is None:
        raise AttributeError(f"module 'memcore' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
