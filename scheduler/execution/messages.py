"""What worker processes tell the driver, each as one event of a Dask topic of the run's own."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed import Worker

from scheduler.core.events import Failed
from scheduler.core.model import Device, DeviceSnapshot
from scheduler.execution.task import AttemptReport, Returned


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker process is ready for attempts.

    Attributes
    ----------
    worker_id
        Dask's own name for the process; an address may be another's later.
    device, host
        The device that it serves, and the CPU device that stands for its host's memory.
    slots
        How many attempts this process computes at one time.
    process_bytes
        How much host memory its attempts may take before its nanny ends it; 0 is no limit but the host's.
    has_nanny
        A new process takes its place if it ends.
    installed
        Memory types that are installed there.
    problems
        What a person should know of it, in words.
    """

    address: str
    worker_id: str
    name: str
    pid: int
    device: Device
    host: Device
    slots: int
    has_nanny: bool
    installed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    process_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Unfit:
    """A worker process can't serve the run; `reason` says why."""

    address: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """A worker process is about to go: it ends the attempts in `begun`, and begins no other.

    `begun` has them by (job, number); None where it isn't known. `let_go`: it goes once somebody closes it.
    `outgrown`: it has more memory than it may have, and is killed unless it is done in a moment.
    """

    address: str
    reason: str
    begun: frozenset[tuple[str, int]] | None = None
    let_go: bool = False
    outgrown: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """The scheduler has removed a worker; `expected` if somebody has asked for that.

    This may overtake what the worker has said before, its `Hello` included.
    """

    address: str
    worker_id: str
    expected: bool = False


@dataclass(frozen=True, slots=True)
class Readings:
    """The memory of a worker's device and host, where the driver can't look by itself."""

    snapshots: tuple[DeviceSnapshot, ...]


@dataclass(frozen=True, slots=True)
class Pulse:
    """A worker process is alive; `attempts` that have lasted a while are in it, by (job, number).

    Each has the seconds for which it has run, what it does now, and since how many seconds its process has
    used no processor time.
    """

    address: str
    attempts: Mapping[tuple[str, int], tuple[float, str, float]]


@dataclass(frozen=True, slots=True)
class Released:
    """An attempt has left the device for good; it still has host memory."""

    job_id: str
    number: int


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt has come to its end; what it was asked for comes with the news, if that is small."""

    job_id: str
    number: int
    report: AttemptReport
    returned: Returned | None = None


@dataclass(frozen=True, slots=True)
class Evicted:
    """What a step's `setup` kept is gone from a device; `why`, if a person should know."""

    device: str
    name: str
    why: str = ""


# Fetching arrays costs three messages one after another. The scheduler keeps a topic's last 1000 events.
SMALL_BYTES = 16 << 10
Message = Hello | Unfit | Leaving | Left | Readings | Pulse | Released | Ended | Evicted


def tell(worker: Worker, topic: str, message: Message) -> None:
    """Send `message` to who listens to the topic, in order with the worker's other news; from any thread."""
    worker.log_event(topic, packed(message))


def tell_end(
    worker: Worker, topic: str, key: tuple[str, int], report: AttemptReport, returned: Returned | None
) -> Returned | None:
    """Tell that an attempt has ended; gives what it returns where that is too large to go with the news."""
    small = returned is not None and returned.nbytes <= SMALL_BYTES
    tell(worker, topic, Ended(*key, report, returned if small else None))
    return None if small else returned


def packed(message: Message) -> dict[str, Any]:
    """The message in a form that Dask's events can carry."""
    told: dict[str, Any] = {"told": pickle.dumps(message)}
    return told | ({"ended": [message.job_id, message.number]} if isinstance(message, Ended) else {})


def heard(event: tuple[float, Mapping[str, Any]]) -> Message:
    """The message of one event of the topic."""
    if "unfit" in event[1]:  # from a process that need not have this module
        return Unfit(*event[1]["unfit"])
    try:
        message: Message = pickle.loads(event[1]["told"])
    except Exception as error:  # a step's table may hold what can't be rebuilt here
        if "ended" not in event[1]:
            raise
        job_id, number = event[1]["ended"]
        reason = f"what its attempt returned can't be read here: {type(error).__name__}: {error}"
        return Ended(job_id, number, AttemptReport(Failed(reason), worker_pid=0))
    return message
