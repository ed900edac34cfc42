"""What an attempt is given and what it gives back: plain records that travel between driver and workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pools import PoolStats
from scheduler.core.events import Outcome
from scheduler.core.model import Split
from scheduler.images.options import DEFAULT_OPTIONS, WriteOptions
from scheduler.images.plates import Destination
from scheduler.images.stack import StackSource
from scheduler.steps.carried import STACK
from scheduler.steps.resolve import StepSpec

Stack = StackSource | NDArray[Any]
Source = Stack | Mapping[str, Stack]
AttemptKey = tuple[str, int]
"""The job's id and the attempt's number."""


def named_stacks(source: Source) -> Mapping[str, Stack]:
    """The stacks of a job by name; the only one of a plain job is called "stack"."""
    return source if isinstance(source, Mapping) else {STACK: source}


@dataclass(frozen=True, slots=True)
class OutputTarget:
    """Where the results of a job go.

    Attributes
    ----------
    path
        Of the one stack that a plain job gives, or the first one of several.
    provenance
        What the driver knows of how they came about.
    stacks
        The place of each stack by name, where that is more than `path` tells.
    tables
        The path of each table that a step may give, by its label (see `scheduler.steps.carried`).
    fields
        Those of the job, which every row of a table begins with.
    """

    path: str
    format: str
    overwrite: bool
    provenance: Mapping[str, Any]
    options: WriteOptions = DEFAULT_OPTIONS
    stacks: Mapping[str, Destination] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[tuple[str, str], ...] = ()

    @property
    def places(self) -> Mapping[str, Destination]:
        """Where each stack goes; for a job that says no names the one that it gives, called ""."""
        return self.stacks or {"": Destination(Path(self.path))}

    def claims(self) -> tuple[tuple[str, int | None], ...]:
        """What no other job may write: each path, with the channel of an image that several jobs share.

        The tables that its steps may give come last.
        """
        stacks = [(str(place.path), place.channel) for place in self.places.values()]
        return tuple(dict.fromkeys([*stacks, *((path, None) for path in self.tables.values())]))


@dataclass(frozen=True, slots=True)
class AttemptTask:
    """All that a worker needs for one attempt. Bytes; `memory_types` has one for each step.

    Attributes
    ----------
    kind
        Attempts of one kind have equal footprints.
    source
        Where the `[Z, Y, X]` stack is, or the stack itself; or several of these by name.
    resident_bytes
        What the steps' `setup` is to reserve on the device, 0 if it is there already.
    output
        Where the result is written; None if it isn't.
    returns_array
        The results come back to the driver, as copies.
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
class OutputRecord:
    """A file that a job has written: a stack with its name, or a table (of so many rows and columns).

    `digest` is the SHA-256 of a table, which unlike a stack says nothing about how it came about.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    dtype: str = ""
    channel: int | None = None
    digest: str = ""

    @property
    def is_table(self) -> bool:
        """True for a table, whose columns have no common dtype."""
        return not self.dtype


CELL_BYTES = 16
"""A value of a table, pickled: a number with its type."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What comes back to the driver where it was asked for: the stacks by name, and the tables by label."""

    arrays: Mapping[str, NDArray[Any]]
    tables: Mapping[str, Mapping[str, Sequence[object]]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """About what it takes in a message."""
        cells = sum(len(column) for table in self.tables.values() for column in table.values())
        return sum(array.nbytes for array in self.arrays.values()) + CELL_BYTES * cells

    def aligned(self) -> "Returned":
        """The same with arrays as compiled code wants them: in a message they lie at any address."""
        arrays = {name: np.require(array, requirements=["ALIGNED"]) for name, array in self.arrays.items()}
        return Returned(arrays, self.tables)


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """What comes back from a worker. Times in seconds.

    Attributes
    ----------
    result
        Shape and dtype of the result, the first one of several.
    outputs
        What was written.
    on_device
        When the attempt began and ended to use its device, in seconds since the epoch, for each time it did.
    disk_full
        Which file had no room, if that ended the attempt: the job isn't to blame.
    retire
        Why the worker process should be replaced before it is given more; "" if it needn't be.
    pools
        What each pool of the process has done so far for the run, by memory type and device.
    began_to_write
        Even if it failed some of its results may be in their places: channels of shared images.
    """

    outcome: Outcome
    worker_pid: int
    times: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[StepRecord, ...] = ()
    result: tuple[tuple[int, ...], str] | None = None
    on_device: tuple[tuple[float, float], ...] = ()
    disk_full: str = ""
    retire: str = ""
    outputs: tuple[OutputRecord, ...] = ()
    began_to_write: bool = False
    pools: Mapping[str, PoolStats] = field(default_factory=dict)
