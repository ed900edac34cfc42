"""Virtual device memory: a capacity that the processes of a host share, charged before they allocate."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import time
from types import TracebackType
from typing import Any

from memcore.errors import OutOfDeviceMemoryError
from memcore.info import bytes_text
from pools.charge_table import ChargeTable
from pools.process import ProcessId
from pools.sizes import parse_size


class VirtualDeviceMemory:
    """The memory of a device that isn't there: bytes are counted, and run out.

    Pools and load generators of any process charge what they are about to allocate. A process that dies, by
    `kill -9` at any instruction too, no longer counts: its charges are reaped.

    Parameters
    ----------
    name_or_path
        A plain name, for a file of this user in shared memory, or the path of a file (it has a slash).
        Processes with the same file share the device.
    capacity
        Bytes, an int or "8GiB". None opens a device that is there already.

    Raises
    ------
    FileNotFoundError
        No such device, and no capacity to make it.
    ValueError
        The device is there with another capacity.

    Notes
    -----
    Usable from any thread, after a fork, and pickled: it is only a way to the file.
    """

    def __init__(self, name_or_path: str | os.PathLike[str], capacity: int | str | None = None) -> None:
        text = os.fspath(name_or_path)
        self.path = Path(text) if os.sep in text else _shared_folder() / f"stackyard-{os.getuid()}-{text}"
        self._table = ChargeTable.open(self.path, None if capacity is None else parse_size(capacity))
        self.capacity = self._table.capacity

    def charge(self, nbytes: int, owner: str = "") -> "Charge":
        """Take `nbytes` of the device; `owner` says for whom (of it, 71 bytes are kept).

        Raises
        ------
        OutOfDeviceMemoryError
            They aren't free, even without the charges of the dead.
        """
        if nbytes < 0:
            raise ValueError(f"can't charge {nbytes} bytes")
        with self._table.locked():
            used = self._table.used()
            if used + nbytes > self.capacity:
                used -= self._table.reap()
            if used + nbytes <= self.capacity:
                return Charge(self, nbytes, *self._table.add(nbytes, owner, time()))
        free = self.capacity - used
        raise OutOfDeviceMemoryError(
            f"virtual device {self.path.name}: {nbytes} bytes ({bytes_text(nbytes)}) asked, "
            f"{free} free of {self.capacity} ({bytes_text(self.capacity)})",
            device=self.path.name,
            requested=nbytes,
            free=free,
            capacity=self.capacity,
        )

    def release(self, charge: "Charge") -> None:
        """Give a charge back. Raises ValueError if it was given back already, or isn't this process's."""
        if charge.pid != os.getpid():
            raise ValueError(f"the charge belongs to process {charge.pid}, not to {os.getpid()}")
        with self._table.locked():
            if not self._table.remove(charge.row, charge.serial):
                raise ValueError(f"the charge of {charge.nbytes} bytes was released already")

    def used(self) -> int:
        """Bytes charged by the living."""
        with self._table.locked():
            self._table.reap()
            return self._table.used()

    def free(self) -> int:
        """Bytes that can be charged now."""
        return self.capacity - self.used()

    def charges(self) -> "list[ChargeInfo]":
        """Every charge of the living, the oldest first."""
        with self._table.locked():
            self._table.reap()
            rows = self._table.rows()
        return sorted((ChargeInfo(*row) for row in rows), key=lambda charge: charge.since)

    def used_by(self, pid: int) -> int:
        """Bytes charged by one process."""
        return sum(charge.nbytes for charge in self.charges() if charge.process.pid == pid)

    def unlink(self) -> None:
        """Remove the device. Processes that have it open go on with it; newcomers make a new one."""
        self._table.unlink()

    def __reduce__(self) -> tuple[Any, ...]:
        return VirtualDeviceMemory, (str(self.path), self.capacity)

    def __repr__(self) -> str:
        return f"VirtualDeviceMemory({str(self.path)!r}, {self.capacity})"


@dataclass(frozen=True, slots=True)
class ChargeInfo:
    """One charge: by which process, how many bytes, for whom, and since when (seconds of `time.time`)."""

    process: ProcessId
    nbytes: int
    owner: str
    since: float


class Charge:
    """Bytes taken from a virtual device until `release`, the end of its `with` block, or of the process."""

    __slots__ = ("memory", "nbytes", "pid", "row", "serial")

    def __init__(self, memory: VirtualDeviceMemory, nbytes: int, row: int, serial: int) -> None:
        self.memory = memory
        self.nbytes = nbytes
        self.row = row
        self.serial = serial
        self.pid = os.getpid()

    def release(self) -> None:
        """Give the bytes back. Raises ValueError if they were given back already."""
        self.memory.release(self)

    def __enter__(self) -> "Charge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _shared_folder() -> Path:
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())
