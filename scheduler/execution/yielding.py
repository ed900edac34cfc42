"""What steps keep on a device and don't use goes when another run can't go on without the room."""

import threading
from collections.abc import Callable

from memcore.info import bytes_text
from scheduler.core.model import Device
from scheduler.execution.residents import Residents
from scheduler.host.reading import Reading
from scheduler.host.requests import Requests

# Between two jobs that use it state is in use: setting it up again for each would cost everybody more.
UNUSED_S = 2.0
LOOK_S = 0.5


class Yielding:
    """Tells other runs of state that is unused in a worker process, and evicts it when they request it.

    Parameters
    ----------
    read, accounting
        Reads a device's memory by its uuid, under that lock.
    on_evicted
        Told the name of what has gone, and why; in a thread of its own, for a teardown takes its time.
    """

    def __init__(
        self,
        device: Device,
        residents: Residents,
        requests: Requests,
        *,
        read: Callable[[str], Reading],
        accounting: threading.Lock,
        on_evicted: Callable[[str, str], None],
    ) -> None:
        self._device = device
        self._residents = residents
        self._requests = requests
        self._read = read
        self._accounting = accounting
        self._on_evicted = on_evicted
        self._noted = 0
        self._looked_at = float("-inf")
        self._evicting: threading.Thread | None = None

    def look(self, now: float) -> None:
        """Note what is unused now (seconds, monotonic); if it is requested, the longest unused goes."""
        if self._evicting is not None:
            if self._evicting.is_alive():
                return
            self._evicting, self._noted = None, -1
        unused = self._residents.unused(now, UNUSED_S)
        self._note(sum(unused.values()))
        if not unused or now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        name, nbytes = next(iter(unused.items()))
        with self._accounting:
            wanted = self._requests.give_up(self._device.uuid, nbytes, read=self._read)
        if wanted:
            why = f"{name} is put away: another run needs {bytes_text(wanted)} on {self._device.name}"
            self._evicting = threading.Thread(
                target=self._evict, args=(name, why), name="stackyard-yield", daemon=True
            )
            self._evicting.start()

    def _evict(self, name: str, why: str) -> None:
        if self._residents.evict(name):
            self._on_evicted(name, why)

    def _note(self, nbytes: int) -> None:
        if nbytes != self._noted:
            self._requests.note_unused(self._device.uuid, nbytes)
            self._noted = nbytes

    def request(self, nbytes: int) -> None:
        """Ask other runs for what they don't use, until `nbytes` are free on the device."""
        self._requests.request(self._device.uuid, nbytes)

    def close(self) -> None:
        """Wait for what is being evicted."""
        if self._evicting is not None:
            self._evicting.join()

    def withdraw(self) -> None:
        """Nothing is offered or requested here any more."""
        self._requests.forget()
