"""The driver: feeds events to the dispatcher and carries out its instructions on a Dask cluster."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from scheduler.core.dispatcher import Dispatcher
from scheduler.core.events import (
    AdmissionHeld,
    AttemptBegan,
    Cancel,
    DeviceReleased,
    Event,
    JobsAdded,
    ResidentEvicted,
    SnapshotTaken,
    Tick,
)
from scheduler.core.instructions import (
    CancelAttempt,
    Evict,
    FinishJob,
    Instruction,
    JobOutcome,
    Reclaim,
    Request,
    Retry,
    Start,
    StopRun,
)
from scheduler.core.model import DeviceKind, DeviceSnapshot, Job, Placement
from scheduler.execution.crew import JUDGEMENT_S, ClusterTerms
from scheduler.execution.fleet import Fleet
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
from scheduler.execution.task import AttemptReport, AttemptTask, Returned
from scheduler.execution.under_way import STOP_GRACE_S, Fetched, UnderWay

TakeSnapshots = Callable[[], Iterable[DeviceSnapshot]]
TICK_S = 0.25
SNAPSHOT_S = 0.15
CONNECTION_LOST = "the connection to the Dask scheduler is lost"
SILENCE_S = 30.0
TABLE_HELD_S = 10.0
# Short jobs were meant to wait behind short ones: after so long they are given to other processes.
LONG_S = 1.0


def nobody() -> int | None:
    """No process holds the table, or none is known to."""
    return None


class OnFinished(Protocol):
    """Is told how a job ended: its last attempt's report and what it returned, where there are such."""

    def __call__(
        self,
        job_id: str,
        outcome: JobOutcome,
        reason: str,
        placement: Placement | None,
        report: AttemptReport | None,
        returned: Returned | None,
    ) -> None: ...


class Driver(UnderWay):
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
        super().__init__(fleet, record, make_task, needed, terms)
        self._dispatcher = dispatcher
        self._on_finished = on_finished
        self._take_snapshots = take_snapshots
        self._table_holder = table_holder
        self._probing_since: float | None = None
        self._unfinished: set[str] = set()
        self._deadline: float | None = None
        self._closing = False
        self._lost = False
        self._ticked_at = float("-inf")
        self._stuck: dict[str, str] = {}
        self.end_reason = ""

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
            began = time.monotonic()
            while time.monotonic() - began < TICK_S:
                self._take(self._inbox.get_nowait())
        self._send()
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
        self._look_after_tasks(now)
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
            case Ended(job_id=job_id, number=number, report=report, returned=returned):
                self._ended((job_id, number), report, returned)
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
            case Left(address=address, worker_id=worker_id, expected=expected):
                self.crew.left(address, worker_id, expected=expected)
            case Evicted(device=device, name=name, why=why):
                if why:
                    self._record.remark(why)
                self._feed(ResidentEvicted(time.monotonic(), device, name))
            case Fetched(key=key, report=report, array=array, error=error):
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
            case Request(device=uuid, nbytes=nbytes, job_id=job_id, decision=decision):
                self._record.decided(job_id, decision)
                self._fleet.request(uuid, nbytes)
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
        self._replace_silent(process, reason)

    def _pulse(self, pulse: Pulse) -> None:
        now = time.monotonic()
        for (job_id, number), elapsed in self._watchdog.heard(pulse, now):
            self._feed(AttemptBegan(now, job_id, number, elapsed))
        process = self._fleet.get(pulse.address)
        if process is not None and process.on_cpu:
            at_work = {key for key, (elapsed, _, _) in pulse.attempts.items() if elapsed >= LONG_S}
            if at_work:
                self._take_back(process, [key for key in process.in_flight if key not in at_work])

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
