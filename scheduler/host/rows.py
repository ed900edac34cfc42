"""What the reservation table says of one reservation, and of one array."""

from dataclasses import dataclass

from pools.process import ProcessId


@dataclass(frozen=True, slots=True)
class ReservationRow:
    """One reservation as it stands in the table."""

    device: str
    process: ProcessId
    nbytes: int
    job: str
    run: str


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """An array that a process has taken from its pools: for which job and step, and since when (epoch)."""

    pid: int
    what: str
    device: str
    nbytes: int
    job: str
    step: str
    since: float
