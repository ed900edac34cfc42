"""The driver: feeds events to the dispatcher and carries out its instructions on a Dask cluster."""

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from distributed import Future
from distributed.scheduler import KilledWorker

from scheduler.core.dispatcher import Dispatcher
from scheduler.core.events import (
    AdmissionHeld,
    AttemptBegan,
    AttemptEnded,
    Cancel,
    Cancelled,
    DeviceReleased,
    Done,
    Event,
    Failed,
    JobsAdded,
    Outcome,
    ResidentEvicted,
    SnapshotTaken,
    Tick,
    TimedOut,
    WorkerDied,
)
from scheduler.core.instructions import (
    CancelAttempt,
    Evict,
    FinishJob,
    Instruction,
    JobOutcome,
    Reclaim,
    Retry,
    Start,
    StopRun,
)
from scheduler.core.model import DeviceKind, DeviceSnapshot, Job, Placement
from scheduler.execution.crew import JUDGEMENT_S, ClusterTerms, Crew
from scheduler.execution.fleet import AttemptKey, Fleet, WorkerProcess
from scheduler.execution.jobs import JobRequest
from scheduler.execution.messages import (
    Ended,
    Evicted,
    Hello,
    Leaving,
    Left,
    Message,
    Pulse,
    Readings,
    Released,
    Unfit,
)
from scheduler.execution.record import JournalRecord
from scheduler.execution.task import AttemptReport, AttemptTask
from scheduler.execution.watchdog import Watchdog

TakeSnapshots = Callable[[], Iterable[DeviceSnapshot]]
TICK_S = 0.25
SNAPSHOT_S = 0.15
STOP_GRACE_S = 10.0
LOST_ARRAY = "its worker has gone with its array"
CONNECTION_LOST = "the connection to the Dask scheduler is lost"
SILENCE_S = 30.0
TABLE_HELD_S = 10.0
# A job that is sent back through no fault of its own so often doesn't get on here.
MAX_REQUEUES = 32


def nobody() -> int | None:
    """No process holds the table, or none is known to."""
    return None


class OnFinished(Protocol):
    """Is told how a job ended: its last attempt's report and the result's array, where there are such."""

    def __call__(
        self,
        job_id: str,
        outcome: JobOutcome,
        reason: str,
        placement: Placement | None,
        report: AttemptReport | None,
        array: Any,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Fetched:
    """The array of an attempt is here, or the error for which it isn't."""

    key: AttemptKey
    report: AttemptReport
    array: Any
    error: BaseException | None


@dataclass(slots=True)
class _Attempt:
    placement: Placement
    future: Future
    returns_array: bool
    done: bool = False
    killed: bool = False
    cancelled_at: float | None = None
    reason: str = ""


class Driver:
    """Runs jobs to their end on a cluster.

    Parameters
    ----------
    fleet
        The cluster's worker processes.
    make_task
        From a placement to what the worker needs for the attempt.
    on_finished
        Told how each job ended, in the driver's thread.
    take_snapshots
        Reads every device's memory; called a few times a second in a thread of its own. None where workers
        send their readings.

    Notes
    -----
    The thread in `run` alone touches the dispatcher and the record. Every other thread only appends to its
    inbox.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        record: JournalRecord,
        *,
        make_task: Callable[[Placement], AttemptTask],
        on_finished: OnFinished,
        take_snapshots: TakeSnapshots | None,
        needed: Callable[[DeviceKind], frozenset[str]] = lambda _: frozenset(),
        table_holder: Callable[[], int | None],
        terms: ClusterTerms,
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._record = record
        self._make_task = make_task
        self._on_finished = on_finished
        self._take_snapshots = take_snapshots
        self.crew = Crew(fleet, record, terms, self._feed, self._end_with_worker, needed)
        self._table_holder = table_holder
        self._probing_since: float | None = None
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._attempts: dict[AttemptKey, _Attempt] = {}
        self._last: dict[str, tuple[Placement, AttemptReport | None, Any]] = {}
        self._unfinished: set[str] = set()
        self._cut_short: set[str] = set()
        self._watchdog = Watchdog()
        self._fetcher = ThreadPoolExecutor(2, thread_name_prefix="stackyard-fetch")
        self._deadline: float | None = None
        self._closing = False
        self._lost = False
        self._ticked_at = float("-inf")
        self._stuck: dict[str, str] = {}
        self._requeues: Counter[str] = Counter()
        self.end_reason = ""
        self.state = "running"

    # what other threads may call

    def hear(self, message: Message) -> None:
        """A message has come from a worker or the scheduler."""
        self._inbox.put(message)

    def add(self, jobs: Sequence[Job], unrecorded: Sequence[JobRequest] = ()) -> None:
        """Take in more jobs; `unrecorded` are those of them that the journal doesn't have yet."""
        self._inbox.put(lambda: self._add(jobs, unrecorded))

    def cancel(self, job_id: str | None, reason: str) -> None:
        """Give up a job, or all of them (None)."""
        self._inbox.put(lambda: self._feed(Cancel(time.monotonic(), job_id, reason)))

    def stop(self, reason: str, grace_s: float = STOP_GRACE_S) -> None:
        """Start nothing more; what runs gets `grace_s` seconds to finish. The state is "interrupted" then."""
        self._inbox.put(lambda: self._stop(reason, grace_s))

    def finish(self) -> None:
        """End once every job has its outcome."""
        self._inbox.put(self._begin_closing)

    # the driver's own thread

    def run(self) -> str:
        """Run until `finish` or `stop` is called and its terms are met; returns the state of the run.

        That is "done" (each job has its outcome), "interrupted" (nothing more was started) or "stopped" (so
        many equal failures that the rest would fail too, or no worker process is left; the waiting jobs are
        cancelled with that reason).
        """
        quit_probing = threading.Event()
        prober = threading.Thread(
            target=self._probe, args=(quit_probing,), name="stackyard-probe", daemon=True
        )
        prober.start()
        try:
            while not self._is_over():
                self._turn()
        finally:
            quit_probing.set()
            prober.join(SILENCE_S)
            self.crew.close()
            self._fetcher.shutdown(wait=False, cancel_futures=True)
            for key in list(self._attempts):
                self._fleet.cancel(key)
            self._attempts.clear()
        return "done" if self.state == "running" else self.state

    def _is_over(self) -> bool:
        if self._deadline is not None:
            if self._attempts and time.monotonic() <= self._deadline:
                return False
            if self._unfinished:
                self.state = "interrupted"
            elif self.state == "stopping":
                self.state = "running"
            return True
        return self._closing and not self._unfinished

    def _begin_closing(self) -> None:
        self._closing = True

    def _stop(self, reason: str, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        if self._deadline is None:
            self.end_reason = reason
            if self.state == "running":
                self.state = "stopping"
            self._feed(AdmissionHeld(time.monotonic(), reason))
        self._deadline = min(deadline, self._deadline or deadline)

    def _turn(self) -> None:
        """Take in what has happened since the last turn, at most a tick ago."""
        with contextlib.suppress(queue.Empty):
            self._take(self._inbox.get(timeout=JUDGEMENT_S if self.crew.gone else TICK_S))
            while True:
                self._take(self._inbox.get_nowait())
        now = time.monotonic()
        self.crew.judge(now)
        if now - self._ticked_at >= TICK_S:
            self._ticked_at = now
            self._tick(now)
        self._record.moment(self.state, self._dispatcher, now, stuck=self._stuck)
        if self._record.no_room and self.state == "running":
            self._hold_for_disk(self._record.no_room)

    def _tick(self, now: float) -> None:
        """Look after what no message tells of."""
        self._feed(Tick(now))
        self._look_after_cluster()
        for key, elapsed in self._watchdog.silent(now):
            self._feed(AttemptBegan(now, *key, elapsed))
        self._look_after_tasks()
        self._look_after_cancelled(now)
        self._look_after_table(now)
        self._give_up_on_absent(now)
        self._stuck = self._watchdog.stuck(now)

    def _take(self, item: Any) -> None:
        match item:
            case BaseException():
                raise item
            case SnapshotTaken():
                self._feed(item)
            case Ended(job_id=job_id, number=number, report=report):
                self._ended((job_id, number), report)
            case Released(job_id=job_id, number=number):
                self._feed(DeviceReleased(time.monotonic(), job_id, number))
            case Pulse():
                self._pulse(item)
            case Readings(snapshots=snapshots):
                for snapshot in snapshots:
                    self._feed(SnapshotTaken(time.monotonic(), snapshot))
            case Hello():
                self.crew.hello(item)
            case Unfit():
                self.crew.cannot_serve(item)
            case Leaving():
                self.crew.leaving(item)
            case Left(address=address, expected=expected):
                self.crew.left(address, expected=expected)
            case Evicted(device=device, name=name):
                self._feed(ResidentEvicted(time.monotonic(), device, name))
            case _Fetched(key=key, report=report, array=array, error=error):
                self._fetched(key, report, array, error)
            case _:
                item()

    def _probe(self, quit_probing: threading.Event) -> None:
        if self._take_snapshots is None:
            return
        answered = time.monotonic()
        while not quit_probing.is_set():
            self._probing_since = time.monotonic()
            try:
                for snapshot in self._take_snapshots():
                    self._inbox.put(SnapshotTaken(time.monotonic(), snapshot))
                answered = time.monotonic()
            except Exception as error:  # noqa: BLE001  raised again in the run's own thread
                # A full /dev/shm or a busy table may be over in a moment; until then the last snapshots hold.
                if time.monotonic() - answered > SILENCE_S:
                    self._inbox.put(error)
                    return
            self._probing_since = None
            quit_probing.wait(SNAPSHOT_S)

    def _feed(self, event: Event) -> None:
        for instruction in self._dispatcher.handle(event):
            self._carry_out(instruction)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Start(placement=placement):
                self._record.decided(placement.job_id, instruction.decision)
                self._submit(placement)
            case Retry(job_id=job_id):
                self._record.decided(job_id, instruction.decision)
            case FinishJob(job_id=job_id, outcome=outcome, decision=decision):
                self._record.decided(job_id, decision)
                self._record.finished(job_id, outcome, decision.reason)
                self._unfinished.discard(job_id)
                self._cut_short.discard(job_id)
                del self._requeues[job_id]
                last = self._last.pop(job_id, (None, None, None))
                self._on_finished(job_id, outcome, decision.reason, *last)
            case CancelAttempt(job_id=job_id, attempt=attempt, restart_worker=restart):
                self._record.decided(job_id, instruction.decision)
                self._cancel((job_id, attempt), instruction.decision.reason, restart=restart)
            case Reclaim(device=uuid, nbytes=nbytes):
                self._fleet.reclaim(uuid, nbytes)
            case Evict(device=uuid, name=name):
                if self._fleet.processes_of(uuid):
                    self._fleet.evict(uuid, name)
            case StopRun(decision=decision):
                self._give_up(decision.reason)

    def _give_up(self, reason: str) -> None:
        self.state, self.end_reason = "stopped", reason
        self._record.remark(reason)
        self._feed(Cancel(time.monotonic(), None, f"not started: {reason}"))

    def _hold_for_disk(self, reason: str) -> None:
        """Nothing more can be kept: what runs may end, and the run is resumed when there is room."""
        self._record.remark(f"{reason}: nothing more is started; resume the run when there is room")
        self._stop(reason, float("inf"))

    # attempts

    def _add(self, jobs: Sequence[Job], unrecorded: Sequence[JobRequest]) -> None:
        self._record.add_jobs(unrecorded)
        self._unfinished.update(job.job_id for job in jobs)
        self._feed(JobsAdded(time.monotonic(), tuple(jobs)))
        if self.state == "stopped":
            for job in jobs:
                self._feed(Cancel(time.monotonic(), job.job_id, f"not started: {self.end_reason}"))

    def _submit(self, placement: Placement) -> None:
        self._record.started(placement)
        key = placement.job_id, placement.attempt
        task = self._make_task(placement)
        if placement.job_id in self._cut_short and task.output is not None:
            # The worker may have died after its output was in place and before that was told.
            task = replace(task, output=replace(task.output, overwrite=True))
        future = self._fleet.submit_attempt(task, device=placement.device)
        if isinstance(future, Outcome):
            why_not = future
            self._inbox.put(lambda: self._conclude(placement, why_not, None))
            return
        self._attempts[key] = _Attempt(placement, future, task.returns_array)
        process = self._fleet.process_of(key)
        assert process is not None
        self._watchdog.submitted(key, process.address, time.monotonic())

    def _look_after_tasks(self) -> None:
        """The report tells how an attempt ended; this is for tasks that could not even be run.

        A callback for each task would take a thread's turn at the end of every attempt.
        """
        for key, attempt in list(self._attempts.items()):
            future = attempt.future
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
                self._end(key, Failed(reason), None)

    def _ended(self, key: AttemptKey, report: AttemptReport) -> None:
        attempt = self._attempts.get(key)
        if attempt is None:
            return
        process = self._fleet.process_of(key)
        if report.retire and process is not None:
            self.crew.retire(process, report.retire, broken=isinstance(report.outcome, WorkerDied))
        if report.disk_full and self.state == "running":
            self._hold_for_disk(report.disk_full)
        if isinstance(report.outcome, Done) and attempt.returns_array:
            attempt.done = True
            self._fetcher.submit(self._fetch, key, report, attempt.future)
            return
        self._end(key, report.outcome, report)

    def _fetch(self, key: AttemptKey, report: AttemptReport, future: Future) -> None:
        try:
            # What has come in a message lies at any address in it, which compiled code is slow on or refuses.
            array = np.require(future.result(), requirements=["ALIGNED"])
            self._inbox.put(_Fetched(key, report, array, None))
        except Exception as error:  # noqa: BLE001  told to the driver's thread
            self._inbox.put(_Fetched(key, report, None, error))

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
        self._fleet.ended(key)
        self._conclude(attempt.placement, outcome, report, array)
        if process is not None:
            self.crew.replace_if_empty(process)

    def _conclude(
        self, placement: Placement, outcome: Outcome, report: AttemptReport | None, array: Any = None
    ) -> None:
        if isinstance(outcome, WorkerDied | TimedOut | Cancelled):
            self._cut_short.add(placement.job_id)
        if isinstance(outcome, WorkerDied) and not outcome.blame:
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
        self._fleet.cancel(key)

    def _end_hung(self, key: AttemptKey, reason: str) -> None:
        """An attempt has had its time: its process ends by it, or by the one that holds it up there."""
        process = self._fleet.process_of(key)
        if process is not None and process.ended_by_us:
            return  # a neighbour has hung; this one is sent elsewhere when the process has gone
        hung = self._watchdog.holds_up(key, time.monotonic())
        if hung != key:
            reason = f"its worker process has fallen silent while it computes; behind it {key[0]} {reason}"
        self._end_with_restart(hung, TimedOut(reason), reason)

    def _look_after_cancelled(self, now: float) -> None:
        """A step that doesn't end though its job was cancelled ends with its worker."""
        for key, attempt in list(self._attempts.items()):
            if attempt.cancelled_at is not None and now - attempt.cancelled_at > STOP_GRACE_S:
                self._end_with_restart(key, Cancelled(attempt.reason), attempt.reason)

    def _look_after_table(self, now: float) -> None:
        """A step that keeps Python's lock may stop its process in the middle of a look at the table.

        Then nobody on this host, of this run or another, can reserve anything before that process has ended.
        """
        since = self._probing_since
        if since is None or now - since < TABLE_HELD_S:
            return
        pid = self._table_holder()
        process = next((each for each in self._fleet.processes if each.hello.pid == pid), None)
        if process is None or process.ended_by_us:
            return
        held = f"has kept the reservation table for {now - since:.0f} s"
        reason = f"its worker process, held up by a step, {held}"
        self._record.remark(f"worker {process.hello.name} is replaced: {reason}")
        self._fleet.restart(process)
        self.crew.devices_changed(reason)
        for key in list(process.in_flight):
            self._end(key, WorkerDied(reason), None)

    def _end_with_restart(self, key: AttemptKey, outcome: Outcome, reason: str) -> None:
        process = self._fleet.process_of(key)
        if process is not None:
            # First of all: the end of the attempt makes room, and the next one must not be sent there.
            self._fleet.restart(process)
            self.crew.devices_changed(reason)
        self._end(key, outcome, None)

    def _pulse(self, pulse: Pulse) -> None:
        now = time.monotonic()
        for (job_id, number), elapsed in self._watchdog.heard(pulse, now):
            self._feed(AttemptBegan(now, job_id, number, elapsed))

    # workers

    def _look_after_cluster(self) -> None:
        """With the scheduler every task of ours is lost, and so is the word of our workers."""
        if not self._lost and not self._fleet.connected:
            self._lost = True
            self._record.remark(f"{CONNECTION_LOST}; resume the run when it is back")
            self._stop(CONNECTION_LOST, 0.0)

    def _give_up_on_absent(self, now: float) -> None:
        """A cluster to which no process comes any more would leave its jobs waiting for good."""
        if (
            self.state == "running"
            and self._unfinished
            and not self._attempts
            and self.crew.nobody_comes(now)
        ):
            self._give_up("no worker process is left, and none comes back")

    def _end_with_worker(self, key: AttemptKey, process: WorkerProcess, blame: bool) -> None:
        attempt = self._attempts.get(key)
        if attempt is None:
            return
        if attempt.cancelled_at is not None:
            outcome: Outcome = Cancelled(attempt.reason)
        elif attempt.done:
            outcome = WorkerDied(LOST_ARRAY, blame=False)
        elif blame:
            outcome = WorkerDied()
        else:
            outcome = WorkerDied(process.leaving or "its worker process has gone", blame=False)
        attempt.future.cancel(force=True)
        self._end(key, outcome, None)
