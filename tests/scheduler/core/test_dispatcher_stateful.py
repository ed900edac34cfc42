"""Random events against the dispatcher, with every invariant checked after each."""

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.core.dispatcher import Dispatcher
from scheduler.core.events import (
    AdmissionHeld,
    AttemptBegan,
    AttemptEnded,
    Cancel,
    Cancelled,
    DeviceReleased,
    Done,
    Failed,
    JobAdded,
    JobsAdded,
    OutOfMemory,
    Refused,
    ResidentEvicted,
    SnapshotTaken,
    Tick,
    TimedOut,
    WorkerDied,
    WorkerJoined,
    WorkerLost,
)
from scheduler.core.instructions import CancelAttempt, Evict, FinishJob, JobOutcome, Retry, Start, StopRun
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
from tests.scheduler.core.invariants import check_invariants

MIB = 1 << 20
DEVICES = (
    Device("g0", "gpu0", DeviceKind.CUDA, 8000 * MIB, 2, "A", "h0", 100 * MIB),
    Device("g1", "gpu1", DeviceKind.CUDA, 8000 * MIB, 2, "A", "h0", 100 * MIB, prefetch=1),
    Device("g2", "gpu2", DeviceKind.CUDA, 16000 * MIB, 3, "B", "h1", 100 * MIB),
    Device("v0", "virtual0", DeviceKind.VIRTUAL, 4000 * MIB, 1, "V", "h1"),
    Device("c0", "cpu0", DeviceKind.CPU, 20000 * MIB, 2, "cpu", "h0", prefetch=2),
    Device("c1", "cpu1", DeviceKind.CPU, 10000 * MIB, 0, "cpu", "h1"),
)
BY_UUID = {device.uuid: device for device in DEVICES}
UUIDS = st.sampled_from(sorted(BY_UUID))
LIMITS = st.sampled_from([0, 1000 * MIB, 4000 * MIB])
GPU = (DeviceKind.CUDA, DeviceKind.VIRTUAL)
TIMEOUT_S = 30.0


@st.composite
def kinds(draw):
    device_mib = draw(st.integers(1, 20000))
    host_mib = draw(st.integers(0, 6000))
    resident = Resident(f"model{draw(st.integers(0, 1))}", draw(st.integers(1, 3000)) * MIB)
    plans = [
        JobPlan(
            "torch",
            draw(st.sampled_from([GPU, (DeviceKind.CUDA,)])),
            Footprint(device_mib * MIB, host_mib * MIB),
            cost=draw(st.floats(0.1, 50)),
            resident=draw(st.sampled_from([None, None, resident])),
        )
    ]
    if draw(st.booleans()):
        plans.append(JobPlan("lean", GPU, Footprint(device_mib * MIB // 2, host_mib * MIB), cost=60))
    if draw(st.booleans()):
        split = Footprint(device_mib * MIB // 4, host_mib * MIB)
        plans.append(JobPlan("torch/4", GPU, split, split=Split("z", 4), cost=70))
    if draw(st.booleans()):
        plans.append(JobPlan("numpy", (DeviceKind.CPU,), Footprint(0, host_mib * MIB), cost=100))
    return tuple(plans)


class DispatcherMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.jobs = 0
        self.kinds = []
        self.running = {}
        self.began = {}
        self.overdue = set()
        self.cancelled = set()
        self.ended = {}
        self.log = []
        self.asked = []
        self.external = dict.fromkeys(BY_UUID, 0)
        self.limits = dict.fromkeys(BY_UUID, 0)

    @initialize(
        mode=st.sampled_from(list(OnPressure)),
        reproducible=st.booleans(),
        elastic=st.booleans(),
        overtake_limit=st.integers(0, 4),
        some=st.lists(kinds(), min_size=2, max_size=4),
    )
    def begin(self, mode, reproducible, elastic, overtake_limit, some):
        policy = Policy(
            mode, reproducible, elastic, join_wait_s=5.0, max_failures=5, overtake_limit=overtake_limit
        )
        self.policy = policy
        self.kinds = some
        self.dispatcher = Dispatcher(policy, DEVICES)
        for device in DEVICES:
            self.tell(SnapshotTaken(self.now, DeviceSnapshot(device.uuid, device.total_bytes, 0)))

    def tell(self, event):
        self.log.append(event)
        for instruction in self.dispatcher.handle(event):
            self.log.append(instruction)
            if isinstance(instruction, Start):
                placement = instruction.placement
                assert placement.job_id not in self.running, "one job in two places"
                assert placement.job_id not in self.ended, "a finished job was started again"
                device = BY_UUID[placement.device]
                assert device.kind in placement.plan.device_kinds
                assert placement.host_bytes <= (self.limits[placement.device] or placement.host_bytes)
                self.running[placement.job_id] = placement
                self.began.pop(placement.job_id, None)
                self.overdue.discard(placement.job_id)
            elif isinstance(instruction, FinishJob):
                assert instruction.job_id not in self.ended, "a job ended twice"
                assert instruction.decision.reason
                self.running.pop(instruction.job_id, None)
                self.ended[instruction.job_id] = instruction.outcome
                if instruction.job_id in self.cancelled:
                    assert instruction.outcome in (JobOutcome.CANCELLED, JobOutcome.DONE)
            elif isinstance(instruction, Retry):
                assert instruction.job_id not in self.cancelled, "a cancelled job was put back"
                self.running.pop(instruction.job_id, None)
            elif isinstance(instruction, CancelAttempt) and instruction.restart_worker:
                assert instruction.attempt == self.running[instruction.job_id].attempt
                assert self.now - self.began[instruction.job_id] > TIMEOUT_S - 1e-6
                assert instruction.job_id not in self.overdue, "an attempt was stopped twice"
                self.overdue.add(instruction.job_id)
            elif isinstance(instruction, Evict):
                self.asked.append(instruction)
            else:
                assert isinstance(instruction, CancelAttempt | StopRun) or instruction.decision.reason

    def forward(self, by):
        self.now += by
        return self.now

    def some_running(self, data):
        return self.running[data.draw(st.sampled_from(sorted(self.running)))]

    def new_job(self, data):
        self.jobs += 1
        number = data.draw(st.integers(0, len(self.kinds) - 1))
        allowed = data.draw(st.sampled_from([None, None, None, frozenset({"g0", "c0"}), frozenset({"g2"})]))
        return Job(
            f"j{self.jobs}",
            f"kind{number}",
            self.kinds[number],
            family=f"family{number % 2}",
            priority=data.draw(st.integers(0, 1)),
            batch=data.draw(st.sampled_from([self.jobs // 3, self.jobs])),
            timeout_s=TIMEOUT_S if self.jobs % 2 else None,
            allowed=allowed,
            prefers=data.draw(st.sampled_from([frozenset(), frozenset({"g1"})])),
        )

    @rule(data=st.data())
    def add(self, data):
        self.tell(JobAdded(self.forward(0.1), self.new_job(data)))

    @rule(data=st.data(), count=st.integers(1, 6))
    def add_many(self, data, count):
        jobs = tuple(self.new_job(data) for _ in range(count))
        self.tell(JobsAdded(self.forward(0.1), jobs))

    @rule(data=st.data(), share=st.floats(0.5, 1.5), attributed=st.booleans(), measured=st.booleans())
    def done(self, data, share, attributed, measured):
        if self.running:
            placement = self.some_running(data)
            declared = placement.plan.footprint
            peak = int(declared.device_bytes * share) if measured and declared.device_bytes else None
            outcome = Done(peak, int(declared.host_bytes * share), placement.plan.cost * share, attributed)
            self.tell(AttemptEnded(self.forward(1.0), placement.job_id, placement.attempt, outcome))

    @rule(data=st.data(), share=st.floats(0.1, 1.5), on_host=st.booleans(), known=st.booleans())
    def out_of_memory(self, data, share, on_host, known):
        if self.running:
            placement = self.some_running(data)
            peak = int((placement.reserve_bytes or placement.host_bytes) * share) if known else None
            outcome = OutOfMemory(peak, None, on_host)
            self.tell(AttemptEnded(self.forward(0.5), placement.job_id, placement.attempt, outcome))

    @rule(
        data=st.data(),
        outcome=st.sampled_from(
            [
                Failed("no such file"),
                Refused("less than thought"),
                WorkerDied(),
                WorkerDied("retired", blame=False),
                TimedOut("too long"),
                Cancelled("stopped"),
            ]
        ),
    )
    def end_otherwise(self, data, outcome):
        if self.running:
            placement = self.some_running(data)
            self.tell(AttemptEnded(self.forward(0.5), placement.job_id, placement.attempt, outcome))

    @rule(data=st.data())
    def stale_end(self, data):
        if self.running:
            placement = self.some_running(data)
            before = len(self.running)
            self.tell(AttemptEnded(self.now, placement.job_id, placement.attempt + 1, Done()))
            self.tell(AttemptEnded(self.now, "nobody", 1, Done()))
            assert len(self.running) == before

    @rule(data=st.data(), elapsed_s=st.floats(0, 10), stale=st.booleans())
    def begins(self, data, elapsed_s, stale):
        if self.running:
            placement = self.some_running(data)
            event = AttemptBegan(self.forward(0.1), placement.job_id, placement.attempt + stale, elapsed_s)
            if not stale:
                began = self.now - elapsed_s
                self.began[placement.job_id] = max(began, self.began.get(placement.job_id, began))
            self.tell(event)

    @rule(data=st.data())
    def leave_device(self, data):
        if self.running:
            placement = self.some_running(data)
            self.tell(DeviceReleased(self.forward(0.2), placement.job_id, placement.attempt))

    @rule(
        uuid=UUIDS,
        share=st.one_of(st.none(), st.floats(0, 1)),
        held=st.integers(0, 3000),
        idle=st.floats(0, 1),
    )
    def snapshot(self, uuid, share, held, idle):
        device = BY_UUID[uuid]
        used = None if share is None else int(device.total_bytes * share)
        held_bytes = min(held * MIB, used or 0)
        ours = ProcessMemory(1, held_bytes, int(held_bytes * idle), 0)
        other = ProcessMemory(2, 0, 0, 500 * MIB, ours=False)
        snapshot = DeviceSnapshot(uuid, device.total_bytes, used, (ours, other), "" if used else "no answer")
        self.tell(SnapshotTaken(self.forward(0.2), snapshot))

    @rule(uuid=UUIDS)
    def free_again(self, uuid):
        device = BY_UUID[uuid]
        self.tell(SnapshotTaken(self.forward(0.2), DeviceSnapshot(uuid, device.total_bytes, 0)))

    @rule(uuid=UUIDS, blame=st.booleans(), left=st.integers(0, 1))
    def lose_worker(self, uuid, blame, left):
        device = BY_UUID[uuid]
        hung = min((name for name, p in self.running.items() if p.device == uuid), default=None)
        self.tell(WorkerLost(self.forward(0.1), uuid, min(left, device.slots), None, "gone", blame, hung))

    @rule(uuid=UUIDS, left=st.integers(0, 2), limit=LIMITS)
    def drain(self, uuid, left, limit):
        """Processes leave, and what runs in them goes on; those that remain may take more, or less."""
        before = dict(self.running)
        slots = min(left, BY_UUID[uuid].slots)
        self.limits[uuid] = limit
        told = WorkerLost(self.forward(0.1), uuid, slots, (), "retired", False, attempt_host_bytes=limit)
        self.tell(told)
        assert before.items() <= self.running.items()

    @rule(uuid=UUIDS, limit=LIMITS)
    def join(self, uuid, limit):
        self.limits[uuid] = limit
        self.tell(WorkerJoined(self.forward(0.1), replace(BY_UUID[uuid], attempt_host_bytes=limit)))

    @rule(uuid=UUIDS, name=st.sampled_from(["model0", "model1"]))
    def evicted(self, uuid, name):
        self.tell(ResidentEvicted(self.forward(0.1), uuid, name))

    @rule(held=st.booleans())
    def hold(self, held):
        self.tell(AdmissionHeld(self.forward(0.1), "the disk is full" if held else ""))

    @rule(seconds=st.floats(0, 40))
    def tick(self, seconds):
        self.tell(Tick(self.forward(seconds)))
        late = {
            name
            for name in self.running
            if int(name[1:]) % 2 and self.now - self.began.get(name, self.now) > TIMEOUT_S + 1e-6
        }
        assert late <= self.overdue

    @rule(data=st.data())
    def cancel(self, data):
        if self.jobs:
            name = f"j{data.draw(st.integers(1, self.jobs))}"
            self.cancelled |= {name} - self.ended.keys()
            self.tell(Cancel(self.forward(0.1), name))

    @invariant()
    def holds(self):
        if hasattr(self, "dispatcher"):
            check_invariants(self.dispatcher)
            assert self.dispatcher.running == len(self.running)
            assert self.dispatcher.running + self.dispatcher.queued + len(self.ended) == self.jobs

    def teardown(self):
        if not hasattr(self, "dispatcher"):
            return
        self.everything_ends()
        self.same_events_same_instructions()

    def everything_ends(self):
        """With a calm cluster every job comes to an end: nothing feasible starves, nothing waits in vain."""
        self.limits = dict.fromkeys(BY_UUID, 0)
        for device in DEVICES:
            self.tell(WorkerJoined(self.forward(0.1), device))
            self.tell(SnapshotTaken(self.now, DeviceSnapshot(device.uuid, device.total_bytes, 0)))
        self.tell(AdmissionHeld(self.now, ""))
        stopped = any(isinstance(entry, StopRun) for entry in self.log)
        for _ in range(10 * self.jobs + 10):
            if len(self.ended) == self.jobs or stopped:
                return
            if self.running:
                placement = self.running[sorted(self.running)[0]]
                outcome = Done(placement.plan.footprint.device_bytes or None, None, 1.0, attributed=True)
                self.tell(AttemptEnded(self.forward(1.0), placement.job_id, placement.attempt, outcome))
            else:
                asked, self.asked = self.asked, []
                for evict in asked:
                    self.tell(ResidentEvicted(self.now, evict.device, evict.name))
                self.tell(Tick(self.forward(1.0)))
        left = list(self.dispatcher.waiting())
        assert not left, left

    def same_events_same_instructions(self):
        twin = Dispatcher(self.policy, DEVICES)
        answers = []
        for entry in self.log:
            if hasattr(entry, "now"):
                answers += [entry, *twin.handle(entry)]
        assert answers == self.log


TestDispatcher = DispatcherMachine.TestCase
TestDispatcher.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
