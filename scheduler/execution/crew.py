"""Who works for a run: worker processes that come, leave, die or are replaced, and what that means."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.core.events import Event, WorkerJoined, WorkerLost
from scheduler.core.model import Device, DeviceKind
from scheduler.execution.fleet import Fleet
from scheduler.execution.messages import Hello, Leaving, Unfit
from scheduler.execution.record import JournalRecord
from scheduler.execution.task import AttemptKey
from scheduler.execution.worker_process import WorkerProcess

# A nanny's word on the end of its process may overtake the process's own last words.
JUDGEMENT_S = 0.1
# A nanny tries once to bring its process back and then gives up; on a busy machine that once takes its time.
ABSENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class ClusterTerms:
    """What may be expected of a cluster's workers.

    `elastic`: others may come, however late, as long as `expected` says so. `drain_s`: how long one that is
    closing ends its attempts.
    """

    elastic: bool = False
    drain_s: float = 0.0
    expected: Callable[[], bool] = lambda: True


@dataclass(eq=False)
class Crew:
    """Keeps the account of the fleet's processes for the driver.

    Attributes
    ----------
    feed
        Takes an event to the dispatcher.
    end_with
        Ends an attempt whose process has gone: (attempt, process, whether the attempt may be to blame).
    needed
        The memory types that plans for a kind of device use, so that a worker without them isn't used.
    unfit
        Processes of the cluster that can't serve.
    """

    fleet: Fleet
    record: JournalRecord
    terms: ClusterTerms
    feed: Callable[[Event], None]
    end_with: Callable[[AttemptKey, WorkerProcess, bool], None]
    needed: Callable[[DeviceKind], frozenset[str]]
    unfit: list[Unfit] = field(default_factory=list)
    gone: list[WorkerProcess] = field(default_factory=list)
    _answered: set[str] = field(default_factory=set)
    _left: set[str] = field(default_factory=set)
    _told: dict[str, Device] = field(default_factory=dict)
    _absent_since: dict[str, float] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _over: bool = False

    # what other threads may call

    def wait_for_all(self, count: int, timeout_s: float) -> bool:
        """Wait until so many processes have said hello, or that they can't serve, or have left."""
        with self._changed:
            there = self._changed.wait_for(lambda: self._over or len(self._answered) >= count, timeout_s)
            return there and not self._over

    def wait_for_one(self, timeout_s: float) -> None:
        """Wait until there is a process that serves, or it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or bool(self.fleet.processes), timeout_s)

    def close(self) -> None:
        """Nobody needs to wait any more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    # the driver's thread

    def hello(self, hello: Hello) -> None:
        """A process is ready for attempts, unless its end was told before."""
        if hello.worker_id in self._left:
            return
        self._answered.add(hello.address)
        process = self.fleet.add(hello)
        for problem in hello.problems:
            self.record.remark(f"worker {hello.name}: {problem}")
        missing = self.needed(hello.device.kind) - set(hello.installed)
        if missing:
            process.leaving = f"it lacks {', '.join(sorted(missing))}"
            self.record.remark(f"worker {hello.name} isn't used: {process.leaving}")
        self.devices_changed("")
        self._tell_waiting()

    def cannot_serve(self, unfit: Unfit) -> None:
        """A process of the cluster can't be one of the run's."""
        self.unfit.append(unfit)
        self._answered.add(unfit.address)
        self.record.remark(f"worker {unfit.name} isn't used: {unfit.reason}")
        self._tell_waiting()

    def leaving(self, leaving: Leaving) -> None:
        """A process is about to go: it ends what it has begun."""
        process = self.fleet.get(leaving.address)
        if process is None:
            return
        if not process.leaving:
            process.leaving, process.let_go = leaving.reason, leaving.let_go
            process.outgrown = leaving.outgrown
            self.devices_changed(leaving.reason)
        if leaving.begun is not None:
            for key in process.in_flight.keys() - leaving.begun:
                self.end_with(key, process, False)
        self.replace_if_empty(process)

    def retire(self, process: WorkerProcess, reason: str, *, broken: bool) -> None:
        """Replace a process once its attempts have ended; without a nanny only if it is broken."""
        if process.leaving or not (process.hello.has_nanny or broken):
            return
        self.record.remark(f"worker {process.hello.name} is replaced: {reason}")
        process.leaving, process.retired = reason, True
        self.devices_changed(reason)

    def replace_if_empty(self, process: WorkerProcess) -> None:
        """End a process that is to be replaced or let go, if nothing is in flight there."""
        if process.left_at is not None or process.in_flight:
            return
        if process.let_go:
            self.fleet.let_go(process)
        elif process.retired:
            self.fleet.restart(process)

    def left(self, address: str, worker_id: str, *, expected: bool) -> None:
        """The scheduler has removed a process."""
        self._left.add(worker_id)
        self._answered.add(address)
        process = self.fleet.get(address)
        if process is not None and process.hello.worker_id == worker_id and process.left_at is None:
            process.left_at = time.monotonic()
            # One that the scheduler was asked to remove may be there still, and tell of its attempts.
            process.drains = expected and not process.ended_by_us
            if expected:
                process.leaving = process.leaving or "it was retired"
            self.gone.append(process)
            self.devices_changed("its worker process has gone")
        self._tell_waiting()

    def judge(self, now: float) -> None:
        """End the attempts of those that have left and can't tell of them any more."""
        for process in list(self.gone):
            assert process.left_at is not None
            patience = JUDGEMENT_S + (self.terms.drain_s if process.drains else 0.0)
            if process.in_flight and now - process.left_at < patience:
                continue
            self.gone.remove(process)
            self.fleet.remove(process)
            blame = not process.leaving and not process.ended_by_us
            suspects = process.may_have_begun if blame or process.outgrown else frozenset()
            for key in list(process.in_flight):
                self.end_with(key, process, key in suspects)

    def devices_changed(self, reason: str) -> None:
        """Tell the dispatcher how many attempts each device can take now, and how large ones."""
        now = time.monotonic()
        # The hosts' memory first: a GPU's job needs it too.
        devices = sorted(self.fleet.devices().values(), key=lambda device: device.kind is not DeviceKind.CPU)
        for device in devices:
            before = self._told.get(device.uuid)
            if before is not None and _takes(before) == _takes(device):
                continue
            self._told[device.uuid] = device
            if before is None or device.slots > before.slots:
                # Its processes join one by one; the record keeps the most that it could take at once.
                self.record.add_devices([device])
            if before is None or device.slots >= before.slots:
                self._absent_since.pop(device.uuid, None)
                self.feed(WorkerJoined(now, device))
            else:
                # Its running attempts end, or are ended, one by one.
                limit = device.attempt_host_bytes if device.slots else None
                self.feed(WorkerLost(now, device.uuid, device.slots, (), reason, attempt_host_bytes=limit))
            if before is not None and before.slots and not device.slots:
                self._absent_since[device.uuid] = now

    def nobody_comes(self, now: float) -> bool:
        """True if no process is left that could take an attempt, and none is to be expected."""
        if any(device.slots for device in self._told.values()):
            return False
        if self.terms.elastic:
            return bool(self._told) and not self.terms.expected()
        return any(now - since >= ABSENCE_S for since in self._absent_since.values())

    def _tell_waiting(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _takes(device: Device) -> tuple[int, int]:
    """How many attempts, and how large ones; without a process nobody says how large."""
    return device.slots, device.attempt_host_bytes if device.slots else 0
