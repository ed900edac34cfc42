"""The driver: feeds events to the dispatcher and carries out its instructions on a Dask cluster."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from distributed import Future
from distributed.scheduler import KilledWorker

from scheduler.core.dispatcher import Dispatcher
from scheduler.core.events import (
    AdmissionHeld,
    AttemptEnded,
    Cancel,
    Event,
    Failed,
    JobsAdded,
    Outcome,
    SnapshotTaken,
    Tick,
    TimedOut,
    WorkerDied,
    WorkerJoined,
    WorkerLost,
)
from scheduler.core.instructions import (
    CancelAttempt,
    Evict,
    FinishJob,
    Instruction,
    Reclaim,
    Retry,
    Start,
    StopRun,
)
from scheduler.core.model import DeviceSnapshot, Job, Placement
from scheduler.execution.attempt import AttemptReport, AttemptTask
from scheduler.execution.fleet import Fleet
from scheduler.execution.record import JournalRecord

TICK_S = 0.25
SNAPSHOT_S = 0.15
STOP_GRACE_S = 10.0
WORKERS_S = 5.0
# A nanny tries once to bring its process back and then gives up; on a busy machine that once takes its time.
ABSENCE_S = 60.0
SILENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class _AttemptReturned:
    """A Dask future is done: not an event yet, since what came back may be an exception."""

    placement: Placement
    future: Future


class Driver:
    """Runs jobs to their end on a cluster.

    Parameters
    ----------
    fleet
        The cluster's worker processes.
    make_task
        From a placement to what the worker needs for the attempt.
    take_snapshots
        Reads every device's memory; called a few times a second in a thread of its own.

    Notes
    -----
    The thread in `run` alone touches the dispatcher and the record. Dask's callbacks and the probing thread
    only append to its inbox.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        record: JournalRecord,
        *,
        make_task: Callable[[Placement], AttemptTask],
        take_snapshots: Callable[[], Iterable[DeviceSnapshot]],
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._record = record
        self._make_task = make_task
        self._take_snapshots = take_snapshots
        self._inbox: queue.SimpleQueue[Event | _AttemptReturned | BaseException] = queue.SimpleQueue()
        self._attempts: dict[tuple[str, int], tuple[Placement, Future]] = {}
        self._unfinished: set[str] = set()
        self._cut_short: set[str] = set()
        self._workers_at = float("-inf")
        self._absent_since: dict[str, float] = {}
        self._lost: set[str] = set()
        self._state = "running"

    def run(self, jobs: Sequence[Job], stop: threading.Event | None = None) -> str:
        """Run `jobs` until each has an outcome, or until `stop` is set; returns the state of the run.

        That is "done" (each job has its outcome), "interrupted" (`stop`: nothing more was started, attempts
        that were running got ten seconds to finish) or "stopped" (so many equal failures that the rest would
        fail too, or no worker process is left; the waiting jobs are cancelled with that reason).
        """
        self._unfinished = {job.job_id for job in jobs}
        quit_probing = threading.Event()
        prober = threading.Thread(
            target=self._probe, args=(quit_probing,), name="stackyard-probe", daemon=True
        )
        prober.start()
        try:
            self._feed(JobsAdded(time.monotonic(), tuple(jobs)))
            deadline = None
            while self._unfinished:
                if stop is not None and stop.is_set():
                    if deadline is None:
                        deadline = time.monotonic() + STOP_GRACE_S
                        self._state = "stopping"
                        self._feed(AdmissionHeld(time.monotonic(), "the run is being stopped"))
                    if not self._attempts or time.monotonic() > deadline:
                        self._state = "interrupted"
                        break
                self._turn()
                self._look_after_workers(time.monotonic())
        finally:
            quit_probing.set()
            prober.join()
            for _, future in self._attempts.values():
                future.cancel(force=True)
            self._attempts.clear()
        return self._state if self._state in ("interrupted", "stopped") else "done"

    def _turn(self) -> None:
        """Take in what has happened since the last turn, at most a tick ago."""
        try:
            self._take(self._inbox.get(timeout=TICK_S))
            while True:
                self._take(self._inbox.get_nowait())
        except queue.Empty:
            self._feed(Tick(time.monotonic()))
        self._record.moment(
            self._state,
            self._dispatcher.device_view(),
            list(self._dispatcher.waiting(limit=3)),
            self._dispatcher.running,
            time.monotonic(),
        )

    def _take(self, item: Event | _AttemptReturned | BaseException) -> None:
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, _AttemptReturned):
            self._attempt_returned(item.placement, item.future)
        else:
            self._feed(item)

    def _probe(self, quit_probing: threading.Event) -> None:
        answered = time.monotonic()
        while not quit_probing.is_set():
            try:
                for snapshot in self._take_snapshots():
                    self._inbox.put(SnapshotTaken(time.monotonic(), snapshot))
                answered = time.monotonic()
            except Exception as error:  # noqa: BLE001  raised again in the run's own thread
                # A full /dev/shm or a busy table may be over in a moment; until then the last snapshots hold.
                if time.monotonic() - answered > SILENCE_S:
                    self._inbox.put(error)
                    return
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
            case CancelAttempt(job_id=job_id, attempt=attempt, restart_worker=restart):
                self._record.decided(job_id, instruction.decision)
                self._cancel(job_id, attempt, instruction.decision.reason, restart=restart)
            case Reclaim(device=uuid, nbytes=nbytes):
                self._fleet.reclaim(uuid, nbytes)
            case Evict(name=name):
                raise AssertionError(f"no plan here has resident state, so {name} can't be evicted")
            case StopRun(decision=decision):
                self._stop_for(decision.reason)

    def _stop_for(self, reason: str) -> None:
        self._state = "stopped"
        self._record.remark(reason)
        self._feed(Cancel(time.monotonic(), None, f"not started: {reason}"))

    def _submit(self, placement: Placement) -> None:
        self._record.started(placement)
        task = self._make_task(placement)
        if placement.job_id in self._cut_short:
            # The worker may have died after its output was in place and before that was told.
            task = replace(task, output=replace(task.output, overwrite=True))
        future = self._fleet.submit_attempt(task, device=placement.device)
        self._attempts[placement.job_id, placement.attempt] = placement, future
        future.add_done_callback(lambda done: self._inbox.put(_AttemptReturned(placement, done)))

    def _attempt_returned(self, placement: Placement, future: Future) -> None:
        if self._attempts.pop((placement.job_id, placement.attempt), None) is None:
            return  # it was cancelled: its end has been told already
        # Not from the future: its result is gone if the worker has died since.
        report = self._fleet.take_report(placement.job_id, placement.attempt)
        outcome: Outcome
        if report is not None:
            outcome = report.outcome
        elif future.status == "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                outcome = WorkerDied(blame=self._fleet.died_by_itself(error.last_worker.address))
            else:
                # Not the step's error, which comes back in a report: the task itself can't be run there.
                outcome = Failed(f"the worker can't run the attempt: {type(error).__name__}: {error}")
        else:
            outcome = WorkerDied(f"Dask dropped its task ({future.status})", blame=False)
        self._end_attempt(placement, outcome, report)

    def _end_attempt(self, placement: Placement, outcome: Outcome, report: AttemptReport | None) -> None:
        if isinstance(outcome, WorkerDied):
            self._cut_short.add(placement.job_id)
        self._record.ended(placement, outcome, report)
        self._feed(AttemptEnded(time.monotonic(), placement.job_id, placement.attempt, outcome))

    def _cancel(self, job_id: str, attempt: int, reason: str, *, restart: bool) -> None:
        found = self._attempts.pop((job_id, attempt), None)
        if found is None:
            return
        placement, future = found
        if restart:
            self._fleet.restart_worker_of(future)
        future.cancel(force=True)
        self._end_attempt(placement, TimedOut(reason), None)

    def _look_after_workers(self, now: float) -> None:
        """Tell the dispatcher which devices have lost their last worker for good, and which have one again.

        Dask would keep their tasks for a worker that never comes.
        """
        if now - self._workers_at < WORKERS_S:
            return
        self._workers_at = now
        absent = self._fleet.without_workers()
        for uuid in self._absent_since.keys() - absent:
            del self._absent_since[uuid]
            if uuid in self._lost:
                self._lost.discard(uuid)
                self._feed(WorkerJoined(now, self._fleet.devices[uuid]))
        for uuid in absent:
            if now - self._absent_since.setdefault(uuid, now) >= ABSENCE_S and uuid not in self._lost:
                self._lose(uuid, now)
        if (
            self._unfinished
            and self._lost
            and all(uuid in self._lost for uuid, device in self._fleet.devices.items() if device.slots)
        ):
            self._stop_for("no worker process is left, and none comes back")

    def _lose(self, uuid: str, now: float) -> None:
        self._lost.add(uuid)
        lost = WorkerDied("its worker process is gone and doesn't come back", blame=False)
        for key, (placement, future) in list(self._attempts.items()):
            if placement.device == uuid:
                del self._attempts[key]
                future.cancel(force=True)
                self._cut_short.add(placement.job_id)
                self._record.ended(placement, lost, None)
        # This ends its attempts in the dispatcher too, and starts none on the device.
        self._feed(WorkerLost(now, uuid, reason=lost.reason, blame=False))
