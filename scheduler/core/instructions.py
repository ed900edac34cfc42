"""What the dispatcher asks for. Each instruction carries the decision behind it, for the journal."""

from dataclasses import dataclass
from enum import StrEnum

from scheduler.core.model import Decision, Placement


class JobOutcome(StrEnum):
    """How a job ended for good."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SET_ASIDE = "set_aside"


@dataclass(frozen=True, slots=True)
class Start:
    """Submit this attempt; the worker reserves `placement.reserve_bytes` before its first allocation."""

    placement: Placement
    decision: Decision


@dataclass(frozen=True, slots=True)
class FinishJob:
    """The job is over; no further instruction names it, but for the cancellation of a running attempt."""

    job_id: str
    outcome: JobOutcome
    decision: Decision


@dataclass(frozen=True, slots=True)
class Retry:
    """For the journal: the attempt ended without a result and the job was put back, on which rung and why."""

    job_id: str
    attempt: int
    rung: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Stop a running attempt; `restart_worker` if it has hung and only the end of its process will do."""

    job_id: str
    attempt: int
    device: str
    restart_worker: bool
    decision: Decision


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Trim idle pool and allocator bytes of a device, every framework's, before the `Start` that follows."""

    device: str
    nbytes: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Evict:
    """Tear down a step's idle resident state on a device; answer with `ResidentEvicted`."""

    device: str
    name: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class Request:
    """Ask other runs for state that they don't use now, until `nbytes` are free on a device."""

    device: str
    nbytes: int
    job_id: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class StopRun:
    """Start nothing more and end the run: `decision.reason` says why."""

    decision: Decision


Instruction = Start | FinishJob | Retry | CancelAttempt | Reclaim | Evict | Request | StopRun
