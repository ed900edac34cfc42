"""What the dispatcher remembers of each job, and of the groups in which equal jobs wait.

Mutable, private to the core.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from scheduler.core.model import Job, JobPlan, Placement


class JobState(Enum):
    """Where a job is. It is in exactly one of these states."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Cohort:
    """The jobs of one batch, as far as overtaking goes.

    `base` is the number of first departures (starts, mostly) when it arrived, `older` how many jobs waited
    then for their first start, `departed` how many of its own have left since.
    """

    base: int
    older: int
    departed: int = 0

    def overtaken(self, departures: int, older_waiting: int) -> int:
        """Jobs of later batches that left before a job of this one that still waits."""
        return departures - self.base - (self.older - older_waiting) - self.departed


@dataclass(slots=True, eq=False)
class JobRecord:
    """One job's story: `order` is its place of arrival."""

    job: Job
    order: int
    cohort: Cohort
    since: float
    group: "Group"
    state: JobState = JobState.WAITING
    attempts: int = 0
    ooms: int = 0
    host_ooms: int = 0
    strikes: int = 0
    started: bool = False
    refused: str = ""
    tried: tuple[str, ...] = ()
    placement: Placement | None = None
    began_at: float | None = None
    expected_end: float = 0.0
    share: float = 0.0
    on_device: bool = False
    lengthy: bool = False
    claim: str | None = None
    # the device that was asked to evict state for it, which may take its time until then
    room_on: str | None = None
    room_until: float = 0.0
    # the device whose other runs are asked for room, until the others' turn
    requested_on: str | None = None
    requested_until: float = 0.0
    cancelled: str | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """A plan on one class of devices: `need` includes the resident state, `resident` is its part of it.

    `need` is an estimate; `least` is what was really measured or declared, so that a margin alone never makes
    a job impossible. `seconds` is the expected time, measured rates applied; `measured` says whether they
    were.
    """

    plan: JobPlan
    need: int
    host_need: int
    seconds: float
    measured: bool
    share: float
    resident: int = 0
    index: int = 0


@dataclass(slots=True, eq=False)
class Group:
    """Jobs that are interchangeable but for their age: same kind, priority and restrictions.

    Estimates, options and places in the queues are the group's, so that a new measurement moves all its jobs
    at the price of one. `version` invalidates queue entries left behind. Groups of one job carry a retry's
    own terms: `plans` may be fewer than the job's, `least_need` raised, `excluded` the devices that it
    already tried, `alone`.
    """

    order: int
    kind: str
    family: str
    plans: tuple[JobPlan, ...]
    priority: int
    allowed: frozenset[str] | None = None
    prefers: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    alone: bool = False
    least_need: int = 0
    least_host: int = 0
    rung: str = ""
    jobs: deque[JobRecord] = field(default_factory=deque)
    count: int = 0
    version: int = 0
    queued: bool = False
    watched: bool = False
    cold: bool = False
    estimated: tuple[int, int, int] = (-1, -1, -1)
    options: dict[int, tuple[Option, ...]] = field(default_factory=dict)
    area: float = 0.0
    best_seconds: float = 0.0

    @property
    def restricted(self) -> bool:
        """True if not every device of a class will do."""
        return self.allowed is not None or bool(self.excluded)

    def permits(self, uuid: str) -> bool:
        """True if its jobs may run on this device."""
        return (self.allowed is None or uuid in self.allowed) and uuid not in self.excluded

    def push(self, record: JobRecord, front: bool = False) -> None:
        """Add a waiting job; a requeued one goes to the front."""
        record.group = self
        record.state = JobState.WAITING
        self.count += 1
        if front:
            self.jobs.appendleft(record)
        else:
            self.jobs.append(record)

    def room_is_made(self, now: float, elsewhere_than: str | None = None) -> bool:
        """True while a device, another one than that, evicts state for the oldest of its jobs."""
        record = self.oldest()
        return record.room_on not in (None, elsewhere_than) and now < record.room_until

    def waiting(self) -> Iterator[JobRecord]:
        """Its waiting jobs, oldest first but for requeued ones."""
        return (record for record in self.jobs if record.state is JobState.WAITING and record.group is self)

    def oldest(self) -> JobRecord:
        """Its first waiting job, which stays in the group."""
        jobs = self.jobs
        while jobs[0].state is not JobState.WAITING or jobs[0].group is not self:
            jobs.popleft()
        return jobs[0]
