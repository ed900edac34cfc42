"""Everything the dispatcher remembers.

Accounts, jobs, waiting groups; and how a group enters and leaves the queues.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from heapq import heappush

from scheduler.core.accounts import DeviceAccount, DeviceClass, HostAccount
from scheduler.core.footprint import Estimates
from scheduler.core.model import Device, DeviceKind, Job
from scheduler.core.options import find_options, too_large_for_gpus
from scheduler.core.policy import Pin, Policy
from scheduler.core.records import Cohort, Group, JobRecord, Option

_GroupKey = tuple[str, int, frozenset[str] | None, frozenset[str]]


class State:
    """The dispatcher's memory.

    Invariant: a group with waiting jobs is in the queues of every class it has options on.
    """

    def __init__(self, policy: Policy, estimates: Estimates, pins: Mapping[str, Pin] | None = None) -> None:
        self.policy = policy
        self.estimates = estimates
        self.now = 0.0
        self.accounts: dict[str, DeviceAccount] = {}
        self.classes: list[DeviceClass] = []
        self.hosts: dict[str, HostAccount] = {}
        self.records: dict[str, JobRecord] = {}
        self.groups: dict[_GroupKey, Group] = {}
        self.families: dict[str, dict[int, Group]] = {}
        self.preferring: dict[str, dict[int, Group]] = {}
        self.alone: dict[int, list[tuple[int, float, int, int, Group]]] = {}
        self.parked: dict[int, Group] = {}
        # by family, the job that runs on a CPU while its time there or on a GPU isn't known yet
        self.exploring: dict[str, str] = {}
        self.unclaimed: list[DeviceAccount] = []
        self.deadlines: list[tuple[float, int, int, JobRecord]] = []
        self.arrivals: deque[JobRecord] = deque()
        # by kind, for a reproducible run: what an earlier part of it has fixed, and what this one has
        self.pins = dict(pins or {})
        self.pinned: dict[str, tuple[str, int]] = {}
        self.group_orders = 0
        self.job_orders = 0
        self.cohort = Cohort(0, 0)
        self.last_batch: int | None = None
        self.departures = 0
        self.queued = 0
        self.running = 0
        # the GPUs' work: seconds times share of a device, waiting and running (kept as sums, so O(1) to read)
        self.backlog = 0.0
        self.running_share = 0.0
        self.running_ends = 0.0
        self.gpus = 0
        self.topology = 0
        # when something last ran or was added, and when a device last joined
        self.busy_at = 0.0
        self.joined_at = 0.0
        self.held = ""
        self.stopped = ""

    # devices

    @property
    def cpu_slots(self) -> int:
        """Slots of all CPUs."""
        return sum(cls.slots() for cls in self.classes if cls.is_cpu)

    def add_device(self, device: Device) -> DeviceAccount:
        """Open an account for a new device; the caller queues the groups anew whose options that changes."""
        capacity = device.total_bytes - device.headroom_bytes
        cls = next(
            (
                c
                for c in self.classes
                if (c.kind, c.model, c.capacity) == (device.kind, device.model, capacity)
            ),
            None,
        )
        if cls is None:
            cls = DeviceClass(len(self.classes), device)
            self.classes.append(cls)
            self.alone[cls.index] = []
        host = self.hosts.setdefault(device.host, HostAccount())
        account = DeviceAccount(device, len(self.accounts), cls, host)
        cls.accounts.append(account)
        self.accounts[device.uuid] = account
        host.devices.append(account)
        cls.strangers_moved()
        if device.kind is DeviceKind.CPU:
            host.cpu = account
        else:
            self.gpus += 1
        for other in host.devices:
            other.cls.strangers_moved()
        self.topology += 1
        return account

    # jobs

    def add_job(self, job: Job) -> JobRecord:
        """Remember a new job in the group of its like."""
        if job.batch != self.last_batch:
            self.cohort = Cohort(self.departures, self.job_orders - self.departures)
            self.last_batch = job.batch
        group = self._group_of(job)
        record = JobRecord(job, self.job_orders, self.cohort, self.now, group)
        self.busy_at = self.now
        self.job_orders += 1
        self.records[job.job_id] = record
        self.arrivals.append(record)
        self.wait(record, group)
        return record

    def _group_of(self, job: Job) -> Group:
        key = (job.kind, job.priority, job.allowed, job.prefers)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = self.new_group(job)
        elif group.plans is not job.plans and group.plans != job.plans:
            raise ValueError(
                f"job {job.job_id!r} has other plans than those of its kind {job.kind!r} before it"
            )
        return group

    def new_group(self, job: Job) -> Group:
        """An empty group with the job's own terms."""
        self.group_orders += 1
        return Group(
            self.group_orders, job.kind, job.learns_as, job.plans, job.priority, job.allowed, job.prefers
        )

    def wait(self, record: JobRecord, group: Group, front: bool = False) -> None:
        """Put a job into a group's queue. The caller enqueues the group afterwards, if it isn't."""
        group.push(record, front)
        self.queued += 1
        self.backlog += group.area

    def leave(self, record: JobRecord) -> None:
        """A waiting job stops waiting (its state is set by the caller).

        An emptied group leaves the queues.
        """
        group = record.group
        group.count -= 1
        self.queued -= 1
        self.backlog -= group.area
        if not group.count:
            self.dequeue(group)
            group.jobs.clear()

    def requeue(self, record: JobRecord) -> Group:
        """Back to the front of the group of its like, with no terms of its own."""
        group = self._group_of(record.job)
        self.wait(record, group, front=True)
        return group

    def has_kind_for(self, group: Group) -> bool:
        """True if a worker is there of a kind of device that the group has a plan for."""
        kinds = {kind for plan in group.plans for kind in plan.device_kinds}
        return any(account.slots > 0 and account.cls.kind in kinds for account in self.accounts.values())

    def waiting_groups(self) -> Iterable[Group]:
        """Every group with waiting jobs."""
        for groups in self.families.values():
            yield from groups.values()

    # queues

    def enqueue(self, group: Group) -> bool:
        """Give a group its options and its places in the queues; False if it can run nowhere, ever."""
        group.version += 1
        self._forget(group)
        estimated = (self.estimates.version(group.family), self.estimates.epoch, self.topology)
        if group.estimated != estimated or group.restricted:
            group.estimated = estimated
            self._estimate(group)
        self.families.setdefault(group.family, {})[group.order] = group
        group.queued = bool(group.options)
        has_gpu = group.area > 0.0
        for index, choices in group.options.items():
            self._insert(group, self.classes[index], has_gpu)
            resident = choices[0].plan.resident
            if resident is not None:
                self.classes[index].warm.setdefault(resident.name, {})[group.order] = group
        for uuid in group.prefers:
            self.preferring.setdefault(uuid, {})[group.order] = group
        return group.queued

    def _estimate(self, group: Group) -> None:
        options = group.options = find_options(group, self.classes, self.estimates)
        if self.policy.on_pressure.keeps_off_cpu and not group.rung and self.why_on_cpu(group):
            options = {}
        if self.policy.reproducible:
            options = self._pin(group, options)
        group.options = options
        on_gpu = [index for index in options if not self.classes[index].is_cpu]
        first = options[on_gpu[0]][0].plan if on_gpu else None
        group.cold = (
            first is not None
            and first.footprint.device_bytes > 0
            and not self.estimates.measured(group.family, first)
        )
        # a GPU plan that costs nothing still is one: has_gpu is read from a positive area
        area = min((max(1e-9, options[i][0].share * options[i][0].seconds) for i in on_gpu), default=0.0)
        self.backlog += group.count * (area - group.area)
        group.area = area
        group.best_seconds = min((options[i][0].seconds for i in on_gpu), default=0.0)

    def why_on_cpu(self, group: Group) -> str:
        """The figures, if only the CPU can run a group that is too large for the GPUs that are here.

        Else "".
        """
        return too_large_for_gpus(group, self.classes, self.estimates)

    def _insert(self, group: Group, cls: DeviceClass, has_gpu: bool) -> None:
        choices = group.options[cls.index]
        if not cls.is_cpu and (group.alone or group.cold):
            entry = (-group.priority, choices[0].seconds, group.order, group.version, group)
            heappush(self.alone[cls.index], entry)
        elif group.restricted:
            cls.restricted[group.order] = group
        elif cls.is_cpu and has_gpu:
            cls.takeover.insert(group, choices[0])
        else:
            for option in choices:
                cls.fit.insert(group, option, option.need)

    def _pin(self, group: Group, options: dict[int, tuple[Option, ...]]) -> dict[int, tuple[Option, ...]]:
        """Reproducible.

        One plan on one class of identical devices for each kind, chosen without regard to load.
        """
        pin = self.pinned.get(group.kind)
        if pin is None:
            earlier = self.pins.get(group.kind)
            if earlier is not None:
                options = {i: kept for i, kept in options.items() if self._is_pinned(i, kept, earlier)}
            if not options:
                return options
            # a GPU before the CPU, then the most devices, then the first that joined
            index = min(options, key=lambda i: (self.classes[i].is_cpu, -len(self.classes[i].accounts), i))
            plan = earlier.plan if earlier is not None else options[index][0].plan.name
            pin = self.pinned[group.kind] = (plan, index)
        name, index = pin
        kept = tuple(option for option in options.get(index, ()) if option.plan.name == name)
        return {index: kept} if kept else {}

    def _is_pinned(self, index: int, options: tuple[Option, ...], pin: Pin) -> bool:
        return self.classes[index].model == pin.model and any(
            option.plan.name == pin.plan for option in options
        )

    def why_pinned(self, group: Group) -> str:
        """Why a reproducible run has no place for a group that could run elsewhere; "" if that isn't why."""
        pin = self.pins.get(group.kind)
        if pin is None or not self.policy.reproducible or group.kind in self.pinned:
            return ""
        return (
            f"memory.reproducible: the run's first part did jobs like it by {pin.plan} on "
            f"{pin.model or 'a device'}, and no such device can take it here"
        )

    def _forget(self, group: Group) -> None:
        for index, choices in group.options.items():
            cls = self.classes[index]
            cls.restricted.pop(group.order, None)
            resident = choices[0].plan.resident
            if resident is not None:
                cls.warm.get(resident.name, {}).pop(group.order, None)
        for uuid in group.prefers:
            self.preferring.get(uuid, {}).pop(group.order, None)

    def dequeue(self, group: Group) -> None:
        """Take a group out of the queues; entries in heaps are dropped when they surface."""
        self._forget(group)
        group.queued = False
        group.version += 1
        family = self.families.get(group.family)
        if family is not None:
            family.pop(group.order, None)
            if not family:
                del self.families[group.family]
        self.parked.pop(group.order, None)

    def drain_seconds(self) -> float:
        """Expected seconds until the GPUs will have worked off all that runs and waits, by area."""
        remaining = max(0.0, self.running_ends - self.now * self.running_share)
        return (remaining + max(0.0, self.backlog)) / self.gpus if self.gpus else 0.0
