"""What every probe gives: the devices it sees, and one device's memory at one moment."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.core.model import Device, DeviceSnapshot, ProcessMemory


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes of one device.

    `used_bytes` None: no answer, which is not free; `problem` says why in one line.
    """

    uuid: str
    total_bytes: int
    used_bytes: int | None
    problem: str = ""

    def with_processes(self, processes: Iterable[ProcessMemory]) -> DeviceSnapshot:
        """The snapshot that admission decides on."""
        return DeviceSnapshot(self.uuid, self.total_bytes, self.used_bytes, tuple(processes), self.problem)


class Probe(ABC):
    """Looks at devices of one sort. A device that can't be read is reported as unknown, never as free.

    Notes
    -----
    Used by one thread at a time.
    """

    problem: str = ""
    """Why this probe sees no devices although there should be some.

    Empty if all is well, or nothing is there.
    """

    @abstractmethod
    def devices(self) -> tuple[Device, ...]:
        """The devices that this process may use, in the order of their numbers in the YAML."""

    @abstractmethod
    def read(self, uuid: str) -> Reading:
        """One device's memory now. Raises KeyError for a device that this probe doesn't see."""

    def close(self) -> None:  # noqa: B027  most probes hold nothing
        """Give back what the probe holds."""
