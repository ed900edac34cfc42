"""Host memory: what this run may use of it, and how much of that is gone."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from pools.cgroup import CGROUPS, SELF_CGROUP, Cgroup
from scheduler.core.model import Device, DeviceKind
from scheduler.host.reading import Probe, Reading

# Names the part of this host's memory that the process's job on a cluster has to itself; unset, it has none.
SHARE_VARIABLE = "STACKYARD_HOST_SHARE"


class HostProbe(Probe):
    """The host's memory as the one device of its CPU workers.

    The total is the least of the physical memory, the cgroup limit (v1 or v2, the ancestors' too) and
    `limits` (Dask's, the YAML's). Where the total is less than what the machine or the cgroup has, other
    programs' use counts only as far as it exceeds the part that isn't ours to use.

    With STACKYARD_HOST_SHARE it is a device of that name: jobs of one host that were each given memory of
    their own must not be charged what the others hold.
    """

    def __init__(
        self,
        limits: Iterable[int] = (),
        *,
        slots: int = 1,
        cgroups: Path = CGROUPS,
        self_cgroup: Path = SELF_CGROUP,
    ) -> None:
        self._cgroup = Cgroup.of_this_process(cgroups, self_cgroup)
        ceiling = int(psutil.virtual_memory().total)
        if self._cgroup is not None:
            ceiling = min(ceiling, self._cgroup.limit)
        self._ceiling = ceiling
        self._total = min((ceiling, *(limit for limit in limits if limit > 0)))
        share = os.environ.get(SHARE_VARIABLE, "")
        uuid, name = (f"CPU-{share}", f"cpu-{share}") if share else ("CPU-localhost", "cpu")
        self._device = Device(uuid, name, DeviceKind.CPU, self._total, slots=slots, model="cpu")

    def devices(self) -> tuple[Device, ...]:
        return (self._device,)

    def read(self, uuid: str) -> Reading:
        if uuid != self._device.uuid:
            raise KeyError(uuid)
        memory = psutil.virtual_memory()
        free = int(memory.available)
        if self._cgroup is not None:
            try:
                free = min(free, self._cgroup.limit - self._cgroup.used())
            except (OSError, ValueError) as error:
                return Reading(uuid, self._total, None, f"the cgroup's memory can't be read: {error}")
        used = max(0, self._ceiling - free - (self._ceiling - self._total))
        return Reading(uuid, self._total, min(used, self._total))
