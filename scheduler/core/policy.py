"""The knobs of the dispatcher, as records."""

from dataclasses import dataclass
from enum import StrEnum


class OnPressure(StrEnum):
    """What a job does when no device can take it now."""

    EARLIEST_FINISH = "earliest-finish"
    CPU = "cpu"
    WAIT = "wait"
    FAIL = "fail"

    @property
    def keeps_off_cpu(self) -> bool:
        """True if a job that a GPU could run isn't run on the CPU instead."""
        return self in (OnPressure.WAIT, OnPressure.FAIL)


@dataclass(frozen=True, slots=True)
class Policy:
    """How to decide. The defaults are those of the YAML's `memory` and `jobs` sections.

    `elastic`: devices may still join, so a job that none of those here can run waits instead of failing. Is
    there one of its kind that is too small, it doesn't wait for ever: when it is all that is left, and
    nothing has run or joined for `join_wait_s` seconds, it fails with the figures, lest a cluster be held
    idle for it. `absence_wait_s`: where no device may join, a job fails once every device that could run it
    has been without a worker for so many seconds. `overtake_limit`: how many jobs of later batches may pass a
    waiting job before a device is drained for it. `max_oom_attempts`: out-of-memory ends on devices before
    the ladder goes on to the next rung.
    """

    on_pressure: OnPressure = OnPressure.EARLIEST_FINISH
    reproducible: bool = False
    elastic: bool = False
    join_wait_s: float = 120.0
    absence_wait_s: float = 120.0
    max_failures: int = 10
    overtake_limit: int = 64
    max_oom_attempts: int = 3


@dataclass(frozen=True, slots=True)
class Pin:
    """How an earlier part of a reproducible run did the jobs of one kind: by which plan, on which model."""

    plan: str
    model: str
