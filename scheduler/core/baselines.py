"""Simple schedulers to compare with, driven by the same engine.

They are treated kindly: a job that ran out of memory goes to the end of the queue, and after three such ends
it gets a device of its own, as a person would do by hand.
"""

from collections import deque
from collections.abc import Callable

from scheduler.core.events import AttemptEnded, Done, Event, JobsAdded, WorkerJoined, WorkerLost
from scheduler.core.instructions import FinishJob, Instruction, JobOutcome, Start
from scheduler.core.model import Decision, Device, DeviceKind, Job, JobPlan, Placement, Verdict

_DECISION = Decision(Verdict.ADMIT, "baseline")
OOMS_BEFORE_ALONE = 3


class Baseline:
    """First in, first out over GPU slots, memory-blind: what plain `client.map` does."""

    name = "client.map"
    skips = False
    """Whether a later job may start while an earlier one can't."""

    def __init__(self, devices: tuple[Device, ...], used: Callable[[str], int]) -> None:
        self.devices = [device for device in devices if device.kind is not DeviceKind.CPU]
        self.cpus = [device for device in devices if device.kind is DeviceKind.CPU]
        self.used = used
        self.queue: deque[Job] = deque()
        self.running: dict[str, dict[str, tuple[Job, int]]] = {device.uuid: {} for device in devices}
        self.lost: set[str] = set()
        self.ooms: dict[str, int] = {}
        self.attempts: dict[str, int] = {}
        self.alone: set[str] = set()

    def slots(self, device: Device) -> int:
        """Jobs at one time on a device."""
        return device.slots

    def admits(self, device: Device, plan: JobPlan) -> bool:
        """Whether the device takes this plan of a job now, beside its slots."""
        return plan.footprint.device_bytes <= device.total_bytes

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event in and return what to do now."""
        out: list[Instruction] = []
        if isinstance(event, JobsAdded):
            self.queue.extend(event.jobs)
        elif isinstance(event, AttemptEnded):
            self._ended(event, out)
        elif isinstance(event, WorkerLost):
            self.lost.add(event.uuid)
            for job, _ in self.running[event.uuid].values():
                self.queue.append(job)
            self.running[event.uuid].clear()
        elif isinstance(event, WorkerJoined):
            self.lost.discard(event.device.uuid)
        self._fill(out)
        return out

    def _ended(self, event: AttemptEnded, out: list[Instruction]) -> None:
        for running in self.running.values():
            found = running.pop(event.job_id, None)
            if found is None:
                continue
            if isinstance(event.outcome, Done):
                out.append(FinishJob(event.job_id, JobOutcome.DONE, _DECISION))
            else:
                self.ooms[event.job_id] = self.ooms.get(event.job_id, 0) + 1
                self.queue.append(found[0])
        self.alone.discard(event.job_id)

    def _fill(self, out: list[Instruction]) -> None:
        passed: list[Job] = []
        open_slots = sum(self.slots(d) - len(self.running[d.uuid]) for d in (*self.devices, *self.cpus))
        hopeless = 1 << 62
        while self.queue and open_slots > 0:
            job = self.queue.popleft()
            need = job.plans[0].footprint.device_bytes
            # what is as large as a job that found no device finds none either
            chosen = self._choose(job) if need < hopeless else None
            if chosen is None:
                hopeless = min(hopeless, need)
                passed.append(job)
                if not self.skips:
                    break
                continue
            device, plan, alone = chosen
            open_slots -= 1
            attempt = self.attempts[job.job_id] = self.attempts.get(job.job_id, 0) + 1
            self.running[device.uuid][job.job_id] = (job, plan.footprint.device_bytes)
            if alone:
                self.alone.add(job.job_id)
            footprint = plan.footprint
            placement = Placement(
                job.job_id,
                attempt,
                device.uuid,
                device.host,
                plan,
                footprint.device_bytes,
                footprint.host_bytes,
            )
            out.append(Start(placement, _DECISION))
        self.queue.extendleft(reversed(passed))

    def _choose(self, job: Job) -> tuple[Device, JobPlan, bool] | None:
        alone = self.ooms.get(job.job_id, 0) >= OOMS_BEFORE_ALONE
        for plan in job.plans:
            devices = self.cpus if plan.on_cpu else self.devices
            if plan.on_cpu and any(not other.on_cpu for other in job.plans):
                continue
            open_devices = [
                device
                for device in devices
                if device.uuid not in self.lost
                and len(self.running[device.uuid]) < (1 if alone else self.slots(device))
                and not any(name in self.alone for name in self.running[device.uuid])
                and (
                    not alone or plan.on_cpu or device.total_bytes == max(d.total_bytes for d in self.devices)
                )
                and (plan.on_cpu or self.admits(device, plan))
            ]
            if open_devices:
                return min(open_devices, key=lambda device: len(self.running[device.uuid])), plan, alone
        return None


class OneJobEach(Baseline):
    """Dask's `resources={"GPU": 1}`: one job on each GPU at a time."""

    name = "GPU: 1"

    def slots(self, device: Device) -> int:
        return device.slots if device.kind is DeviceKind.CPU else 1


class NvmlGreedy(Baseline):
    """Admits by what NVML says is free at that moment.

    Blind to what was just admitted and hasn't allocated yet.
    """

    name = "NVML-greedy"
    skips = True

    def admits(self, device: Device, plan: JobPlan) -> bool:
        return (
            self.used(device.uuid) + plan.footprint.device_bytes + device.headroom_bytes <= device.total_bytes
        )


class LedgerOnly(Baseline):
    """Admits by the sum of declared footprints: blind to other programs and to wrong declarations."""

    name = "ledger only"
    skips = True

    def admits(self, device: Device, plan: JobPlan) -> bool:
        reserved = sum(nbytes for _, nbytes in self.running[device.uuid].values())
        return reserved + plan.footprint.device_bytes + device.headroom_bytes <= device.total_bytes


class FirstGpu(OneJobEach):
    """Everything on one GPU, the largest, one job at a time (as OpenHCS assigns its first GPU)."""

    name = "first GPU"

    def __init__(self, devices: tuple[Device, ...], used: Callable[[str], int]) -> None:
        super().__init__(devices, used)
        self.devices = sorted(self.devices, key=lambda device: -device.total_bytes)[:1]


BASELINES: tuple[type[Baseline], ...] = (Baseline, OneJobEach, NvmlGreedy, LedgerOnly, FirstGpu)
