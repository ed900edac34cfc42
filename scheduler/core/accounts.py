"""The account of one device, and the classes of equal devices with an index of who has room."""

from bisect import bisect_left, insort

from scheduler.core.model import Device, DeviceKind, DeviceSnapshot, DeviceView
from scheduler.core.queues import FamilyQueues, FitQueue
from scheduler.core.records import Group, JobRecord

UNLIMITED = 1 << 62


class DeviceClass:
    """Devices of equal kind, model and capacity: a group's options are the same on all of them.

    `open` lists those that could start something, by free bytes (a CPU's by free slots). `fit` holds groups
    that may run here and can't or needn't run elsewhere, `takeover` (CPU only) those that would rather have a
    GPU; `alone` waits for an empty device, `restricted` for particular devices.
    """

    def __init__(self, index: int, device: Device) -> None:
        self.index = index
        self.kind = device.kind
        self.model = device.model
        self.is_cpu = device.kind is DeviceKind.CPU
        self.capacity = device.total_bytes - device.headroom_bytes
        self.accounts: list[DeviceAccount] = []
        self.open: list[tuple[int, int, DeviceAccount]] = []
        self.fit = FitQueue()
        self.takeover = FamilyQueues()
        self.alone: dict[int, Group] = {}
        self.restricted: dict[int, Group] = {}
        self.warm: dict[str, dict[int, Group]] = {}
        self._available: int | None = None
        self._slots: int | None = None
        self._host_capacity: int | None = None
        self._uneven: bool | None = None

    def available(self) -> int:
        """The most bytes that a job could get here now if all our own jobs ended: what strangers leave."""
        if self._available is None:
            self._available = max((a.available for a in self.accounts if a.slots), default=-1)
        return self._available

    def slots(self) -> int:
        """The slots of all its devices."""
        if self._slots is None:
            self._slots = sum(account.slots for account in self.accounts)
        return self._slots

    def attempt_host_bytes(self) -> int:
        """The most host memory that a process of any of these devices lets an attempt have.

        Devices without a process count only while none has one.
        """
        limits = [a.device.attempt_host_bytes for a in self.accounts if a.slots]
        limits = limits or [a.device.attempt_host_bytes for a in self.accounts]
        return max(limits, default=0) if all(limits) and limits else UNLIMITED

    def attempt_capacity(self) -> int:
        """The most of such a device that one attempt may have."""
        return min(self.capacity, self.attempt_host_bytes()) if self.is_cpu else self.capacity

    def host_capacity(self) -> int:
        """The most host memory that a job alone could have beside a device of this class."""
        if self._host_capacity is None:
            self._host_capacity = max((account.host.capacity for account in self.accounts), default=0)
        return self._host_capacity

    def uneven(self) -> bool:
        """True if one attempt may take more host memory on some of them than on others."""
        if self._uneven is None:
            self._uneven = len({account.device.attempt_host_bytes for account in self.accounts}) > 1
        return self._uneven

    def strangers_moved(self) -> None:
        """What a device offers has changed for another reason than our own reservations."""
        self._available = self._host_capacity = self._uneven = self._slots = None


class HostAccount:
    """Host memory that every device of the host draws from.

    `starved` once a job was held back for lack of it.
    """

    def __init__(self, cpu: "DeviceAccount | None" = None) -> None:
        self.cpu = cpu
        self.devices: list[DeviceAccount] = []
        self.starved = False

    @property
    def capacity(self) -> int:
        """Host bytes that a job alone could have."""
        return self.cpu.cls.capacity if self.cpu is not None else UNLIMITED

    @property
    def free(self) -> int:
        """Host bytes that can be promised; without an account of the host nothing limits them."""
        return self.cpu.free if self.cpu is not None else UNLIMITED


class DeviceAccount:
    """One device: the last snapshot, what this run has reserved since, and who runs there.

    free = total - external - committed - headroom, with committed taken apart into our own reservations
    (always current), other runs' (as of the snapshot) and what processes hold beyond any reservation.
    """

    __slots__ = (
        "_limit",
        "_room",
        "blocked",
        "claim",
        "cls",
        "device",
        "done",
        "evicting",
        "excess",
        "exclusive",
        "external",
        "foreign",
        "gone",
        "gone_at",
        "host",
        "idle",
        "key",
        "known",
        "lengthy",
        "online",
        "ordinal",
        "problem",
        "processes",
        "requested",
        "reserved",
        "residents",
        "running",
        "slots",
        "total",
        "unused",
        "used",
    )  # fmt: skip

    def __init__(self, device: Device, ordinal: int, cls: DeviceClass, host: HostAccount) -> None:
        self.device = device
        self.ordinal = ordinal
        self.cls = cls
        self.host = host
        self.online = True
        self.gone = ""
        self.gone_at = 0.0
        self.slots = device.slots
        self.total = device.total_bytes
        self.known = False
        self.problem = "not probed yet"
        self.used = self.external = self.foreign = self.excess = self.idle = self.processes = 0
        self.unused = 0  # of what other runs have reserved
        self.requested = ("", 0.0)  # the job for which they were asked last, and until when not again
        self.reserved = 0
        self.running: dict[str, JobRecord] = {}
        # of these on a CPU: not known to be short
        self.lengthy = 0
        self.exclusive: str | None = None
        self.claim: JobRecord | None = None
        self.blocked = ""
        self.residents: dict[str, int] = {}
        self.evicting: set[str] = set()
        self.done = 0
        self.key: tuple[int, int] | None = None
        self._room = -1
        self._limit = 0

    def refresh(self) -> None:
        """Recompute what `free`, `available` and `has_slot` are read from.

        Call it when their causes change.
        """
        usable = self.known and self.online
        headroom = self.device.headroom_bytes
        self._room = self.total - self.external - self.foreign - self.excess - headroom if usable else -1
        self._limit = self.window if usable and self.exclusive is None and not self.blocked else 0

    @property
    def process_limit(self) -> int:
        """The most host memory that one attempt may take in a worker process."""
        return self.device.attempt_host_bytes or UNLIMITED

    @property
    def available(self) -> int:
        """Bytes that one of our jobs could have if none ran now; -1 while unknown or offline."""
        return min(self._room, self.process_limit) if self.cls.is_cpu else self._room

    @property
    def free(self) -> int:
        """Bytes that can be promised to one more job; -1 while unknown or offline."""
        return self._room - self.reserved if self._room >= 0 else -1

    @property
    def window(self) -> int:
        """The most attempts at one time.

        On a CPU attempts wait for another in the same process: beyond the slots that is for short jobs, and
        behind short jobs only.
        """
        if not self.slots:
            return 0
        if not self.cls.is_cpu:
            return self.slots + self.device.prefetch
        return self.slots + (0 if self.lengthy else self.slots * self.device.prefetch // self.device.slots)

    @property
    def room(self) -> int:
        """How much of it is open: a GPU's free bytes; a CPU's free slots first, then places behind others.

        Host memory is everybody's: a CPU's place in the list shouldn't move with every job on a GPU.
        """
        if not self.cls.is_cpu:
            return self.free
        running = len(self.running)
        return (max(0, self.slots - running) << 32) + self._limit - running

    @property
    def for_one(self) -> int:
        """The part of `free` that one attempt may have: none gets more than its worker process may take."""
        return min(self.free, self.process_limit) if self.cls.is_cpu else self.free

    @property
    def host_for_one(self) -> int:
        """The same of the host memory beside a GPU."""
        return min(self.host.free, self.process_limit)

    @property
    def has_slot(self) -> bool:
        """True if another attempt may start, memory aside."""
        return len(self.running) < self._limit

    @property
    def absence(self) -> str:
        """Why no worker of the device is there, once the last has gone; "" if there is one, or never was."""
        return f"offline: {self.gone}" if self.gone else ""

    def take_snapshot(self, snapshot: DeviceSnapshot) -> bool:
        """Replace what the last snapshot said; True if anything that admission depends on has changed."""
        before = (self.known, self.total, self.external, self.foreign, self.excess, self.unused, self.blocked)
        self.blocked = ""
        self.known = snapshot.used_bytes is not None
        self.total = snapshot.total_bytes
        self.problem = snapshot.problem or ("" if self.known else "its memory could not be read")
        self.external = snapshot.external_bytes
        self.used = snapshot.used_bytes or 0
        foreign = excess = idle = processes = 0
        for process in snapshot.processes:
            excess += process.excess_bytes
            foreign += process.of_other_runs
            if process.ours:
                idle += process.reclaimable_bytes
                processes += process.held_bytes > 0
        self.foreign, self.excess, self.idle, self.processes = foreign, excess, idle, processes
        self.unused = sum(process.unused_bytes for process in snapshot.processes)
        self.refresh()
        if before == (self.known, self.total, self.external, self.foreign, self.excess, self.unused, ""):
            return False
        self.cls.strangers_moved()
        return True

    def reindex(self) -> None:
        """Put this device where it belongs in its class's list of open devices."""
        key = None
        if len(self.running) < self._limit and self.claim is None:
            key = (self.room, self.ordinal)
        if key == self.key:
            return
        opened = self.cls.open
        if self.key is not None:
            del opened[bisect_left(opened, self.key)]
        if key is not None:
            insort(opened, (*key, self))
        self.key = key

    def view(self) -> DeviceView:
        """The account as the screens show it."""
        device = self.device
        return DeviceView(
            uuid=device.uuid,
            name=device.name,
            kind=device.kind,
            virtual=device.virtual,
            host=device.host,
            total_bytes=self.total,
            free_bytes=max(0, self.free) if self.known and self.online else None,
            reserved_bytes=self.reserved,
            idle_bytes=self.idle,
            external_bytes=self.external if self.known else 0,
            running=tuple(self.running),
            done=self.done,
            problem=self.absence or self.problem,
        )
