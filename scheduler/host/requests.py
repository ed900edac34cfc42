"""What one run keeps on a device and doesn't use, and what another one that waits for room requests of it."""

import sqlite3
import time
from collections.abc import Callable

from pools.process import ProcessId, this_process
from scheduler.host.reading import Reading
from scheduler.host.reservations import Reservations

# A request counts for so many seconds: whoever still waits makes it again.
REQUEST_S = 3.0


class Requests:
    """Notes and requests of one run in one process, beside the reservations in their table.

    Notes
    -----
    As usable as the table: from any thread, and not in a child process.
    """

    def __init__(self, table: Reservations) -> None:
        self._table = table

    def note_unused(self, device: str, nbytes: int) -> None:
        """Note how many of this process's reserved bytes are for what its steps keep there and don't use now.

        In place of what it noted before. Other runs may request them.
        """
        with self._table.transaction() as connection:
            self._replace_unused(connection, device, nbytes, 0)

    def request(self, device: str, nbytes: int) -> None:
        """Ask other runs for what they don't use, until `nbytes` are free on a device.

        It counts for `REQUEST_S`, and until this run is granted something there.
        """
        process = this_process()
        key = (device, process.pid, process.started, process.namespace)
        with self._table.transaction() as connection:
            now = time.time()
            connection.execute("DELETE FROM request WHERE until <= ?", (now,))
            values = (*key, nbytes, self._table.run, now + REQUEST_S)
            connection.execute("INSERT OR REPLACE INTO request VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def give_up(self, device: str, nbytes: int, *, read: Callable[[str], Reading]) -> int:
        """Whether this process should give up `nbytes` that it doesn't use, for a request of another run.

        Returns the bytes that the other run wants free; then these `nbytes` count as going until
        `note_unused`, and nobody else gives up theirs for the same end. 0 if nobody asks, or it would be of
        no use.
        """
        with self._table.transaction() as connection:
            requested = self._requested(connection, device)
            if not requested:
                return 0
            there = read(device).with_processes(self._table.processes_in(connection, device))
            unused, going = connection.execute(
                "SELECT TOTAL(nbytes), TOTAL(going) FROM unused_state WHERE device = ?", (device,)
            ).fetchone()
            for wanted in requested:
                lacks = not there.admits(wanted - int(going))
                if lacks and there.admits(wanted - int(going) - int(unused)):
                    self._replace_unused(connection, device, 0, nbytes)
                    return wanted
        return 0

    def _requested(self, connection: sqlite3.Connection, device: str) -> list[int]:
        found = connection.execute(
            "SELECT pid, started, namespace, nbytes FROM request WHERE device = ? AND run != ? AND until > ?",
            (device, self._table.run, time.time()),
        ).fetchall()
        return [nbytes for *process, nbytes in found if not ProcessId(*process).is_dead()]

    def _replace_unused(self, connection: sqlite3.Connection, device: str, nbytes: int, going: int) -> None:
        process = this_process()
        key = (device, process.pid, process.started, process.namespace)
        if nbytes or going:
            values = (*key, nbytes, self._table.run, going)
            connection.execute("INSERT OR REPLACE INTO unused_state VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        else:
            connection.execute(
                "DELETE FROM unused_state"
                " WHERE device = ? AND pid = ? AND started = ? AND namespace = ? AND run = ?",
                (*key, self._table.run),
            )

    def forget(self) -> None:
        """What this run has noted and requested in this process is over."""
        process = this_process()
        key = (process.pid, process.started, process.namespace, self._table.run)
        with self._table.transaction() as connection:
            for table in ("unused_state", "request"):
                connection.execute(
                    f"DELETE FROM {table} WHERE pid = ? AND started = ? AND namespace = ? AND run = ?", key
                )
