"""The dispatcher: `handle(event) -> instructions`, the same for a live run and for the simulator."""

from collections.abc import Iterable, Iterator

from scheduler.core.events import Event
from scheduler.core.footprint import Estimates
from scheduler.core.instructions import Instruction
from scheduler.core.model import Device, DeviceView, Waiting
from scheduler.core.policy import Policy


class Dispatcher:
    """Decides which job runs where, when, and how; keeps the account of every device.

    Notes
    -----
    Not thread-safe: one thread feeds it events. A device is full until its first snapshot. After `StopRun`
    nothing is started.
    """

    def __init__(
        self, policy: Policy | None = None, devices: Iterable[Device] = (), estimates: Estimates | None = None
    ) -> None:
        self.policy = policy or Policy()

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event in and return what to do now, in order."""
        raise NotImplementedError

    def waiting(self, limit: int | None = None) -> Iterator[Waiting]:
        """The jobs that aren't running, oldest first, each with its reason; at most `limit`."""
        raise NotImplementedError

    def device_view(self) -> list[DeviceView]:
        """Every device's account, in the order they joined."""
        raise NotImplementedError

    @property
    def queued(self) -> int:
        """Jobs waiting."""
        raise NotImplementedError

    @property
    def running(self) -> int:
        """Attempts running."""
        raise NotImplementedError
