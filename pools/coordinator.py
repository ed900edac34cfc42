"""What all frameworks of a process hold on one device, and how they give it back."""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memcore.backend import Backend
from memcore.info import MemoryHeld
from memcore.memory_type import GpuId
from pools.array_pool import ArrayPool

Frameworks = Sequence[tuple[Backend, GpuId]]
"""The frameworks with memory on a device, each with its own name for the place."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes that this process holds on a device: pooled and in use, pooled and idle, and by framework."""

    in_use: int
    idle: int
    frameworks: Mapping[str, MemoryHeld]

    @property
    def reclaimable(self) -> int:
        """What `reclaim` could give back. Idle buffers count as used with their framework, so add up."""
        return self.idle + sum(held.reclaimable for held in self.frameworks.values())


def memory_on(pools: Iterable[ArrayPool], frameworks: Frameworks) -> DeviceMemory:
    """What the pools and the frameworks hold on one device."""
    stats = [pool.stats() for pool in pools]
    return DeviceMemory(
        sum(each.bytes_in_use for each in stats),
        sum(each.bytes_idle for each in stats),
        {backend.memory_type: backend.memory_held(place) for backend, place in frameworks},
    )


def trim(pools: Sequence[ArrayPool], nbytes: int) -> int:
    """Free idle buffers of all the pools, least recently used first, until `nbytes` are freed."""
    freed = 0
    while freed < nbytes:
        idle = [
            (since, index) for index, pool in enumerate(pools) if (since := pool.idle_since()) is not None
        ]
        if not idle:
            break
        freed += pools[min(idle)[1]].trim(1)
    return freed


def reclaim(pools: Sequence[ArrayPool], frameworks: Frameworks, nbytes: int) -> int:
    """Give back `nbytes` of a device, or what there is; returns the bytes that others can have now.

    In this order: collect garbage, free idle buffers, drain the cache of *every* framework, and wait for the
    device. Draining only the framework that failed lets one starve the other (cupy#7556). The caller has left
    the `except` block of the error, whose traceback pins arrays (torch#18853).
    """
    gc.collect()
    before = [backend.memory_held(place).held for backend, place in frameworks]
    cached = [pool for pool in pools if pool.cached()]
    direct = [pool for pool in pools if pool not in cached]
    freed = trim(direct, nbytes)
    # what is freed into a cache comes back only with the drain, and is counted there
    trim(cached, nbytes - freed)
    for backend, place in frameworks:
        backend.drain(place)
    for backend, place in frameworks:
        backend.synchronize(place)
    after = [backend.memory_held(place).held for backend, place in frameworks]
    # a framework that another thread makes grow meanwhile has given back nothing, not less than that
    return freed + sum(max(0, had - has) for had, has in zip(before, after, strict=True))
