"""What a step is told about its call, if it declares a keyword-only `context`."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where a call of a step takes place.

    Attributes
    ----------
    memory_type
        Of the stack that the step is given, such as "torch".
    gpu_id
        The device as this process's frameworks number it, or "cpu".
    pool
        The array pool of that memory type and device, for work arrays: `with context.pool.acquire(shape,
        dtype)`.
    job_id
        The job's name, as in the journal.
    z_start
        Index of the stack's first plane in the whole, where the job's stack was cut into blocks; else 0.
    """

    memory_type: str
    gpu_id: int | str
    pool: Any
    job_id: str
    z_start: int = 0
