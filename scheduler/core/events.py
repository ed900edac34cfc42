"""What the dispatcher is told. Every event carries `now`: seconds, monotonic, never decreasing."""

from dataclasses import dataclass

from scheduler.core.model import Device, DeviceSnapshot, Job


@dataclass(frozen=True, slots=True)
class Done:
    """The attempt succeeded. Peaks in bytes, None where nothing measured them.

    `attributed`: the job was alone in its process from load to write, so the peaks are its own; else they are
    upper bounds. `duration_s` is its time on the device, without waiting in the worker's window.
    """

    device_peak_bytes: int | None = None
    host_peak_bytes: int | None = None
    duration_s: float | None = None
    attributed: bool = False


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The attempt ran out of memory after reaching `peak_bytes` (what it held when the allocation failed)."""

    peak_bytes: int | None = None
    snapshot: DeviceSnapshot | None = None
    on_host: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The step, its input or its output failed.

    `error` is what the user is told, `key` what equal failures share.
    """

    error: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The worker's reservation found less memory than the dispatcher had believed. Costs no rung."""

    reason: str
    snapshot: DeviceSnapshot | None = None


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """The process went away under the attempt.

    `blame` False: it was retired, preempted, or a neighbour hung.
    """

    reason: str = "its worker process died"
    blame: bool = True


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The attempt passed the job's `timeout_s` and was stopped together with its worker."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The attempt was stopped because of a `Cancel`, whose reason the job ends with.

    `reason` is told only of an attempt for which the dispatcher had no `Cancel`.
    """

    reason: str = "cancelled"


Outcome = Done | OutOfMemory | Failed | Refused | WorkerDied | TimedOut | Cancelled


@dataclass(frozen=True, slots=True)
class JobAdded:
    """One new job."""

    now: float
    job: Job


@dataclass(frozen=True, slots=True)
class JobsAdded:
    """Many new jobs at once: all are queued before any is placed, so that the large ones can go first."""

    now: float
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """A probe's reading of one device."""

    now: float
    snapshot: DeviceSnapshot


@dataclass(frozen=True, slots=True)
class AttemptBegan:
    """The attempt has left its worker's window and really runs, since `elapsed_s` seconds.

    Its job's `timeout_s` counts from there: an attempt that was never said to have begun has no deadline.
    The seconds in which it waited for its turn on the device aren't in `elapsed_s`, so a worker may say it
    again: the latest beginning counts.
    """

    now: float
    job_id: str
    attempt: int
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt came back. An attempt that isn't the job's running one is ignored."""

    now: float
    job_id: str
    attempt: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class DeviceReleased:
    """The attempt has left its device segment: its device bytes and slot are free, its host bytes are not."""

    now: float
    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker can take jobs: a new device, or a known one (by uuid) with its number of slots, back again."""

    now: float
    device: Device


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker process of a device is gone; `slots_left` of the device remain (0: the device is offline).

    `job_ids` are the jobs that ran in it (None: all that run on the device). With `blame` each becomes a
    suspect and runs alone next; `hung` is the one that had stopped answering, and its neighbours are requeued
    without a strike. Resident state of the device is gone with its last worker. `attempt_host_bytes`: what
    one attempt may now take in those that remain (see `Device`; None: as before).
    """

    now: float
    uuid: str
    slots_left: int = 0
    job_ids: tuple[str, ...] | None = None
    reason: str = "its worker process died"
    blame: bool = True
    hung: str | None = None
    attempt_host_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ResidentEvicted:
    """A step's idle state left the device."""

    now: float
    uuid: str
    name: str


@dataclass(frozen=True, slots=True)
class AdmissionHeld:
    """Nothing more is started (a full disk, a cancelled run that ends cleanly); an empty reason lifts it."""

    now: float
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up one job, or all of them (None).

    A running attempt is asked to stop, and keeps what it has reserved until its `AttemptEnded`; a job whose
    attempt succeeds all the same is done.
    """

    now: float
    job_id: str | None = None
    reason: str = "cancelled"


Event = (
    JobAdded
    | JobsAdded
    | SnapshotTaken
    | AttemptBegan
    | AttemptEnded
    | DeviceReleased
    | WorkerJoined
    | WorkerLost
    | ResidentEvicted
    | AdmissionHeld
    | Tick
    | Cancel
)
