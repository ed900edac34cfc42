"""What the driver writes down: the journal, status.json, and the live view's moments."""

import contextlib
import errno
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

from scheduler.core.events import Done, Outcome, OutOfMemory
from scheduler.core.instructions import JobOutcome
from scheduler.core.model import Decision, Device, DeviceView, Placement, Waiting
from scheduler.execution.events import Events
from scheduler.execution.jobs import JobRequest, chains_of
from scheduler.execution.journal import Journal, NewJob
from scheduler.execution.outcomes import outcome_detail, outcome_name, report_detail
from scheduler.execution.status import (
    JobFailure,
    RunStatus,
    RunSummary,
    WaitingJob,
    device_status,
    write_status,
)
from scheduler.execution.task import AttemptReport

JOURNAL = "journal.sqlite"
STATUS_S = 1.0
VIEW_S = 0.25
MEMORY_S = 1.0
# How much may be found out again by `resume` after a kill: a commit waits for the disk.
COMMIT_S = 0.25
SHOWN_WAITING = 3


class DispatcherView(Protocol):
    """What the record shows of a dispatcher."""

    @property
    def running(self) -> int: ...

    def device_view(self) -> Sequence[DeviceView]: ...

    def waiting(self, limit: int | None = None) -> Iterable[Waiting]: ...


class JournalRecord:
    """Keeps a run's counts, and writes its journal and status.json; made by `begin` or `go_on`.

    Attributes
    ----------
    status
        The last moment that was shown; any thread may read it.
    hint
        Shown as a remark while it is set; no part of the run's account.
    no_room
        What could not be written since a disk is full; "" while everything could. What was not written is
        found out again by `resume`.
    events
        Tells what happens to those who follow it.
    metrics_url
        Where the run's figures are served, see docs/observability.md; "" where they aren't.
    """

    def __init__(self, run_dir: Path, journal: Journal) -> None:
        self.run_dir = run_dir
        self.failures: list[JobFailure] = []
        self.done: dict[str, int] = {}
        self.oom_attempts = 0
        self._journal = journal
        self.no_room = ""
        self.events = Events(run_dir.name)
        self.metrics_url = ""
        self.status: RunStatus | None = None
        self._jobs = 0
        self._attempts_before: dict[str, int] = {}
        self._devices: dict[str, Device] = {}
        self._last_event = ""
        # Without repetition, in order.
        self._remarks: dict[str, None] = {}
        self.hint = ""
        self._last_reason: dict[str, str] = {}
        self._shown_at = self._written_at = self._memory_at = self._committed_at = float("-inf")
        self._began = time.monotonic()
        self._first_start: float | None = None
        self._done_before = 0
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="stackyard-journal")
        self._commit: Future[None] | None = None

    @classmethod
    def begin(
        cls,
        run_dir: Path,
        config: Mapping[str, Any],
        jobs: Sequence[JobRequest] = (),
    ) -> Self:
        """Make the folder of a new run, and a journal with its jobs."""
        # `submit` may have made it for a driver that had to wait for its turn.
        run_dir.mkdir(parents=True, exist_ok=True)
        journal = Journal.create(
            run_dir / JOURNAL,
            version=version("stackyard"),
            host=socket.gethostname(),
            started_at=time.time(),
            config=config,
            jobs=map(_new_job, jobs),
            arrays={file.path: file.digest for chain in chains_of(jobs) for file in chain.array_files},
        )
        record = cls(run_dir, journal)
        record._jobs = len(jobs)
        return record

    @classmethod
    def go_on(cls, run_dir: Path, again: Iterable[str]) -> Self:
        """Open the journal of a run that ended early; the jobs in `again` are to be done, the others are."""
        journal = Journal.open(run_dir / JOURNAL)
        journal.restart()
        record = cls(run_dir, journal)
        for job_id in again:
            journal.wait_again(job_id)
        for job in journal.jobs():
            record._jobs += 1
            record._attempts_before[job.job_id] = job.attempts
        record.done = journal.done_by_device()
        record._done_before = sum(record.done.values())
        journal.commit()
        return record

    @property
    def left(self) -> int:
        """How many jobs have no outcome yet."""
        return self._jobs - sum(self.done.values()) - len(self.failures)

    def tell_start(self) -> None:
        """Tell those who follow that the run begins, or goes on."""
        told = {"stackyard_version": version("stackyard"), "host": socket.gethostname()}
        self.events.tell("run_started", run_dir=str(self.run_dir), jobs=self._jobs, left=self.left, **told)

    def add_jobs(self, jobs: Sequence[JobRequest]) -> None:
        """Take in jobs that come while the run goes on."""
        self._jobs += len(jobs)
        for job in map(_new_job, jobs):
            self._journal.add_job(
                job.job_id, output=job.output, shape=job.shape, dtype=job.dtype, at=time.time()
            )

    def add_devices(self, devices: Sequence[Device]) -> None:
        """Name the devices that the run may use."""
        for device in devices:
            self._devices[device.uuid] = device
            self.done.setdefault(device.uuid, 0)
            self._journal.add_device(
                device.uuid,
                device.name,
                device.kind,
                virtual=device.virtual,
                total_bytes=device.total_bytes,
                slots=device.slots,
            )
            told = {name: getattr(device, name) for name in ("uuid", "virtual", "total_bytes", "slots")}
            self.events.tell("device", device=device.name, kind=str(device.kind), **told)

    def remark(self, text: str) -> None:
        """Show `text` for as long as the run goes on, and in its account."""
        if text not in self._remarks:
            self._remarks[text] = None
            self.events.tell("remark", text=text)

    def decided(self, job_id: str, decision: Decision) -> None:
        """Write a decision down, unless it repeats the last one about this job word by word."""
        if self._last_reason.get(job_id) != decision.reason:
            self._last_reason[job_id] = decision.reason
            self._journal.add_decision(
                job_id,
                verdict=decision.verdict,
                reason=decision.reason,
                inputs=decision.inputs,
                at=time.time(),
            )
            self.events.tell(
                "decision", job=job_id, verdict=str(decision.verdict), reason=decision.reason
            )

    def started(self, placement: Placement) -> None:
        """An attempt was submitted."""
        if self._first_start is None:
            self._first_start = time.monotonic()
        plan, number = placement.plan, self._number(placement)
        self._journal.start_attempt(
            placement.job_id,
            number,
            device=placement.device,
            plan={
                "name": plan.name,
                "memory_types": list(plan.memory_types),
                "conversions": list(plan.conversions),
                "split": asdict(plan.split) if plan.split else None,
                "model": self._devices[placement.device].model,
            },
            device_bytes=placement.reserve_bytes,
            host_bytes=placement.host_bytes,
            at=time.time(),
        )
        self.events.tell(
            "attempt_started",
            job=placement.job_id,
            attempt=number,
            device=self.device_name(placement.device),
            plan=plan.name,
            device_bytes=placement.reserve_bytes,
            host_bytes=placement.host_bytes,
        )

    def ended(self, placement: Placement, outcome: Outcome, report: AttemptReport | None) -> None:
        """An attempt came back."""
        if isinstance(outcome, OutOfMemory):
            self.oom_attempts += 1
            self._last_event = f"{placement.job_id} ran out of memory on {self.device_name(placement.device)}"
        said = outcome_detail(outcome)
        name, number = outcome_name(outcome), self._number(placement)
        self._journal.end_attempt(
            placement.job_id, number, outcome=name, detail=report_detail(report) | said, at=time.time()
        )
        self.events.tell(
            "attempt_ended",
            job=placement.job_id,
            attempt=number,
            device=self.device_name(placement.device),
            outcome=name,
            **said,
        )
        if isinstance(outcome, Done):
            self.done[placement.device] += 1
            if report is not None and report.result is not None:
                shape, dtype = report.result
                self._journal.set_result(placement.job_id, shape=shape, dtype=dtype, outputs=report.outputs)

    def finished(self, job_id: str, outcome: JobOutcome, reason: str) -> None:
        """A job is over."""
        self._journal.end_job(job_id, state=outcome, reason=reason, at=time.time())
        self.events.tell("job_ended", job=job_id, state=str(outcome), reason=reason)
        self._last_reason.pop(job_id, None)
        if outcome is not JobOutcome.DONE:
            self.failures.append(JobFailure(job_id, reason))
            self._last_event = f"{job_id} {outcome}: {reason}".partition("\n")[0]

    def moment(
        self,
        state: str,
        view: DispatcherView,
        now: float,
        *,
        stuck: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Make what has happened durable, and show the state of the run, each where it is due.
        `now` is the dispatcher's clock, from which `Waiting.since` counts. `stuck` says of running jobs why
        they seem to get nowhere.
        """
        if now - self._committed_at >= COMMIT_S and self._commit_is_over():
            self._committed_at = now
            self._commit = self._committer.submit(self._journal.commit_changes, self._journal.take())
        if now - self._memory_at >= MEMORY_S and (devices := view.device_view()):
            self._memory_at = now
            self._write_memory(devices)
        if now - self._shown_at < VIEW_S:
            return
        self._shown_at = now
        waiting = list(view.waiting(limit=SHOWN_WAITING))
        self.status = self._status(state, view.device_view(), waiting, view.running, now, stuck)
        if now - self._written_at >= STATUS_S:
            self._written_at = now
            with self._room("status.json"):
                write_status(self.run_dir, self.status)

    def _commit_is_over(self, *, wait: bool = False) -> bool:
        """Whether the last commit has ended, well or not: a run doesn't stand still while it goes on."""
        if self._commit is None:
            return True
        if not (wait or self._commit.done()):
            return False
        commit, self._commit = self._commit, None
        with self._room("the journal"):
            commit.result()
        return True

    @contextlib.contextmanager
    def _room(self, what: str) -> Iterator[None]:
        """What can't be written, as on a full disk, is told by `no_room`; the run ends by it in order."""
        try:
            yield
        except sqlite3.OperationalError as error:
            self._journal.roll_back()
            full = error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
            why = "no space left for" if full else f"{error}:"
            self.no_room = f"{why} {what} in {self.run_dir}"
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.no_room = f"no space left for {what} in {self.run_dir}"

    def end(self, state: str, devices: Sequence[DeviceView], *, interrupted: bool) -> RunSummary:
        """Close the journal and sum the run up."""
        now = time.monotonic()
        self.status = self._status(state, devices, (), 0, now, {})
        with self._room("status.json"):
            write_status(self.run_dir, self.status)
        self._commit_is_over(wait=True)
        self._committer.shutdown()
        with self._room("the journal"):
            self._journal.end_run(state=state, at=time.time())
        self._journal.close()
        done, failed = sum(self.done.values()), len(self.failures)
        self.events.tell("run_ended", state=state, jobs=self._jobs, done=done, failed=failed)
        return RunSummary(
            jobs=self._jobs,
            done=done,
            failed=failed,
            # Every job ends as done or failed, or waits for `resume`; anything else is a defect of ours.
            lost=0 if interrupted else self._jobs - done - failed,
            oom_attempts=self.oom_attempts,
            wall_s=now - self._began,
            run_dir=str(self.run_dir),
            interrupted=interrupted,
            devices={
                device.name: {
                    "uuid": uuid,
                    "kind": str(device.kind),
                    "virtual": device.virtual,
                    "jobs": self.done[uuid],
                }
                for uuid, device in self._devices.items()
            },
            failures=tuple(self.failures),
            remarks=tuple(self._remarks),
        )

    def _status(
        self,
        state: str,
        devices: Sequence[DeviceView],
        waiting: Sequence[Waiting],
        running: int,
        now: float,
        stuck: Mapping[str, str],
    ) -> RunStatus:
        done = sum(self.done.values())
        rate = None
        if done and self._first_start is not None and now > self._first_start:
            rate = (done - self._done_before) / (now - self._first_start)
        return RunStatus(
            run_dir=str(self.run_dir),
            state=state,
            jobs=self._jobs,
            done=done,
            failed=len(self.failures),
            running=running,
            elapsed_s=now - self._began,
            rate_per_s=rate,
            eta_s=self.left / rate if rate and self.left else None,
            devices=tuple(device_status(view) for view in devices),
            waiting=tuple(WaitingJob(job.job_id, job.reason, now - job.since) for job in waiting),
            stuck=tuple(JobFailure(job, reason) for job, reason in stuck.items()),
            last_event=self._last_event,
            remarks=tuple(filter(None, (*self._remarks, self.hint))),
            metrics_url=self.metrics_url,
        )

    def _write_memory(self, devices: Sequence[DeviceView]) -> None:
        for view in devices:
            used = None if view.free_bytes is None else view.total_bytes - view.free_bytes
            self._journal.add_memory(
                view.uuid,
                total_bytes=view.total_bytes,
                used_bytes=used,
                reserved_bytes=view.reserved_bytes,
                idle_bytes=view.idle_bytes,
                external_bytes=view.external_bytes,
                at=time.time(),
            )

    def _number(self, placement: Placement) -> int:
        """The attempt's number in the journal, which counts those of earlier drivers too."""
        return self._attempts_before.get(placement.job_id, 0) + placement.attempt

    def device_name(self, uuid: str) -> str:
        """What a device is called."""
        return self._devices[uuid].name


def _new_job(request: JobRequest) -> NewJob:
    shape, dtype = request.form
    return NewJob(request.job_id, request.output.path if request.output else None, shape, dtype)
