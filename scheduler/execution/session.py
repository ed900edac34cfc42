"""One run of the dispatcher on a Dask cluster: what joins workers, plans, driver and record."""

import concurrent.futures
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from distributed import Client

from scheduler.core.dispatcher import Dispatcher
from scheduler.core.events import Done
from scheduler.core.footprint import Estimates
from scheduler.core.instructions import JobOutcome
from scheduler.core.model import DeviceKind, Placement
from scheduler.core.policy import Pin, Policy
from scheduler.execution.crew import ClusterTerms
from scheduler.execution.driver import Driver, TakeSnapshots, nobody
from scheduler.execution.errors import ClusterError
from scheduler.execution.fleet import Fleet
from scheduler.execution.jobs import JobRequest, dispatcher_job
from scheduler.execution.membership import Membership
from scheduler.execution.record import JournalRecord
from scheduler.execution.results import JobFailedError, JobResult
from scheduler.execution.run_settings import WorkerSettings
from scheduler.execution.status import RunStatus, RunSummary
from scheduler.execution.task import AttemptReport, AttemptTask, Returned
from scheduler.execution.under_way import STOP_GRACE_S
from scheduler.execution.usable import Planner
from scheduler.host.estimates import default_estimates_path, load_estimates, save_estimates
from scheduler.images.errors import OutputError

WORKERS_S = 60.0
TURN_S = 0.25
NOBODY_YET = "no worker has joined the cluster yet: the jobs wait for the first"
CLOSED = "the scheduler is being closed"
_log = logging.getLogger(__name__)
OnDone = Callable[[concurrent.futures.Future[JobResult]], object]


class StackFuture(concurrent.futures.Future[JobResult]):
    """The end of a job that was submitted. Its result is a `JobResult`, for jobs that failed too.

    `cancel` asks the scheduler to give the job up, running or not; if that comes in time the future is
    cancelled, and otherwise it has the job's result.
    """

    def __init__(self, name: str, session: "Session") -> None:
        super().__init__()
        self.name = name
        self._session = session

    def cancel(self) -> bool:
        """Ask for the job to be given up; False if it has ended already."""
        if self.done():
            return False
        self._session.cancel([self])
        return True

    def add_done_callback(self, fn: OnDone) -> None:
        """Call `fn` with this future when the job has ended: at once, if it has.

        Else in the scheduler's thread for all callbacks, one after another; one may submit jobs, and wait for
        them.
        """
        super().add_done_callback(fn if self.done() else partial(self._session.call_back, fn))

    def _cancelled(self) -> None:
        super().cancel()
        self.set_running_or_notify_cancel()


class Session:
    """Runs jobs on the workers of a Dask cluster until it is closed.

    Parameters
    ----------
    settings
        What its workers are told; the topic is filled in here.
    record
        Where everything is written down.
    take_snapshots
        Reads every device's memory, where the driver can; None where the workers send their readings.
    pins
        What an earlier part of a reproducible run has fixed.
    table_holder
        Which process holds the lock of this host's reservation table.

    Raises
    ------
    ClusterError
        No worker came, or the cluster's environment lacks something.

    Notes
    -----
    The driver has a thread of its own; everything here may be called from any thread.
    """

    def __init__(
        self,
        client: Client,
        settings: WorkerSettings,
        record: JournalRecord,
        *,
        policy: Policy,
        terms: ClusterTerms,
        take_snapshots: TakeSnapshots | None = None,
        pins: Mapping[str, Pin] | None = None,
        table_holder: Callable[[], int | None] = nobody,
    ) -> None:
        self.record = record
        self.error: BaseException | None = None
        self._client = client
        topic = f"stackyard-{secrets.token_hex(4)}"
        self._terms = terms
        self._requests: dict[str, JobRequest] = {}
        self._futures: dict[str, StackFuture] = {}
        # They run there since one may submit the next job, and wait for what the driver has to see to.
        self._callbacks = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="stackyard-callbacks")
        # Its thread starts now: where none is to be had, the session fails, and no callback is lost later.
        self._callbacks.submit(int)
        self._lock = threading.Lock()
        self._asked_to_stop = False
        self._batch = 0
        self._over = False
        self._names_taken: set[str] = set()
        self._targets: set[tuple[str, int | None]] = set()
        fleet = self._fleet = Fleet(client, topic)
        elastic = (DeviceKind.CUDA, DeviceKind.CPU) if terms.elastic else ()
        self._planner = Planner(fleet, record.remark, self._hint, expected=elastic)
        self._dispatcher = Dispatcher(policy, (), self._learned(), pins=pins)
        self._driver = Driver(
            fleet,
            self._dispatcher,
            record,
            make_task=self._task,
            on_finished=self._finished,
            take_snapshots=take_snapshots,
            needed=self._planner.needed,
            table_holder=table_holder,
            terms=terms,
        )
        self._membership = Membership(client, topic, settings, self._driver.hear)
        self._thread = threading.Thread(target=self._drive, name="stackyard-driver", daemon=True)
        self._connect()

    def _connect(self) -> None:
        self._thread.start()
        try:
            self._join_cluster()
        except BaseException:
            self._end_at_once("the cluster can't be used")
            raise

    def _join_cluster(self) -> None:
        there = self._membership.enter()
        answered = self._driver.crew.wait_for_all(there, WORKERS_S)
        unfit = self._driver.crew.unfit
        if unfit:
            named = [f"worker {each.name} at {each.address}: {each.reason}" for each in unfit[:3]]
            more = [f"{len(unfit) - 3} more"] * (len(unfit) > 3)
            raise ClusterError(f"{'; '.join(named + more)}; Stackyard has to be installed for every worker")
        if self.error is not None:
            raise self.error
        if not answered:
            raise ClusterError(f"of {there} workers not every one was ready in {WORKERS_S:.0f} s")

    def wait_for_worker(
        self, stop: threading.Event | None = None, *, meanwhile: Callable[[], None] | None = None
    ) -> None:
        """Wait until there is a worker, however long that takes: until then nothing can be planned.

        Returns without one once `stop` is set. `meanwhile` is called a few times a second.

        Raises
        ------
        ClusterError
            None is there, and none is expected any more.
        """
        self.record.hint = "" if self._fleet.processes else NOBODY_YET
        while not self._fleet.processes and self._thread.is_alive() and not (stop and stop.is_set()):
            if not self._terms.expected():
                raise ClusterError("no worker is there, and none is expected any more")
            if meanwhile is not None:
                meanwhile()
            self._driver.crew.wait_for_one(TURN_S)
        self.record.hint = ""

    def _hint(self, text: str) -> None:
        self.record.hint = text

    def _end_at_once(self, reason: str) -> None:
        self.stop(reason, grace_s=0.0)
        self.join()
        self.sum_up("failed")
        self.disconnect()

    # jobs

    def submit_requests(
        self,
        requests: Sequence[JobRequest],
        *,
        recorded: bool = False,
        stop: threading.Event | None = None,
    ) -> list[StackFuture]:
        """Take jobs in; they start as soon as there is room for them. Waits until there is a worker at all.

        `recorded`: the journal has them already. `stop` ends the wait for a worker.

        Raises
        ------
        StepError
            No device that is there can run a chain; nothing was taken in.
        ValueError
            Two jobs have one name.
        OutputError
            Two jobs have one output.
        RuntimeError
            The session has ended.
        """
        if not self._thread.is_alive() or self._driver.state != "running":
            raise RuntimeError("nothing more is started here") from self.error
        self.wait_for_worker(stop)
        plans = [
            self._planner.plans(request.chain, request.forms, request.returns_array) for request in requests
        ]
        jobs = [dispatcher_job(*each, batch=self._batch) for each in zip(requests, plans, strict=True)]
        self._batch += 1
        with self._lock:
            names = Counter(request.job_id for request in requests)
            taken = [name for name, count in names.items() if count > 1 or name in self._names_taken]
            if taken:
                raise ValueError(f"there is a job {taken[0]!r} already")
            if self._over:
                raise RuntimeError("nothing more is started here") from self.error
            outputs = (request.output for request in requests if request.output is not None)
            targets = Counter(claim for output in outputs for claim in output.claims())
            double = [claim for claim, count in targets.items() if count > 1 or claim in self._targets]
            if double:
                raise OutputError(f"two jobs would write {double[0][0]}")
            self._names_taken |= names.keys()
            self._targets |= targets.keys()
            futures = [StackFuture(request.job_id, self) for request in requests]
            self._requests.update((request.job_id, request) for request in requests)
            self._futures.update((future.name, future) for future in futures)
        self._driver.add(jobs, () if recorded else requests)
        return futures

    def cancel(self, futures: Sequence[StackFuture] | None = None, *, reason: str = "cancelled") -> None:
        """Give up some jobs, or all: those that wait at once, those that run before their next step."""
        for name in [None] if futures is None else [future.name for future in futures]:
            self._driver.cancel(name, reason)

    # the run

    def stop(self, reason: str, *, grace_s: float = STOP_GRACE_S) -> None:
        """Start nothing more; what runs gets `grace_s` seconds to finish, and the session ends."""
        self._asked_to_stop = True
        self._driver.stop(reason, grace_s)

    def call_back(self, function: OnDone, future: StackFuture) -> None:
        """Have a function called with a future that has ended; never in the driver's thread."""

        def call() -> None:
            try:
                function(future)
            except Exception:  # noqa: BLE001  whatever a user's callback raises
                _log.exception("a callback of job %s has raised", future.name)

        try:
            self._callbacks.submit(call)
        except RuntimeError:  # no callback is taken any more, so the session has ended, or Python does
            if threading.current_thread() is not self._thread:
                call()

    def finish(self) -> None:
        """End the session as soon as every job has its outcome."""
        self._driver.finish()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the session's end; False if it goes on."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def status(self) -> RunStatus | None:
        """The state of things now, at most a second old; None before there is any."""
        return self.record.status

    def sum_up(self, state: str | None = None) -> RunSummary:
        """Close the record, keep what was learned, and sum up; once, after the end of every future."""
        self._callbacks.shutdown()
        self._keep(self._dispatcher.estimates)
        state = state or ("failed" if self.error is not None else self._driver.state)
        if state == "running" and self._asked_to_stop and self.record.left:
            # Stopped before a worker joined, when no job had been taken in: they are left for `resume`.
            state = "interrupted"
        return self.record.end(
            "done" if state == "running" else state,
            self._dispatcher.device_view(),
            interrupted=state == "interrupted",
        )

    def disconnect(self) -> None:
        """Take the plugins off the cluster, which goes on without us."""
        if self._fleet.connected:
            self._membership.leave()

    def _drive(self) -> None:
        try:
            self._driver.run()
        except BaseException as error:  # noqa: BLE001  told to whoever waits for a job, or for the session
            self.error = error
        with self._lock:
            self._over = True
            left = [future for future in self._futures.values() if not future.done()]
        for future in left:
            if self.error is None and self._driver.end_reason == CLOSED:
                future._cancelled()
                continue
            why = self.error or JobFailedError(f"not done: {self._driver.end_reason}")
            future.set_exception(why)
        self._callbacks.shutdown(wait=False)

    def _task(self, placement: Placement) -> AttemptTask:
        request = self._requests[placement.job_id]
        return AttemptTask(
            job_id=request.job_id,
            kind=f"{placement.plan.name}:{request.kind}",
            number=placement.attempt,
            source=request.source,
            steps=request.chain.specs,
            memory_types=placement.plan.memory_types,
            device_bytes=placement.reserve_bytes,
            host_bytes=placement.host_bytes,
            output=request.output,
            split=placement.plan.split,
            resident_bytes=placement.resident_bytes,
            returns_array=request.returns_array,
        )

    def _finished(
        self,
        job_id: str,
        outcome: JobOutcome,
        reason: str,
        placement: Placement | None,
        report: AttemptReport | None,
        returned: Returned | None,
    ) -> None:
        with self._lock:
            request = self._requests.pop(job_id)
            future = self._futures.pop(job_id)
            if outcome is not JobOutcome.DONE and request.output is not None:
                self._targets.difference_update(request.output.claims())
        if outcome is JobOutcome.CANCELLED:
            future._cancelled()
            return
        done = report.outcome if report is not None and isinstance(report.outcome, Done) else None
        on_cpu = placement is not None and not placement.reserve_bytes
        peak = None if done is None else done.host_peak_bytes if on_cpu else done.device_peak_bytes
        written = report.outputs if report is not None and outcome is JobOutcome.DONE else ()
        result = JobResult(
            outcome,
            tuple(Path(output.path) for output in written),
            {} if returned is None else returned.arrays,
            {} if returned is None else returned.tables,
            self.record.device_name(placement.device) if placement is not None else "",
            placement.attempt if placement is not None else 0,
            peak,
            reason,
        )
        future.set_result(result)

    # what is learned

    def _learned(self) -> Estimates:
        """What earlier runs have learned; a file that can't be read costs a remark, not the run."""
        try:
            return load_estimates(default_estimates_path())
        except (OSError, RuntimeError, ValueError) as error:
            self.record.remark(f"starts without what earlier runs have learned: {error}")
            return Estimates()

    def _keep(self, estimates: Estimates) -> None:
        try:
            save_estimates(estimates, default_estimates_path())
        except (OSError, RuntimeError) as error:  # no home, no room, no permission
            self.record.remark(f"what was learned isn't kept for later runs: {error}")
