"""How a job ended, for whoever submitted it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from scheduler.core.instructions import JobOutcome


class JobFailedError(RuntimeError):
    """A job didn't end as done; the message is its reason."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended.

    Attributes
    ----------
    outcome
        done, failed, cancelled or set_aside.
    outputs
        The files that were written: stacks, then tables.
    arrays
        The results by name, for jobs submitted with `returns="array"`: copies, never pool memory. The result
        of a chain is called "stack" where its steps give it no other name.
    tables
        For the same jobs, the tables that steps gave: columns by name, for each step's name.
    device
        Name of the device of the last attempt; "" if there was none.
    attempts
        How many times the job was tried.
    peak_bytes
        The most memory that it held, where that was measured: of its device, of the host on a CPU.
    reason
        Why it ended so.
    """

    outcome: JobOutcome
    outputs: tuple[Path, ...] = ()
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Sequence[object]]] = field(default_factory=dict)
    device: str = ""
    attempts: int = 0
    peak_bytes: int | None = None
    reason: str = ""

    def check(self) -> "JobResult":
        """The result itself, if the job is done. Raises JobFailedError with the reason if it isn't."""
        if self.outcome is not JobOutcome.DONE:
            raise JobFailedError(self.reason)
        return self
