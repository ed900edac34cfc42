"""What steps keep on a device and don't use goes when another run can't go on without the room."""

from collections.abc import Callable

from memcore.info import bytes_text
from scheduler.core.model import Device
from scheduler.execution.residents import Residents
from scheduler.host.reading import Reading
from scheduler.host.reservations import Reservations

# Between two jobs that use it state is in use: setting it up again for each would cost everybody more.
UNUSED_S = 2.0
LOOK_S = 0.5


class Yielding:
    """Tells other runs of state that is unused in a worker process, and evicts it when they request it.

    Parameters
    ----------
    read
        Reads a device's memory by its uuid.
    """

    def __init__(
        self,
        device: Device,
        residents: Residents,
        reservations: Reservations,
        read: Callable[[str], Reading],
    ) -> None:
        self._device = device
        self._residents = residents
        self._reservations = reservations
        self._read = read
        self._noted = 0
        self._looked_at = float("-inf")

    def look(self, now: float) -> None:
        """Note what is unused now (seconds, monotonic), and give up the oldest of it if that is requested.

        Only where all that is unused would be enough: nobody is helped by less.
        """
        since = now - UNUSED_S
        unused = self._residents.unused(since)
        self._note(unused)
        if not unused or now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        uuid = self._device.uuid
        requested = self._reservations.requested(uuid)
        if not requested:
            return
        there = self._reservations.snapshot(self._read(uuid))
        all_unused = unused + sum(process.unused_bytes for process in there.processes)
        helped = [n for n in requested if not there.admits(n) and there.admits(n - all_unused)]
        if helped:
            why = f"another run needs {bytes_text(min(helped))} on {self._device.name}: unused state goes"
            self._residents.make_room(unused_since=since, why=why)

    def _note(self, unused: int) -> None:
        if unused != self._noted:
            self._reservations.note_unused_state(self._device.uuid, unused)
            self._noted = unused

    def close(self) -> None:
        """Nothing is left to be requested."""
        self._note(0)
