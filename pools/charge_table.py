"""A table of charges in one shared file, correct whichever process is killed at whichever instruction."""

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pools.process import ProcessId, this_process

HEADER: Final = np.dtype([("magic", "S8"), ("capacity", "u8"), ("serial", "u8")])
ROW: Final = np.dtype(
    [
        ("valid", "u1"),
        ("owner", "S71"),
        ("pid", "u8"),
        ("started", "u8"),
        ("namespace", "u8"),
        ("serial", "u8"),
        ("nbytes", "u8"),
        ("since", "f8"),
    ]
)
OWNER_BYTES: Final = 71
_MAGIC: Final = b"STACKYD1"
_FIRST_ROW: Final = 128
_ROWS: Final = 512  # to begin with; the file doubles when they are all taken

# One process never waits for one table while it holds another: the kernel sees POSIX locks by process, not
# by thread, and would take two threads on two tables for a deadlock.
_in_process = threading.Lock()
if hasattr(os, "register_at_fork"):  # the child has no other thread that could hold it
    os.register_at_fork(after_in_child=lambda: globals().update(_in_process=threading.Lock()))
# Closing any descriptor of a file drops the process's locks on it, so each file has one, kept open.
_tables: "dict[tuple[int, int], ChargeTable]" = {}


class ChargeTable:
    """Rows of (process, bytes, owner) in a file mapped by every process that charges.

    A row counts from the moment when its `valid` byte is written, last of all, and no longer when it is
    cleared. Nothing else is stored that could disagree with the rows: sums are always taken anew. The lock
    is a POSIX record lock, which the kernel drops when its holder dies.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._map()

    @classmethod
    def open(cls, path: Path, capacity: int | None) -> "ChargeTable":
        """The table at `path`, made with this capacity if it isn't there.

        Raises
        ------
        FileNotFoundError
            It isn't there, and no capacity is given to make it.
        ValueError
            It is there with another capacity, or the file is something else.
        """
        with _in_process:
            while True:
                table = cls._opened(path, create=capacity is not None)
                fcntl.lockf(table._descriptor, fcntl.LOCK_EX)
                try:
                    # somebody may have unlinked the file between our opening and our locking it
                    if not table._is_current():
                        _tables.pop(_identity(os.fstat(table._descriptor)), None)
                        continue
                    table._initialise(capacity)
                finally:
                    fcntl.lockf(table._descriptor, fcntl.LOCK_UN)
                return table

    @classmethod
    def _opened(cls, path: Path, *, create: bool) -> "ChargeTable":
        if path.exists() and (known := _tables.get(_identity(path.stat()))):
            return known
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        return _tables.setdefault(_identity(os.fstat(descriptor)), cls(path, descriptor))

    def _is_current(self) -> bool:
        try:
            return _identity(self.path.stat()) == _identity(os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _initialise(self, capacity: int | None) -> None:
        if os.fstat(self._descriptor).st_size < _FIRST_ROW + ROW.itemsize:
            if capacity is None:
                raise FileNotFoundError(f"{self.path} is empty; give a capacity to make it")
            _extend(self._descriptor, _FIRST_ROW + _ROWS * ROW.itemsize)
        self._map()
        magic = self._header["magic"].item()
        if magic == b"" and capacity is not None:
            self._header["capacity"] = capacity
            self._header["magic"] = _MAGIC  # last: a maker that is killed before this leaves a new file
        elif magic != _MAGIC:
            raise ValueError(f"{self.path} is no table of charges; choose another name")
        elif capacity is not None and int(self._header["capacity"]) != capacity:
            raise ValueError(
                f"{self.path} has a capacity of {int(self._header['capacity'])} bytes, not {capacity}; "
                f"unlink it first, or open it without a capacity"
            )

    def _map(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if size < _FIRST_ROW:
            return
        memory = mmap.mmap(self._descriptor, size)
        self._size = size
        self._header: Any = np.frombuffer(memory, HEADER, 1)[0:1].reshape(())
        self._rows: NDArray[Any] = np.frombuffer(memory, ROW, (size - _FIRST_ROW) // ROW.itemsize, _FIRST_ROW)

    @property
    def capacity(self) -> int:
        """Bytes."""
        return int(self._header["capacity"])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other thread or process reads or changes the table inside this block."""
        with _in_process:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
            try:
                if os.fstat(self._descriptor).st_size != self._size:
                    self._map()
                yield
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    # All below are called inside `locked`.

    def used(self) -> int:
        """Bytes of all charges."""
        return int(self._rows["nbytes"][self._rows["valid"] == 1].sum())

    def add(self, nbytes: int, owner: str, since: float) -> tuple[int, int]:
        """A new charge of this process; returns its row and serial number."""
        free = np.flatnonzero(self._rows["valid"] == 0)
        if not len(free):
            free = np.array([len(self._rows)])
            _extend(self._descriptor, self._size + len(self._rows) * ROW.itemsize)
            self._map()
        index = int(free[0])
        serial = int(self._header["serial"]) + 1
        self._header["serial"] = serial
        me = this_process()
        row = self._rows[index]
        row["owner"] = owner.encode()[:OWNER_BYTES]
        row["pid"], row["started"], row["namespace"] = me.pid, me.started, me.namespace
        row["serial"], row["nbytes"], row["since"] = serial, nbytes, since
        row["valid"] = 1  # last: until here the row is free for the next
        return index, serial

    def remove(self, index: int, serial: int) -> bool:
        """Remove a charge; False if it is gone already."""
        row = self._rows[index]
        if not row["valid"] or int(row["serial"]) != serial:
            return False
        row["valid"] = 0
        return True

    def reap(self) -> int:
        """Remove the charges of dead processes; returns their bytes."""
        reaped = 0
        valid = np.flatnonzero(self._rows["valid"] == 1)
        dead: dict[ProcessId, bool] = {}
        for index in valid:
            process = self._process(self._rows[index])
            if process not in dead:
                dead[process] = process.is_dead()
            if dead[process]:
                reaped += int(self._rows[index]["nbytes"])
                self._rows[index]["valid"] = 0
        return reaped

    def rows(self) -> list[tuple[ProcessId, int, str, float]]:
        """Process, bytes, owner and time of every charge."""
        return [
            (
                self._process(row),
                int(row["nbytes"]),
                bytes(row["owner"]).decode(errors="replace"),
                float(row["since"]),
            )
            for row in self._rows[self._rows["valid"] == 1]
        ]

    @staticmethod
    def _process(row: Any) -> ProcessId:
        return ProcessId(int(row["pid"]), int(row["started"]), int(row["namespace"]))

    def unlink(self) -> None:
        """Remove the file. Whoever has it open goes on with the old one, and newcomers get a new one."""
        self.path.unlink(missing_ok=True)


def _extend(descriptor: int, size: int) -> None:
    """Make the file that long, with room for all of it: a hole in a full file system kills (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
