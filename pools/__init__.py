"""Pools of reusable arrays: budgets, alias-proof recycling, and memory given back under pressure.

Public names load on first use, so that `import pools` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pools.array_pool import ArrayPool as ArrayPool
    from pools.coordinator import DeviceMemory as DeviceMemory
    from pools.errors import ForkedPoolError as ForkedPoolError
    from pools.errors import LeaseEndedError as LeaseEndedError
    from pools.errors import LiveAliasError as LiveAliasError
    from pools.errors import PoolExhaustedError as PoolExhaustedError
    from pools.holder import held_by as held_by
    from pools.lease import Lease as Lease
    from pools.oom import is_oom as is_oom
    from pools.pool_set import PoolSet as PoolSet
    from pools.pressure import PressureWatcher as PressureWatcher
    from pools.stats import LeaseInfo as LeaseInfo
    from pools.stats import PoolStats as PoolStats
    from pools.virtual import Charge as Charge
    from pools.virtual import ChargeInfo as ChargeInfo
    from pools.virtual import VirtualDeviceMemory as VirtualDeviceMemory

_HOME = {
    "ArrayPool": "pools.array_pool",
    "Charge": "pools.virtual",
    "ChargeInfo": "pools.virtual",
    "DeviceMemory": "pools.coordinator",
    "ForkedPoolError": "pools.errors",
    "Lease": "pools.lease",
    "LeaseEndedError": "pools.errors",
    "LeaseInfo": "pools.stats",
    "LiveAliasError": "pools.errors",
    "PoolExhaustedError": "pools.errors",
    "PoolSet": "pools.pool_set",
    "PressureWatcher": "pools.pressure",
    "PoolStats": "pools.stats",
    "VirtualDeviceMemory": "pools.virtual",
    "held_by": "pools.holder",
    "is_oom": "pools.oom",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pools' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
