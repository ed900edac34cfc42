"""Short ways to write devices, jobs and snapshots in tests. Sizes in GiB."""

from scheduler.core.dispatcher import Dispatcher
from scheduler.core.events import AttemptEnded, Done, JobsAdded, SnapshotTaken
from scheduler.core.instructions import FinishJob, Start
from scheduler.core.model import (
    Device,
    DeviceKind,
    DeviceSnapshot,
    Footprint,
    Job,
    JobPlan,
    ProcessMemory,
    Resident,
    Split,
)
from scheduler.core.policy import OnPressure, Policy

GIB = 1 << 30
GPU = (DeviceKind.CUDA, DeviceKind.VIRTUAL)


def gpu(number=0, total=8, slots=2, model="A", headroom=0, host="host"):
    return Device(
        f"g{number}", f"gpu{number}", GPU[0], int(total * GIB), slots, model, host, int(headroom * GIB)
    )


def cpu(total=32, slots=2, host="host"):
    return Device(f"c-{host}", "cpu", DeviceKind.CPU, int(total * GIB), slots, "cpu", host)


def on_gpu(need, host=0.1, cost=1.0, name="torch", **rest):
    return JobPlan(name, GPU, Footprint(int(need * GIB), int(host * GIB)), cost=cost, **rest)


def on_cpu(host=0.1, cost=10.0, name="numpy"):
    return JobPlan(name, (DeviceKind.CPU,), Footprint(0, int(host * GIB)), cost=cost)


def in_blocks(need, blocks, host=0.1, cost=2.0):
    return on_gpu(need, host, cost, f"torch/{blocks}", split=Split("z", blocks))


def resident(name="weights", nbytes=1):
    return Resident(name, int(nbytes * GIB))


def job(name, *plans, kind=None, **rest):
    return Job(name, kind or name, plans, **rest)


def jobs(count, *plans, kind="k", start=0, **rest):
    return [job(f"{kind}{number}", *plans, kind=kind, **rest) for number in range(start, start + count)]


class World:
    """A dispatcher with known devices; instructions are kept, and what runs."""

    def __init__(self, *devices, estimates=None, probed=True, pins=None, **policy):
        self.devices = {device.uuid: device for device in devices}
        policy["on_pressure"] = OnPressure(policy.get("on_pressure", "earliest-finish"))
        self.dispatcher = Dispatcher(Policy(**policy), devices, estimates, pins=pins)
        self.now = 0.0
        self.running = {}
        self.finished = {}
        self.instructions = []
        if probed:
            for device in devices:
                self.snapshot(device.uuid)

    def tell(self, event):
        found = self.dispatcher.handle(event)
        self.instructions += found
        for instruction in found:
            if isinstance(instruction, Start):
                self.running[instruction.placement.job_id] = instruction.placement
            elif isinstance(instruction, FinishJob):
                self.running.pop(instruction.job_id, None)
                self.finished[instruction.job_id] = instruction
        return found

    def add(self, *jobs):
        return self.tell(JobsAdded(self.now, jobs))

    def snapshot(self, uuid, used=0, problem="", **process):
        device = self.devices[uuid]
        memory = (
            (ProcessMemory(1, **{key: int(value * GIB) for key, value in process.items()}),)
            if process
            else ()
        )
        used_bytes = None if used is None else int(used * GIB)
        found = DeviceSnapshot(uuid, device.total_bytes, used_bytes, memory, problem)
        return self.tell(SnapshotTaken(self.now, found))

    def other_run_reserves(self, uuid, nbytes, unused=0):
        device = self.devices[uuid]
        memory = (ProcessMemory(2, 0, 0, int(nbytes * GIB), ours=False, unused_bytes=int(unused * GIB)),)
        return self.tell(SnapshotTaken(self.now, DeviceSnapshot(uuid, device.total_bytes, 0, memory)))

    def end(self, name, outcome=None, after=1.0):
        self.now += after
        placement = self.running.pop(name)
        if outcome is None:
            need = placement.plan.footprint
            outcome = Done(need.device_bytes or None, need.host_bytes, placement.plan.cost, attributed=True)
        return self.tell(AttemptEnded(self.now, name, placement.attempt, outcome))

    def measure(self, *plans, kind="k", family=""):
        """Let one job of a kind run on each sort of device, so that peaks and durations are known."""
        for plan in plans:
            name = f"first-{kind}-{plan.name}"
            first = Job(name, name, (plan,), family=family or kind)
            self.add(first)
            if name in self.running:
                self.end(name)

    def reason(self, name):
        return {waits.job_id: waits.reason for waits in self.dispatcher.waiting()}[name]

    def where(self, name):
        return self.running[name].device
