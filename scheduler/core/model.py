"""What the dispatcher knows.

Devices, jobs, footprints, snapshots. Frozen records; bytes are ints, times are seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class DeviceKind(StrEnum):
    """What a device is. The CPU workers of one host are one device of kind `CPU`."""

    CUDA = "cuda"
    VIRTUAL = "virtual"
    OPENCL = "opencl"
    CPU = "cpu"


GPU_KINDS: tuple[DeviceKind, ...] = (DeviceKind.CUDA, DeviceKind.VIRTUAL, DeviceKind.OPENCL)


@dataclass(frozen=True, slots=True)
class Device:
    """A place where jobs run.

    For the CPU device of a host, `total_bytes` is the host memory that this run may use (after cgroup, Dask's
    limit and `memory.host_limit`) and `slots` the number of CPU worker processes; 0 slots is a host whose
    memory is accounted but whose CPU runs no job. A job on a GPU also needs host bytes of its host's CPU
    device.
    """

    uuid: str
    name: str
    kind: DeviceKind
    total_bytes: int
    slots: int = 1
    model: str = ""
    host: str = "localhost"
    headroom_bytes: int = 0
    prefetch: int = 0
    """Jobs that may be admitted beyond `slots`: a small number.

    On a GPU they read their input while others compute; on a CPU short ones wait in its processes.
    """
    attempt_host_bytes: int = 0
    """The most host memory that one attempt may take in a worker process of it; 0 is as much as there is."""

    @property
    def virtual(self) -> bool:
        """True for virtual device memory: capacity without hardware."""
        return self.kind is DeviceKind.VIRTUAL

    @property
    def window(self) -> int:
        """The most jobs that the dispatcher keeps admitted here at one time."""
        return self.slots + self.prefetch if self.slots else 0


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """What one process of ours, or of another run that shares the reservation table, has on one device.

    `held_bytes` is measured (its context included), `reclaimable_bytes` is the part of it that is idle in
    pools and allocators, `reserved_bytes` is the sum of its reservations. `ours` is False for another run's
    process. Of its reservations `foreign_bytes` are other runs', `unused_bytes` of them for what their steps
    keep there and don't use now; None: all of a process that isn't ours, and nothing of one that is.
    """

    pid: int
    held_bytes: int = 0
    reclaimable_bytes: int = 0
    reserved_bytes: int = 0
    ours: bool = True
    foreign_bytes: int | None = None
    unused_bytes: int = 0

    @property
    def of_other_runs(self) -> int:
        """Bytes that other runs have reserved in it."""
        if self.foreign_bytes is not None:
            return self.foreign_bytes
        return 0 if self.ours else self.reserved_bytes

    @property
    def committed_bytes(self) -> int:
        """What must be counted as taken: the reservations, or what is really held and can't be given back."""
        return max(self.reserved_bytes, self.held_bytes - self.reclaimable_bytes)

    @property
    def excess_bytes(self) -> int:
        """Held beyond every reservation and not reclaimable: contexts, arenas, fragments."""
        return self.committed_bytes - self.reserved_bytes


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """One reading of a device.

    `used_bytes` None means that the probe had no answer, which is not the same as free.
    """

    uuid: str
    total_bytes: int
    used_bytes: int | None
    processes: tuple[ProcessMemory, ...] = ()
    problem: str = ""

    @property
    def external_bytes(self) -> int:
        """What programs that aren't ours use; all of the device while the probe has no answer."""
        if self.used_bytes is None:
            return self.total_bytes
        return max(0, self.used_bytes - sum(process.held_bytes for process in self.processes))

    @property
    def committed_bytes(self) -> int:
        """The sum over our processes of max(reserved, held - reclaimable)."""
        return sum(process.committed_bytes for process in self.processes)

    @property
    def idle_bytes(self) -> int:
        """Held by our processes and reclaimable."""
        return sum(process.reclaimable_bytes for process in self.processes if process.ours)

    def admits(self, need_bytes: int, headroom_bytes: int = 0) -> bool:
        """committed + need + headroom <= total - external; never while the probe has no answer."""
        if self.used_bytes is None:
            return False
        return self.committed_bytes + need_bytes + headroom_bytes <= self.total_bytes - self.external_bytes


@dataclass(frozen=True, slots=True)
class Footprint:
    """A job's peak bytes.

    `device_bytes` is 0 for a plan on the CPU; `source` is model, measured or declared.
    """

    device_bytes: int
    host_bytes: int
    source: str = "model"


@dataclass(frozen=True, slots=True)
class Split:
    """A stack taken in `blocks` blocks along `axes` ("z" or "zyx")."""

    axes: str
    blocks: int


@dataclass(frozen=True, slots=True)
class Resident:
    """What a step's `setup` keeps on the device: reserved once for each device, not once for each job."""

    name: str
    nbytes: int
    setup_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One way to run a job: implementations, memory types, and what they need.

    `footprint` is the declared model's, without the resident state. `cost` is the declared expected seconds
    (any unit that is the same for all plans of a job will do: measured rates scale it). Plans of one job have
    different names; those with a `split` are used where the whole can't fit, and after an out of memory.
    """

    name: str
    device_kinds: tuple[DeviceKind, ...]
    footprint: Footprint
    memory_types: tuple[str, ...] = ()
    split: Split | None = None
    conversions: tuple[str, ...] = ()
    cost: float = 1.0
    resident: Resident | None = None

    @property
    def on_cpu(self) -> bool:
        """True if it runs on the CPU device."""
        return DeviceKind.CPU in self.device_kinds


@dataclass(frozen=True, slots=True)
class Job:
    """A stack job and the ways to run it, best first.

    `kind` names everything that decides plans and footprints (chain, parameters, dtypes, exact shape): jobs
    of one kind have equal plans. `family` is the key under which peaks and durations are learned (the same
    with the shape *class*); it defaults to the kind. Jobs of one `batch` were submitted together: the
    dispatcher may order them as it likes, and only jobs of later batches can overtake them. `allowed`
    restricts the device uuids; `prefers` names those where its input is warm. `timeout_s` counts from each
    attempt's `AttemptBegan`.
    """

    job_id: str
    kind: str
    plans: tuple[JobPlan, ...]
    family: str = ""
    priority: int = 0
    batch: int = 0
    timeout_s: float | None = None
    allowed: frozenset[str] | None = None
    prefers: frozenset[str] = frozenset()

    @property
    def learns_as(self) -> str:
        """The key of its footprints and rates."""
        return self.family or self.kind


class Verdict(StrEnum):
    """What was decided about a job."""

    ADMIT = "admit"
    FALL_BACK = "fall_back"
    RETRY = "retry"
    REQUEUE = "requeue"
    FINISH = "finish"
    REJECT = "reject"
    SET_ASIDE = "set_aside"
    CANCEL = "cancel"
    RECLAIM = "reclaim"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, the reason in words with its figures, and the figures themselves (for the journal)."""

    verdict: Verdict
    reason: str
    inputs: Mapping[str, int | float | str | None] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Placement:
    """A job admitted to a device: attempt numbers count from 1. `reserve_bytes` of the device and
    `host_bytes` of its host.

    `resident_bytes` is what the plan's setup will reserve beside it, 0 if it is already there. `alone`: no
    other job is admitted to this device meanwhile, so its measured peak is its own.
    """

    job_id: str
    attempt: int
    device: str
    host: str
    plan: JobPlan
    reserve_bytes: int
    host_bytes: int
    resident_bytes: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device as the screens show it; `free_bytes` is None while the probe has no answer."""

    uuid: str
    name: str
    kind: DeviceKind
    virtual: bool
    host: str
    total_bytes: int
    free_bytes: int | None
    reserved_bytes: int
    idle_bytes: int
    external_bytes: int
    running: tuple[str, ...]
    done: int
    problem: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that isn't running, why, and since when (the `now` of the event that made it wait)."""

    job_id: str
    reason: str
    since: float


def gib(nbytes: int | float) -> str:
    """Bytes for a person to read: "512 MiB", "3.25 GiB"."""
    if abs(nbytes) < 1 << 20:
        return f"{nbytes / (1 << 10):.4g} KiB" if nbytes else "0 bytes"
    if abs(nbytes) < 1 << 30:
        return f"{nbytes / (1 << 20):.4g} MiB"
    return f"{nbytes / (1 << 30):.4g} GiB"
