"""The reservation table: who has promised which bytes of which device, for every run on this host.

One SQLite file in shared memory for each host and user, or in a folder that a group of users shares. A
device's row of promises and the probe's reading are judged in one transaction, so that two runs can't both
take the same bytes.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pools.process import ProcessId, this_process
from pools.stats import LeaseInfo
from scheduler.core.model import DeviceSnapshot, ProcessMemory, gib
from scheduler.host.reading import Reading
from scheduler.host.rows import LeaseRow, ReservationRow
from scheduler.host.table_file import TableFile, default_path, group_path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS reservation (
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, pid INTEGER NOT NULL,
    started INTEGER NOT NULL, namespace INTEGER NOT NULL, nbytes INTEGER NOT NULL,
    job TEXT NOT NULL, run TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS reservation_device ON reservation (device);
CREATE TABLE IF NOT EXISTS held (
    device TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL, namespace INTEGER NOT NULL,
    nbytes INTEGER NOT NULL, reclaimable INTEGER NOT NULL, run TEXT NOT NULL,
    PRIMARY KEY (device, pid, started, namespace)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lease (
    pid INTEGER NOT NULL, started INTEGER NOT NULL, namespace INTEGER NOT NULL, what TEXT NOT NULL,
    device TEXT NOT NULL, nbytes INTEGER NOT NULL, job TEXT NOT NULL, step TEXT NOT NULL, since REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS unused_state (
    device TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL, namespace INTEGER NOT NULL,
    nbytes INTEGER NOT NULL, run TEXT NOT NULL, going INTEGER NOT NULL,
    PRIMARY KEY (device, pid, started, namespace, run)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS request (
    device TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL, namespace INTEGER NOT NULL,
    nbytes INTEGER NOT NULL, run TEXT NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (device, pid, started, namespace, run)
) WITHOUT ROWID;
"""

_Row = tuple[int, int, int]
"""A process as its rows name it: pid, started, namespace."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Bytes reserved until `release`, or until the process ends. `trim` says how many idle bytes must go
    first, by device: they are promised, but still held by pools and allocators of ours.
    """

    ids: tuple[int, ...]
    trim: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Denial:
    """Why not, with the figures, and the snapshot that they came from."""

    reason: str
    snapshot: DeviceSnapshot


class Reservations:
    """The table of one host.

    Parameters
    ----------
    path
        The file; by default one of this user in shared memory. `Reservations.shared(folder)` is for a group.
    run
        Names this run: the processes of a run count as its own in snapshots, all others as other runs'.

    Notes
    -----
    Usable from any thread. Open it anew in a child process. Rows of dead processes are reaped by every
    `reserve` and `processes`, so they are back as soon as anybody asks.
    """

    def __init__(self, path: Path | None = None, *, run: str = "") -> None:
        self.run = run
        self._file = TableFile(path if path is not None else default_path())
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            self._file.path, timeout=30, isolation_level=None, check_same_thread=False
        )
        # the file lives in memory: there is no disk to wait for, and the journal that undoes a killed process
        # stays
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("PRAGMA journal_mode = PERSIST")
        with self._lock, self._file.locked():
            self._connection.executescript(_SCHEMA)

    @classmethod
    def shared(cls, folder: Path, *, run: str = "") -> "Reservations":
        """The table of a group of users, in a folder that they share.

        Raises
        ------
        PermissionError
            The folder isn't fit for it; the message says how to make it so.
        """
        return cls(group_path(folder), run=run)

    def reserve(
        self,
        job: str,
        needs: Mapping[str, int],
        *,
        read: Callable[[str], Reading],
        headroom: Mapping[str, int] | None = None,
        held: Mapping[str, tuple[int, int]] | None = None,
    ) -> Grant | Denial:
        """Promise `needs[device]` bytes on every device named, or on none.

        Parameters
        ----------
        read
            Reads a device's memory; it is called within the transaction.
        headroom
            Bytes by device that stay free.
        held
            (held, reclaimable) bytes by device that this process has now, noted as by `measure`.
        """
        process = this_process()
        with self.transaction() as connection:
            for device, (nbytes, reclaimable) in (held or {}).items():
                self._measure(connection, process, device, nbytes, reclaimable)
            trim: dict[str, int] = {}
            for device, need in needs.items():
                snapshot = read(device).with_processes(self.processes_in(connection, device))
                room = (headroom or {}).get(device, 0)
                if not snapshot.admits(need, room):
                    return Denial(_why_not(snapshot, need, room), snapshot)
                lacking = need - (snapshot.total_bytes - (snapshot.used_bytes or 0))
                if lacking > 0:
                    trim[device] = lacking
            ids = [
                connection.execute(
                    "INSERT INTO reservation (device, pid, started, namespace, nbytes, job, run)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (device, process.pid, process.started, process.namespace, need, job, self.run),
                ).lastrowid
                for device, need in needs.items()
            ]
            connection.executemany(
                "DELETE FROM request WHERE device = ? AND run = ?", [(device, self.run) for device in needs]
            )
        return Grant(tuple(row for row in ids if row is not None), trim)

    def release(self, grant: Grant) -> None:
        """Give a grant's bytes back; giving back what is gone already does nothing."""
        with self.transaction() as connection:
            connection.executemany("DELETE FROM reservation WHERE id = ?", [(row,) for row in grant.ids])

    def measure(self, device: str, held: int, reclaimable: int) -> None:
        """Note what this process holds on a device, its context included, and how much of it is idle.

        The figures come from pools, allocators and the measured context, never from NVML's list of processes,
        whose pids mean something else inside a container.
        """
        with self.transaction() as connection:
            self._measure(connection, this_process(), device, held, reclaimable)

    @contextmanager
    def measuring(self, device: str, held: int, reclaimable: int) -> Iterator[None]:
        """Note what this process will hold on a device after the block, which nobody can see half done.

        Nothing is noted if the block raises.
        """
        with self.transaction() as connection:
            self._measure(connection, this_process(), device, held, reclaimable)
            yield

    def withdraw(self) -> None:
        """This process works here no more: what it holds counts as a stranger's, until it measures again."""
        process = this_process()
        with self.transaction() as connection:
            connection.execute(
                "DELETE FROM held WHERE pid = ? AND started = ? AND namespace = ?",
                (process.pid, process.started, process.namespace),
            )

    def processes(self, device: str) -> tuple[ProcessMemory, ...]:
        """Every living process that has reserved or holds something on a device."""
        with self.transaction() as connection:
            return self.processes_in(connection, device)

    def snapshot(self, reading: Reading) -> DeviceSnapshot:
        """A probe's reading together with what the table says of that device."""
        return reading.with_processes(self.processes(reading.uuid))

    def snapshots(self, readings: Iterable[Reading]) -> list[DeviceSnapshot]:
        """The same for many devices in one transaction: that is what probing costs most."""
        with self.transaction() as connection:
            self._reap(connection)
            return [
                reading.with_processes(self.processes_in(connection, reading.uuid, reaped=True))
                for reading in readings
            ]

    def reap(self) -> int:
        """Remove the rows of dead processes on every device; how many reservations that were."""
        with self.transaction() as connection:
            return self._reap(connection)

    def rows(self) -> list[ReservationRow]:
        """Every reservation of the living."""
        with self.transaction() as connection:
            self._reap(connection)
            found = connection.execute(
                "SELECT device, pid, started, namespace, nbytes, job, run FROM reservation ORDER BY id"
            ).fetchall()
        return [ReservationRow(row[0], ProcessId(row[1], row[2], row[3]), *row[4:]) for row in found]

    def note_leases(self, leases: Iterable[LeaseInfo]) -> None:
        """Show what this process's pools have lent, in place of what it showed before."""
        now = time.time()
        process = this_process()
        key = (process.pid, process.started, process.namespace)
        rows = [
            (
                *key, f"{lease.memory_type} {lease.dtype} {lease.shape}", str(lease.device), lease.nbytes,
                lease.job or "", lease.step or "", now - lease.age_s,
            )
            for lease in leases
        ]  # fmt: skip
        with self.transaction() as connection:
            connection.execute("DELETE FROM lease WHERE pid = ? AND started = ? AND namespace = ?", key)
            connection.executemany("INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def leases(self) -> list[LeaseRow]:
        """What the pools of the living have lent, the longest held first."""
        with self.transaction() as connection:
            self._reap(connection)
            found = connection.execute(
                "SELECT pid, what, device, nbytes, job, step, since FROM lease ORDER BY since"
            ).fetchall()
        return [LeaseRow(*row) for row in found]

    def holder(self) -> int | None:
        """The process that has the table to itself now, by its id; None if there is none that is known."""
        return self._file.holder()

    def close(self) -> None:
        """Close the file; this process's reservations stay until they are released or it ends."""
        with self._lock:
            self._connection.close()
            self._file.close()

    def __enter__(self) -> "Reservations":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The table for nobody but who is in the block; what is done there is undone if it raises."""
        # our own lock first: SQLite waits for its lock by sleeping in steps of up to 100 ms
        with self._lock, self._file.locked():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself has rolled back after some errors
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _measure(
        self, connection: sqlite3.Connection, process: ProcessId, device: str, held: int, reclaimable: int
    ) -> None:
        if not 0 <= reclaimable <= held:
            raise ValueError(f"{reclaimable} reclaimable of {held} bytes held on {device}")
        connection.execute(
            "INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?, ?, ?)",
            (device, process.pid, process.started, process.namespace, held, reclaimable, self.run),
        )

    def processes_in(
        self, connection: sqlite3.Connection, device: str, *, reaped: bool = False
    ) -> tuple[ProcessMemory, ...]:
        """The living processes on a device; what the dead left there is removed, unless it is `reaped`."""
        found: dict[_Row, list[int]] = {}
        ours: set[_Row] = set()
        rows = connection.execute(
            "SELECT pid, started, namespace, run, 0, 0, SUM(nbytes), 0 FROM reservation WHERE device = ?"
            " GROUP BY pid, started, namespace, run"
            " UNION ALL"
            " SELECT pid, started, namespace, run, nbytes, reclaimable, 0, 0 FROM held WHERE device = ?"
            " UNION ALL"
            " SELECT pid, started, namespace, run, 0, 0, 0, nbytes FROM unused_state WHERE device = ?",
            (device, device, device),
        )
        for pid, started, namespace, run, held, reclaimable, reserved, unused in rows.fetchall():
            row = pid, started, namespace
            own = run == self.run
            figures = (held, reclaimable, reserved, 0 if own else reserved, 0 if own else unused)
            known = found.get(row, (0,) * len(figures))
            found[row] = [a + b for a, b in zip(known, figures, strict=True)]
            if own:
                ours.add(row)
        for row in [] if reaped else [row for row in found if ProcessId(*row).is_dead()]:
            self._bury(connection, row)
            del found[row]
        return tuple(
            ProcessMemory(row[0], held, reclaimable, reserved, row in ours, foreign, unused)
            for row, (held, reclaimable, reserved, foreign, unused) in found.items()
        )

    def _reap(self, connection: sqlite3.Connection) -> int:
        rows = connection.execute(
            "SELECT pid, started, namespace FROM reservation"
            " UNION SELECT pid, started, namespace FROM held"
            " UNION SELECT pid, started, namespace FROM lease"
            " UNION SELECT pid, started, namespace FROM unused_state"
            " UNION SELECT pid, started, namespace FROM request"
        ).fetchall()
        return sum(self._bury(connection, row) for row in rows if ProcessId(*row).is_dead())

    @staticmethod
    def _bury(connection: sqlite3.Connection, row: _Row) -> int:
        """Remove what a dead process left; how many reservations that were."""
        gone = "pid = ? AND started = ? AND namespace = ?"
        buried = connection.execute(f"DELETE FROM reservation WHERE {gone}", row).rowcount
        for table in ("held", "lease", "unused_state", "request"):
            connection.execute(f"DELETE FROM {table} WHERE {gone}", row)
        return buried


def _why_not(snapshot: DeviceSnapshot, need: int, headroom: int) -> str:
    if snapshot.used_bytes is None:
        return f"needs {gib(need)}, and how much is free is unknown ({snapshot.problem})"
    free = snapshot.total_bytes - snapshot.external_bytes - snapshot.committed_bytes
    return (
        f"needs {gib(need)} and {gib(headroom)} of headroom; {gib(max(0, free))} are free of "
        f"{gib(snapshot.total_bytes)}: other programs use {gib(snapshot.external_bytes)}, "
        f"{gib(snapshot.committed_bytes)} are reserved or held by Stackyard"
    )
