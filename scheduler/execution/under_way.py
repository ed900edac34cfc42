"""The attempts that are under way: sent to workers, followed, and brought to their ends."""

import queue
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from distributed import Future
from distributed.scheduler import KilledWorker

from scheduler.core.events import (
    AttemptEnded,
    Cancelled,
    Done,
    Event,
    Failed,
    Outcome,
    OutOfMemory,
    TimedOut,
    WorkerDied,
)
from scheduler.core.model import DeviceKind, Placement
from scheduler.execution.activity import BEHIND
from scheduler.execution.crew import ClusterTerms, Crew
from scheduler.execution.fleet import Fleet
from scheduler.execution.record import JournalRecord
from scheduler.execution.task import AttemptKey, AttemptReport, AttemptTask, Returned
from scheduler.execution.watchdog import Watchdog
from scheduler.execution.worker_process import WorkerProcess

STOP_GRACE_S = 10.0
LOST_ARRAY = "its worker has gone with its array"
# A task's end and the report of its attempt come by one way, the report first.
UNTOLD_S = 15.0
# A job that is sent back through no fault of its own so often doesn't get on here.
MAX_REQUEUES = 32


@dataclass(frozen=True, slots=True)
class Fetched:
    """The arrays of an attempt are here, or the error for which they aren't."""

    key: AttemptKey
    report: AttemptReport
    array: Any
    error: BaseException | None


@dataclass(slots=True)
class Attempt:
    """An attempt in a worker, as the driver follows it; `future` is None until it is sent."""

    placement: Placement
    returns_array: bool
    future: Future | None = None
    done: bool = False
    killed: bool = False
    finished_at: float | None = None
    cancelled_at: float | None = None
    reason: str = ""


class UnderWay(ABC):
    """The driver's part that sends attempts and takes their ends; in the driver's thread."""

    def __init__(
        self,
        fleet: Fleet,
        record: JournalRecord,
        make_task: Callable[[Placement], AttemptTask],
        needed: Callable[[DeviceKind], frozenset[str]],
        terms: ClusterTerms,
    ) -> None:
        self._fleet = fleet
        self._record = record
        self._make_task = make_task
        self.crew = Crew(fleet, record, terms, self._feed, self._end_with_worker, needed)
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._last: dict[str, tuple[Placement, AttemptReport | None, Any]] = {}
        self._cut_short: set[str] = set()
        self._watchdog = Watchdog()
        self._fetcher = ThreadPoolExecutor(2, thread_name_prefix="stackyard-fetch")
        self._requeues: Counter[str] = Counter()
        self.state = "running"

    @abstractmethod
    def _feed(self, event: Event) -> None:
        """Give an event to the dispatcher, and do what it asks for."""

    @abstractmethod
    def _hold_for_disk(self, reason: str) -> None:
        """A disk is full: start nothing more."""

    def _submit(self, placement: Placement) -> None:
        self._record.started(placement)
        key = placement.job_id, placement.attempt
        task = self._make_task(placement)
        if placement.job_id in self._cut_short and task.output is not None:
            # What is in the places of its output can only be an earlier attempt's.
            task = replace(task, output=replace(task.output, overwrite=True))
        try:
            why_not = self._fleet.give(task, device=placement.device)
        except Exception as error:  # noqa: BLE001  what one job holds may be what can't be sent
            why_not = self._unsent(error)
        if why_not is not None:
            self._inbox.put(partial(self._conclude, placement, why_not, None))
            return
        self._attempts[key] = Attempt(placement, task.returns_array)

    def _unsent(self, error: Exception) -> Outcome:
        reason = f"the attempt can't be sent: {type(error).__name__}: {error}"
        return Failed(reason) if self._fleet.connected else WorkerDied(reason, blame=False)

    def _send(self) -> None:
        """Send what was started meanwhile."""
        for process, key in self._fleet.unsent:
            if self.state != "running" or not process.usable:
                why = process.leaving or "nothing more is sent"
                self._end(key, WorkerDied(why, blame=False), None)
        for process, key, future in self._fleet.send():
            if isinstance(future, Exception):
                why_not = self._unsent(future)
                self._inbox.put(partial(self._end, key, why_not, None))
            else:
                self._attempts[key].future = future
                self._watchdog.submitted(key, process.address, time.monotonic())

    def _take_back(self, process: WorkerProcess, keys: Sequence[AttemptKey]) -> None:
        """Give those that wait in a process behind one that takes long to others, unless none has room."""
        others = [each for each in self._fleet.processes_of(process.hello.device.uuid) if each is not process]
        keys = [key for key in keys if any(each.holds_beside(process.host_bytes[key]) for each in others)]
        unsent = [key for key in keys if key in process.outbox]
        self._fleet.take_back(process, [key for key in keys if key not in process.unfetched.union(unsent)])
        for key in unsent:
            self._end(key, WorkerDied(BEHIND, blame=False), None)

    def _look_after_tasks(self, now: float) -> None:
        """The report tells how an attempt ended; this is for tasks that could not even be run.

        A callback for each task would take a thread's turn at the end of every attempt.
        """
        for key, attempt in list(self._attempts.items()):
            future = attempt.future
            if future is None:
                continue
            if future.status == "finished" and not attempt.done:
                attempt.finished_at = attempt.finished_at or now
                if now - attempt.finished_at >= UNTOLD_S:
                    self._end(key, WorkerDied("its task has ended without a word", blame=False), None)
                continue
            if future.status in ("pending", "finished") or attempt.cancelled_at is not None or attempt.killed:
                continue
            if future.status != "error":
                if self._fleet.connected:
                    dropped = f"Dask dropped its task ({future.status})"
                    self._end(key, WorkerDied(dropped, blame=False), None)
                continue
            error = future.exception()
            attempt.killed = isinstance(error, KilledWorker)
            if not attempt.killed:  # a worker's end is told by the scheduler's plugin
                reason = f"the worker can't run the attempt: {type(error).__name__}: {error}"
                others = sum(other.future is future for other in self._attempts.values()) > 1
                self._end(key, WorkerDied(reason, blame=False) if others else Failed(reason), None)

    def _ended(self, key: AttemptKey, report: AttemptReport, returned: Returned | None) -> None:
        attempt = self._attempts.get(key)
        if attempt is None:
            return
        process = self._fleet.process_of(key)
        if report.retire and process is not None:
            self.crew.retire(process, report.retire, broken=isinstance(report.outcome, WorkerDied))
        if report.disk_full and self.state == "running":
            self._hold_for_disk(report.disk_full)
        if isinstance(report.outcome, Done) and attempt.returns_array and returned is None:
            attempt.done = True
            assert attempt.future is not None
            if process is not None:
                process.unfetched.add(key)
            self._fetcher.submit(self._fetch, key, report, attempt.future)
            return
        self._end(key, report.outcome, report, returned and returned.aligned())

    def _fetch(self, key: AttemptKey, report: AttemptReport, future: Future) -> None:
        try:
            returned: Returned = future.result()[key]
            self._inbox.put(Fetched(key, report, returned.aligned(), None))
        except Exception as error:  # noqa: BLE001  told to the driver's thread
            self._inbox.put(Fetched(key, report, None, error))

    def _fetched(
        self, key: AttemptKey, report: AttemptReport, array: Any, error: BaseException | None
    ) -> None:
        process = self._fleet.process_of(key)
        if error is not None and (process is None or process.left_at is not None):
            self._end(key, WorkerDied(LOST_ARRAY, blame=False), report)
        elif error is not None:
            reason = f"its array could not be fetched: {type(error).__name__}: {error}"
            self._end(key, Failed(reason), report)
        else:
            self._end(key, report.outcome, report, array)

    def _end(
        self, key: AttemptKey, outcome: Outcome, report: AttemptReport | None, array: Any = None
    ) -> None:
        attempt = self._attempts.pop(key, None)
        if attempt is None:
            return
        self._watchdog.ended(key)
        process = self._fleet.process_of(key)
        self._fleet.ended(key, unheard=report is None)
        if report.began_to_write if report is not None else attempt.future is not None:
            # The worker may have died after the output was in place and before that was told.
            self._cut_short.add(key[0])
        self._conclude(attempt.placement, outcome, report, array)
        if process is not None:
            self.crew.replace_if_empty(process)

    def _conclude(
        self, placement: Placement, outcome: Outcome, report: AttemptReport | None, array: Any = None
    ) -> None:
        if isinstance(outcome, WorkerDied) and not outcome.blame and outcome.reason != BEHIND:
            self._requeues[placement.job_id] += 1
            if self._requeues[placement.job_id] > MAX_REQUEUES:
                outcome = Failed(
                    f"given up after {MAX_REQUEUES} attempts, the last one ended: {outcome.reason}"
                )
        self._record.ended(placement, outcome, report)
        self._last[placement.job_id] = placement, report, array
        self._feed(AttemptEnded(time.monotonic(), placement.job_id, placement.attempt, outcome))

    def _cancel(self, key: AttemptKey, reason: str, *, restart: bool) -> None:
        attempt = self._attempts.get(key)
        if attempt is None:
            return
        if restart:
            self._end_hung(key, reason)
            return
        attempt.cancelled_at = time.monotonic()
        attempt.reason = reason
        if not self._fleet.cancel(key):
            self._end(key, Cancelled(reason), None)

    def _end_hung(self, key: AttemptKey, reason: str) -> None:
        """An attempt has had its time, and its process ends by it.

        Of several in a process that has fallen silent each may be the one that holds it up, by keeping
        Python's lock: all of them are tried again, alone.
        """
        process = self._fleet.process_of(key)
        if process is not None and process.ended_by_us:
            return  # a neighbour has hung; this one is sent elsewhere when the process has gone
        now = time.monotonic()
        if process is None or len(process.in_flight) == 1 or not self._watchdog.fell_silent(key, now):
            self._end_with_restart(key, TimedOut(reason), reason)
            return
        self._replace_silent(process, f"its worker process has fallen silent, and {key[0]} {reason}")

    def _replace_silent(self, process: WorkerProcess, reason: str) -> None:
        """End a process that can't tell which of its attempts holds it up: each that may is a suspect."""
        suspects = process.may_have_begun
        self._fleet.restart(process)
        self.crew.devices_changed(reason)
        for key in list(process.in_flight):
            self._end(key, WorkerDied(reason, blame=key in suspects), None)

    def _look_after_cancelled(self, now: float) -> None:
        """A step that doesn't end though its job was cancelled ends with its worker."""
        for key, attempt in list(self._attempts.items()):
            if attempt.cancelled_at is not None and now - attempt.cancelled_at > STOP_GRACE_S:
                self._end_with_restart(key, Cancelled(attempt.reason), attempt.reason)

    def _end_with_restart(self, key: AttemptKey, outcome: Outcome, reason: str) -> None:
        process = self._fleet.process_of(key)
        if process is not None:
            # First of all: the end of the attempt makes room, and the next one must not be sent there.
            self._fleet.restart(process)
            self.crew.devices_changed(reason)
        self._end(key, outcome, None)

    def _end_with_worker(self, key: AttemptKey, process: WorkerProcess, blame: bool) -> None:
        attempt = self._attempts.get(key)
        if attempt is None:
            return
        if attempt.cancelled_at is not None:
            outcome: Outcome = Cancelled(attempt.reason)
        elif attempt.done:
            outcome = WorkerDied(LOST_ARRAY, blame=False)
        elif blame and process.outgrown:
            outcome = OutOfMemory(None, None, on_host=True, error=process.leaving)
        elif blame:
            outcome = WorkerDied()
        else:
            outcome = WorkerDied(process.leaving or "its worker process has gone", blame=False)
        self._end(key, outcome, None)
