"""What an attempt is given and what it gives back: plain records that travel between driver and workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from scheduler.core.events import Outcome
from scheduler.core.model import Split
from scheduler.images.stack import StackSource
from scheduler.steps.resolve import StepSpec

Source = StackSource | NDArray[Any]


@dataclass(frozen=True, slots=True)
class OutputTarget:
    """Where a result goes; `provenance` is what the driver knows of how it came about."""

    path: str
    format: str
    overwrite: bool
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AttemptTask:
    """All that a worker needs for one attempt. Bytes; `memory_types` has one for each step.

    Attributes
    ----------
    kind
        Attempts of one kind have equal footprints.
    source
        Where the `[Z, Y, X]` stack is, or the stack itself.
    resident_bytes
        What the steps' `setup` is to reserve on the device, 0 if it is there already.
    output
        Where the result is written; None if it isn't.
    returns_array
        The result comes back to the driver, as a copy.
    """

    job_id: str
    kind: str
    number: int
    source: Source
    steps: tuple[StepSpec, ...]
    memory_types: tuple[str, ...]
    device_bytes: int
    host_bytes: int
    output: OutputTarget | None
    split: Split | None = None
    resident_bytes: int = 0
    returns_array: bool = False


@dataclass(frozen=True, slots=True)
class StepRecord:
    """How one step ran: part of the output's metadata and of the journal."""

    step: str
    use: str
    parameters: Mapping[str, Any]
    memory_type: str
    version: str
    device: str


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """What comes back from a worker. Times in seconds.

    Attributes
    ----------
    result
        Shape and dtype of the result.
    on_device
        When the attempt began and ended to use its device, in seconds since the epoch, for each time it did.
    disk_full
        Which file had no room, if that ended the attempt: the job isn't to blame.
    retire
        Why the worker process should be replaced before it is given more; "" if it needn't be.
    """

    outcome: Outcome
    worker_pid: int
    times: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[StepRecord, ...] = ()
    result: tuple[tuple[int, ...], str] | None = None
    on_device: tuple[tuple[float, float], ...] = ()
    disk_full: str = ""
    retire: str = ""
