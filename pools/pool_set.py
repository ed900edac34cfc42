"""All pools of a process: one for each memory type and device, each device under its limit."""

import gc
import os
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, NoReturn, TypeVar

from memcore.backend import Backend
from memcore.errors import BackendUnavailableError, DeviceError
from memcore.memory_type import GpuId
from memcore.registry import backend_of
from pools import coordinator
from pools.account import AccountStore
from pools.array_pool import ArrayPool
from pools.budget import Budget
from pools.coordinator import DeviceMemory
from pools.device_store import DeviceStore
from pools.errors import ForkedPoolError
from pools.host_store import HostStore, HostTensorStore
from pools.oom import is_oom, loaded_backends
from pools.pinned import PinnedStore
from pools.stats import LeaseInfo, PoolStats
from pools.store import Store
from pools.virtual import VirtualDeviceMemory

HOST: Final = "cpu"
Result = TypeVar("Result")


class PoolSet:
    """One pool for each (memory type, device), each device under one limit in bytes that its pools share.

    Parameters
    ----------
    host_limit
        Bytes of host memory for all host pools together; an int or "4GiB". By default half of what is
        available now.
    device_limits
        The same for each device, by its `gpu_id`.
    virtual_devices
        Devices that aren't there, by the `gpu_id` that stands for them. Their arrays live in host memory, or
        on the framework's own logical device of that number, and are charged to the virtual device, whose
        capacity is the default for `device_limits`.
    idle_limit
        Bytes that each pool keeps for reuse at most; by default its device's whole limit.
    huge_pages
        Whether large host buffers ask for huge pages.

    Notes
    -----
    Thread-safe. Belongs to the process that made it: neither pickled nor used after a fork. Close it, or use
    it in a `with` block: what is charged to a virtual device comes back then, or with the process.
    """

    def __init__(
        self,
        host_limit: int | str | None = None,
        device_limits: Mapping[int, int | str] | None = None,
        *,
        virtual_devices: Mapping[int, VirtualDeviceMemory] | None = None,
        idle_limit: int | str | None = None,
        huge_pages: bool = True,
    ) -> None:
        self.virtual_devices = dict(virtual_devices or {})
        self._budgets: dict[GpuId, Budget] = {
            HOST: Budget(_half_of_host() if host_limit is None else host_limit),
            **{gpu_id: Budget(memory.capacity) for gpu_id, memory in self.virtual_devices.items()},
            **{gpu_id: Budget(limit) for gpu_id, limit in (device_limits or {}).items()},
        }
        self._idle_limit = idle_limit
        self._huge_pages = huge_pages
        self._pools: dict[tuple[str, GpuId], ArrayPool] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False

    def pool(self, memory_type: str, gpu_id: GpuId) -> ArrayPool:
        """The pool of this memory type on this device, made at its first use; NumPy ignores the device.

        Raises
        ------
        DeviceError
            The memory type has no such device.
        BackendUnavailableError
            The library can't be used here.
        ValueError
            The device has no limit.
        """
        device: GpuId = HOST if memory_type == "numpy" else gpu_id
        if device != HOST and type(device) is not int:  # True would find the pool of device 1
            raise DeviceError(f"gpu_id must be a device index or 'cpu', not {device!r}")
        return self._get(str(memory_type), device, lambda: self._store(str(memory_type), device))

    def pinned(self, memory_type: str, gpu_id: int) -> ArrayPool:
        """The pool of pinned host memory for transfers by CuPy or torch to this device, as NumPy arrays.

        Raises
        ------
        DeviceError
            The memory type has no such device, or no pinned memory.
        """
        name = f"pinned for {memory_type} {gpu_id}"
        return self._get(name, HOST, lambda: PinnedStore(backend_of(memory_type), gpu_id))

    def stats(self) -> PoolStats:
        """The figures of all pools added up."""
        return sum(self.stats_by_pool().values(), PoolStats())

    def stats_by_pool(self) -> dict[tuple[str, GpuId], PoolStats]:
        """The figures of each pool, by (memory type, device)."""
        return {(pool.memory_type, pool.device): pool.stats() for pool in self._made()}

    def leases(self) -> list[LeaseInfo]:
        """Every buffer that somebody holds, in every pool, the longest held first."""
        return sorted(
            (lease for pool in self._made() for lease in pool.leases()), key=lambda lease: -lease.age_s
        )

    def end_job(self, job: str) -> list[LeaseInfo]:
        """What a job that has ended still holds: leases it never released, and arrays still referenced.

        Empty for a job that leaks nothing. Collects garbage first, so that cycles are no leaks.
        """
        if not any(lease.job == job for lease in self.leases()):
            return []
        gc.collect()
        return [lease for lease in self.leases() if lease.job == job]

    def memory(self, device: GpuId) -> DeviceMemory:
        """What this process holds on the device: in its pools, and in each framework that it has loaded."""
        return coordinator.memory_on(self._on(device), self._frameworks(device))

    def idle_bytes(self, device: GpuId) -> int:
        """`memory(device).idle`, without asking the frameworks what they hold."""
        return sum(pool.stats().bytes_idle for pool in self._on(device))

    def effective_free(self, device: GpuId, free: int) -> int:
        """The bytes free on the device, as a probe sees them, and those that `reclaim` could add."""
        return free + self.memory(device).reclaimable

    def trim(self, device: GpuId) -> int:
        """Free every idle buffer of a device, into its framework's cache if it has one; how many bytes."""
        return sum(pool.trim() for pool in self._on(device))

    def reclaim(self, device: GpuId, nbytes: int) -> int:
        """Give back `nbytes` of a device, or what there is, from idle buffers and every framework's cache.

        Returns the bytes that others can have now. Leave the `except` block of an error before calling it.
        """
        return coordinator.reclaim(self._on(device), self._frameworks(device), nbytes)

    def retry(self, device: GpuId, nbytes: int, call: Callable[[], Result]) -> Result:
        """Call; if it runs out of memory, reclaim `nbytes` of the device and call once more."""
        try:
            return call()
        except Exception as error:
            if not is_oom(error):
                raise
        # outside the except block: the error's traceback would pin arrays that are to be given back
        self.reclaim(device, nbytes)
        return call()

    def close(self) -> None:
        """Free what is idle and refuse new leases; arrays still seen stay valid until they die."""
        with self._lock:
            self._closed = True
        for pool in self._made():
            pool.close()

    def _get(self, memory_type: str, device: GpuId, store: Callable[[], Store]) -> ArrayPool:
        with self._lock:
            if os.getpid() != self._pid:
                raise ForkedPoolError(
                    f"these pools belong to process {self._pid}; make new ones in {os.getpid()}"
                )
            if self._closed:
                raise RuntimeError("these pools are closed")
            key = memory_type, device
            if key not in self._pools:
                self._pools[key] = ArrayPool(
                    self._budget(memory_type, device),
                    idle_limit=self._idle_limit,
                    memory_type=memory_type,
                    device=device,
                    store=store(),
                    virtual=self.virtual_devices.get(device) if isinstance(device, int) else None,
                    relieve=lambda nbytes, failed: self._relieve(device, nbytes, failed),
                )
            return self._pools[key]

    def _store(self, memory_type: str, device: GpuId) -> Store:
        if memory_type == "numpy":
            return HostStore(huge_pages=self._huge_pages)
        backend = backend_of(memory_type)
        place = self._place(backend, device)
        if backend.immutable:
            return AccountStore(backend, place)
        if backend.in_host_memory(place):
            return HostTensorStore(backend, place, huge_pages=self._huge_pages)
        return DeviceStore(backend, place)

    def _place(self, backend: Backend, device: GpuId) -> GpuId:
        """The framework's own name for a device; raises DeviceError if it has no such place."""
        if device not in self.virtual_devices:
            return backend.validate_gpu_id(device)
        places = {info.gpu_id: info for info in backend.devices()}
        stand_in = places.get(device)
        if HOST in places and (stand_in is None or stand_in.kind == "gpu"):
            return HOST
        if stand_in is not None and stand_in.physical_id is not None:
            raise DeviceError(f"{backend.memory_type} arrays need a real GPU, and device {device} is virtual")
        return backend.validate_gpu_id(device)

    def _budget(self, memory_type: str, device: GpuId) -> Budget:
        if device in self._budgets:
            return self._budgets[device]
        backend = backend_of(memory_type)
        if backend.in_host_memory(backend.validate_gpu_id(device)):
            return self._budgets[HOST]
        raise ValueError(
            f"device {device} has no limit: give it one in device_limits, such as {{{device}: '8GiB'}}"
        )

    def _made(self) -> list[ArrayPool]:
        with self._lock:
            return list(self._pools.values())

    def _on(self, device: GpuId) -> list[ArrayPool]:
        """The pools that take their bytes from the device."""
        made = self._made()
        budget = self._budgets.get(device)
        if budget is None:  # a logical CPU takes from the host's limit; no other device has pools then
            budget = next((pool.budget for pool in made if pool.device == device), None)
        return [pool for pool in made if pool.budget is budget]

    def _frameworks(self, device: GpuId) -> list[tuple[Backend, GpuId]]:
        found = []
        for backend in loaded_backends():
            try:
                found.append((backend, self._place(backend, device)))
            except (DeviceError, BackendUnavailableError):
                continue  # it has no memory there
        return found

    def _relieve(self, device: GpuId, nbytes: int, failed: bool) -> int:
        """Make room for one pool: under its limit by trimming the others, after a failure by all means."""
        if failed:
            return self.reclaim(device, nbytes)
        return coordinator.trim(self._on(device), nbytes)

    def __enter__(self) -> "PoolSet":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PoolSet can't be pickled: its buffers belong to this process; make one in each")


def _half_of_host() -> int:
    import psutil

    return int(psutil.virtual_memory().available // 2)
