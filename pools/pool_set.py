"""All pools of a process: one for each memory type and device, each device under its limit."""

import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import NoReturn

from pools.array_pool import ArrayPool
from pools.budget import Budget
from pools.stats import LeaseInfo, PoolStats

HOST = "cpu"


class PoolSet:
    """One pool for each (memory type, device), each device under one limit in bytes that its pools share.

    Parameters
    ----------
    host_limit
        Bytes of host memory for all host pools together; an int or "4GiB". By default half of what is
        available now.
    device_limits
        The same for each device, by its `gpu_id`.

    Notes
    -----
    Thread-safe. Belongs to the process that made it: neither pickled nor used after a fork.
    """

    def __init__(
        self,
        host_limit: int | str | None = None,
        device_limits: Mapping[int, int | str] | None = None,
    ) -> None:
        self._budgets: dict[int | str, Budget] = {}
        self._budgets[HOST] = Budget(_host_default() if host_limit is None else host_limit)
        for gpu_id, limit in (device_limits or {}).items():
            self._budgets[gpu_id] = Budget(limit)
        self._pools: dict[tuple[str, int | str], ArrayPool] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def pool(self, memory_type: str, gpu_id: int | str) -> ArrayPool:
        """The pool of this memory type on this device, made at its first use; NumPy ignores the device."""
        device = HOST if memory_type == "numpy" else gpu_id
        with self._lock:
            key = (str(memory_type), device)
            if key not in self._pools:
                self._pools[key] = self._make(*key)
            return self._pools[key]

    def _make(self, memory_type: str, device: int | str) -> ArrayPool:
        if memory_type != "numpy":
            raise NotImplementedError(f"no pool for {memory_type} on {device} yet")
        return ArrayPool(self._budgets[device], relieve=lambda nbytes: self.reclaim(device, nbytes))

    def stats(self) -> PoolStats:
        """The figures of all pools added up."""
        return sum(self.stats_by_pool().values(), PoolStats())

    def stats_by_pool(self) -> dict[tuple[str, int | str], PoolStats]:
        """The figures of each pool, by (memory type, device)."""
        with self._lock:
            pools = dict(self._pools)
        return {key: pool.stats() for key, pool in pools.items()}

    def leases(self) -> list[LeaseInfo]:
        """Every buffer that somebody holds, in every pool, the longest held first."""
        with self._lock:
            pools = list(self._pools.values())
        return sorted((lease for pool in pools for lease in pool.leases()), key=lambda lease: -lease.age_s)

    def reclaim(self, device: int | str, nbytes: int) -> int:
        """Give back idle memory on a device until `nbytes` came back; returns the bytes that did."""
        with self._lock:
            pools = [pool for (_, where), pool in self._pools.items() if where == device]
        freed = 0
        for pool in pools:
            if freed < nbytes:
                freed += pool.trim(nbytes - freed)
        return freed

    def close(self) -> None:
        """Free what is idle and refuse new leases; arrays still seen stay valid until they die."""
        with self._lock:
            pools = list(self._pools.values())
        for pool in pools:
            pool.close()

    def __enter__(self) -> "PoolSet":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PoolSet can't be pickled: its buffers belong to this process; make one in each")


def _host_default() -> int:
    import psutil

    return int(psutil.virtual_memory().available // 2)
