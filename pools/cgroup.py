"""The memory limit that a container or batch system has put on this process."""

from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
SELF_CGROUP: Final = Path("/proc/self/cgroup")


class Cgroup:
    """The memory controller that bounds this process most tightly. Bytes."""

    def __init__(self, limit: int, current: Path, stat: Path, inactive: str) -> None:
        self.limit = limit
        self._current = current
        self._stat = stat
        self._inactive = inactive

    def used(self) -> int:
        """Bytes charged, without the page cache that the kernel drops when asked (the working set)."""
        used = int(self._current.read_text())
        for line in self._stat.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == self._inactive:
                return max(0, used - int(value))
        return used

    @classmethod
    def of_this_process(cls, root: Path = CGROUPS, self_cgroup: Path = SELF_CGROUP) -> "Cgroup | None":
        """None where there is no cgroup, or none with a limit."""
        try:
            lines = self_cgroup.read_text().splitlines()
        except OSError:
            return None
        found: list[Cgroup] = []
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                found += cls._along(root, path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                v1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                found += cls._along(root / "memory", path, *v1)
        return min(found, key=lambda cgroup: cgroup.limit, default=None)

    @classmethod
    def _along(cls, root: Path, path: str, limit: str, current: str, inactive: str) -> "list[Cgroup]":
        """The limits of a group and its ancestors; in a container the root itself is the group."""
        folder = root / path.lstrip("/")
        found = []
        for each in (folder, *(parent for parent in folder.parents if parent.is_relative_to(root))):
            try:
                text = (each / limit).read_text().strip()
            except OSError:
                continue
            # v1 says "no limit" with a number that no machine has
            if text.isdigit() and int(text) < 1 << 60:
                found.append(cls(int(text), each / current, each / "memory.stat", inactive))
        return found
