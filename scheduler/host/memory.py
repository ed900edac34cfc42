"""Host memory: what this run may use of it, and how much of that is gone."""

from collections.abc import Iterable
from pathlib import Path

import psutil

from scheduler.core.model import Device, DeviceKind
from scheduler.host.reading import Probe, Reading

CGROUPS = Path("/sys/fs/cgroup")
SELF_CGROUP = Path("/proc/self/cgroup")


class HostProbe(Probe):
    """The host's memory as the one device of its CPU workers.

    The total is the least of the physical memory, the cgroup limit (v1 or v2, the ancestors' too) and
    `limits` (Dask's, the YAML's). Where the total is less than what the machine or the cgroup has, other
    programs' use counts only as far as it exceeds the part that isn't ours to use.
    """

    def __init__(
        self,
        limits: Iterable[int] = (),
        *,
        slots: int = 1,
        cgroups: Path = CGROUPS,
        self_cgroup: Path = SELF_CGROUP,
    ) -> None:
        self._cgroup = _Cgroup.of_this_process(cgroups, self_cgroup)
        ceiling = int(psutil.virtual_memory().total)
        if self._cgroup is not None:
            ceiling = min(ceiling, self._cgroup.limit)
        self._ceiling = ceiling
        self._total = min((ceiling, *(limit for limit in limits if limit > 0)))
        self._device = Device("CPU-localhost", "cpu", DeviceKind.CPU, self._total, slots=slots, model="cpu")

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


class _Cgroup:
    """The memory controller that bounds this process most tightly."""

    def __init__(self, limit: int, current: Path, stat: Path, inactive: str) -> None:
        self.limit = limit
        self._current = current
        self._stat = stat
        self._inactive = inactive

    def used(self) -> int:
        """Bytes charged, without page cache that the kernel drops when asked (the "working set" of
        Kubernetes).
        """
        used = int(self._current.read_text())
        for line in self._stat.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == self._inactive:
                return max(0, used - int(value))
        return used

    @classmethod
    def of_this_process(cls, root: Path, self_cgroup: Path) -> "_Cgroup | None":
        """None where there is no cgroup, or none with a limit."""
        try:
            lines = self_cgroup.read_text().splitlines()
        except OSError:
            return None
        found: list[_Cgroup] = []
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                found += cls._along(root, path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                v1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                found += cls._along(root / "memory", path, *v1)
        return min(found, key=lambda cgroup: cgroup.limit, default=None)

    @classmethod
    def _along(cls, root: Path, path: str, limit: str, current: str, inactive: str) -> "list[_Cgroup]":
        """The limits of a group and its ancestors; in a container the root itself is the group."""
        folder = root / path.lstrip("/")
        folders = [folder, *folder.parents[: len(folder.parts) - len(root.parts)]] if path != "/" else [root]
        found = []
        for each in folders:
            try:
                text = (each / limit).read_text().strip()
            except OSError:
                continue
            # v1 says "no limit" with a number that no machine has
            if text.isdigit() and int(text) < 1 << 60:
                found.append(cls(int(text), each / current, each / "memory.stat", inactive))
        return found
