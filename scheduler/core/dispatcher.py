"""The dispatcher: `handle(event) -> instructions`, the same for a live run and for the simulator."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from heapq import nsmallest
from itertools import islice
from typing import Any

from scheduler.core import events
from scheduler.core.accounts import DeviceAccount
from scheduler.core.ageing import Ageing
from scheduler.core.endings import Endings
from scheduler.core.footprint import Estimates
from scheduler.core.instructions import CancelAttempt, Instruction, JobOutcome
from scheduler.core.model import Decision, Device, DeviceView, Verdict, Waiting
from scheduler.core.placing import Placer
from scheduler.core.policy import OnPressure, Pin, Policy
from scheduler.core.pressure import out_of_reach
from scheduler.core.reasons import why_waiting
from scheduler.core.records import Group, JobRecord, JobState
from scheduler.core.state import State


class Dispatcher:
    """Decides which job runs where, when, and how; keeps the account of every device.

    Parameters
    ----------
    pins
        Where `policy.reproducible`: by kind of job, what an earlier part of the run has fixed.

    Notes
    -----
    Not thread-safe: one thread feeds it events. A device is full until its first snapshot. After `StopRun`
    nothing is started.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        devices: Iterable[Device] = (),
        estimates: Estimates | None = None,
        *,
        pins: Mapping[str, Pin] | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.estimates = estimates or Estimates()
        self._state = State(self.policy, self.estimates, pins)
        self._placer = Placer(self._state)
        self._ageing = Ageing(self._state)
        self._endings = Endings(self._state, self._placer, self._ageing)
        for device in devices:
            self._state.add_device(device)
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.JobAdded: self._job_added,
            events.JobsAdded: self._jobs_added,
            events.SnapshotTaken: self._snapshot_taken,
            events.AttemptBegan: self._attempt_began,
            events.AttemptEnded: self._attempt_ended,
            events.DeviceReleased: self._device_released,
            events.WorkerJoined: self._worker_joined,
            events.WorkerLost: self._worker_lost,
            events.ResidentEvicted: self._resident_evicted,
            events.AdmissionHeld: self._admission_held,
            events.Tick: self._tick,
            events.Cancel: self._cancel,
        }

    def handle(self, event: events.Event) -> list[Instruction]:
        """Take one event in and return what to do now, in order.

        Raises
        ------
        ValueError
            A job was added twice under one id, or has other plans than jobs of its kind before it.
        """
        state = self._state
        if event.now > state.now:
            state.now = event.now
        out: list[Instruction] = []
        self._placer.out = out
        ran = state.running
        self._handlers[type(event)](event)
        self._settle()
        if ran or state.running:
            state.busy_at = state.now
        return out

    def waiting(self, limit: int | None = None) -> Iterator[Waiting]:
        """The jobs that aren't running, oldest first, each with its reason; at most `limit`."""
        state = self._state
        count = state.queued if limit is None else limit
        records = (record for group in state.waiting_groups() for record in islice(group.waiting(), count))
        for record in nsmallest(count, records, key=lambda record: record.order):
            yield Waiting(record.job.job_id, why_waiting(state, record), record.since)

    def device_view(self) -> list[DeviceView]:
        """Every device's account, in the order they joined."""
        return [account.view() for account in self._state.accounts.values()]

    @property
    def queued(self) -> int:
        """Jobs waiting."""
        return self._state.queued

    @property
    def running(self) -> int:
        """Attempts running."""
        return self._state.running

    # jobs

    def _job_added(self, event: events.JobAdded) -> None:
        self._add((event.job,))

    def _jobs_added(self, event: events.JobsAdded) -> None:
        self._add(event.jobs)

    def _add(self, jobs: Iterable[Any]) -> None:
        state = self._state
        touched: dict[int, Group] = {}
        for job in jobs:
            if job.job_id in state.records:
                raise ValueError(f"job {job.job_id!r} was added before")
            group = state.add_job(job).group
            if not group.queued:
                touched[group.order] = group
        for group in touched.values():
            self._endings.enqueue(group)
        self._fill_everywhere()

    def _cancel(self, event: events.Cancel) -> None:
        state = self._state
        records = list(state.records.values()) if event.job_id is None else []
        if event.job_id is not None and event.job_id in state.records:
            records = [state.records[event.job_id]]
        for record in records:
            if record.state is JobState.WAITING:
                self._endings.drop(record)
                state.leave(record)
            elif record.state is JobState.RUNNING and record.placement is not None:
                placement = record.placement
                decision = Decision(Verdict.CANCEL, event.reason)
                instruction = CancelAttempt(
                    placement.job_id, placement.attempt, placement.device, False, decision
                )
                self._placer.out.append(instruction)
                # its bytes stay reserved until the attempt has really ended
                if record.cancelled is None:
                    record.cancelled = event.reason
                continue
            else:
                continue
            self._endings.finish(record, JobOutcome.CANCELLED, event.reason, Verdict.CANCEL)

    # attempts

    def _running(
        self, event: events.AttemptBegan | events.AttemptEnded | events.DeviceReleased
    ) -> JobRecord | None:
        """The job whose running attempt the event is about; None if that attempt is over."""
        record = self._state.records.get(event.job_id)
        if record is None or record.placement is None or record.attempts != event.attempt:
            return None
        return record

    def _attempt_began(self, event: events.AttemptBegan) -> None:
        record = self._running(event)
        if record is not None:
            self._endings.attempt_began(record, event.now - max(0.0, event.elapsed_s))

    def _attempt_ended(self, event: events.AttemptEnded) -> None:
        record = self._running(event)
        if record is not None:
            self._endings.attempt_ended(record, event.outcome)

    def _device_released(self, event: events.DeviceReleased) -> None:
        record = self._running(event)
        if record is None or record.strikes:
            return  # a suspect is alone in its process until its end: what comes next might hide who did it
        account = self._placer.vacate(record, release_host=False)
        if account is not None:
            self._endings.touch(account)

    # devices

    def _snapshot_taken(self, event: events.SnapshotTaken) -> None:
        account = self._state.accounts.get(event.snapshot.uuid)
        if account is None or not account.take_snapshot(event.snapshot):
            return
        account.reindex()
        self._ageing.drop_hopeless(account)
        self._endings.touch(account)
        if self.policy.on_pressure is OnPressure.FAIL:
            self._fail_what_is_out_of_reach()
        if not account.cls.is_cpu:
            # strangers came or went: what the CPU should take over may have changed
            self._fill_cpus()

    def _worker_joined(self, event: events.WorkerJoined) -> None:
        state = self._state
        account = state.accounts.get(event.device.uuid)
        if account is None:
            account = state.add_device(event.device)
            # a host's memory is a matter of every class of devices there
            changed = account.cls.is_cpu or len(account.cls.accounts) == 1
        else:
            limit = account.cls.attempt_host_bytes()
            account.device = event.device
            account.slots = event.device.slots
            account.online = True
            account.gone = ""
            changed = account.cls.attempt_host_bytes() != limit
        state.joined_at = state.now
        account.cls.strangers_moved()
        account.refresh()
        account.reindex()
        if changed:
            self._options_changed()
        else:
            for group in list(state.parked.values()):
                self._endings.enqueue(group)
        self._endings.touch(account)

    def _options_changed(self) -> None:
        """Which devices can run what is no longer as it was: every waiting group finds its new place."""
        self._state.topology += 1
        for group in list(self._state.waiting_groups()):
            self._endings.enqueue(group)

    def _worker_lost(self, event: events.WorkerLost) -> None:
        account = self._state.accounts.get(event.uuid)
        if account is None:
            return
        limit = account.cls.attempt_host_bytes()
        if event.attempt_host_bytes is not None:
            account.device = replace(account.device, attempt_host_bytes=event.attempt_host_bytes)
        account.slots = event.slots_left
        account.online = event.slots_left > 0 or account.cls.is_cpu
        account.cls.strangers_moved()
        account.gone = "" if event.slots_left else event.reason or "its worker is gone"
        account.gone_at = event.now
        names = event.job_ids if event.job_ids is not None else self._running_on(account)
        if not event.slots_left:
            for name in list(account.residents):
                self._placer.forget_resident(account, name)
        account.refresh()
        account.reindex()
        if account.cls.attempt_host_bytes() != limit:
            self._options_changed()
        for name in names:
            record = self._state.records.get(name)
            if record is None or record.placement is None or record.placement.device != event.uuid:
                continue
            blamed = event.blame and (event.hung is None or event.hung == name)
            self._endings.attempt_ended(record, events.WorkerDied(event.reason, blamed))
        if not account.slots:
            self._ageing.drop_hopeless(account)
        self._endings.touch(account)

    def _running_on(self, account: DeviceAccount) -> tuple[str, ...]:
        """Jobs whose attempt lives there, past their device segment included."""
        uuid = account.device.uuid
        return tuple(
            name
            for name, record in self._state.records.items()
            if record.placement is not None and record.placement.device == uuid
        )

    def _resident_evicted(self, event: events.ResidentEvicted) -> None:
        account = self._state.accounts.get(event.uuid)
        if account is None:
            return
        if event.name in self._placer.residents_in_use(account):
            # an attempt that was placed with it meanwhile sets it up again
            account.evicting.discard(event.name)
            return
        self._placer.forget_resident(account, event.name)
        self._endings.touch(account)

    # the run

    def _admission_held(self, event: events.AdmissionHeld) -> None:
        self._state.held = event.reason
        if not event.reason:
            self._fill_everywhere()

    def _tick(self, event: events.Tick) -> None:
        self._endings.stop_overdue(event.now)
        self._endings.give_up_waiting_for_larger(event.now)
        self._endings.give_up_waiting_for_absent(event.now)
        if self.policy.on_pressure is OnPressure.FAIL:
            self._fail_what_is_out_of_reach()
        for account in self._state.accounts.values():
            # an eviction that nobody answered is asked for again
            account.evicting.clear()
            self._endings.touch(account)

    def _fail_what_is_out_of_reach(self) -> None:
        for group in list(self._state.waiting_groups()):
            on_gpu = any(not self._state.classes[index].is_cpu for index in group.options)
            figures = out_of_reach(self._state, group) if on_gpu else None
            while figures is not None and group.count:
                record = group.oldest()
                self._endings.drop(record)
                self._state.leave(record)
                reason = f"{figures}; on_pressure is fail"
                self._endings.finish(record, JobOutcome.FAILED, reason, Verdict.REJECT)

    # settling

    def _fill_everywhere(self) -> None:
        """New jobs: the roomiest devices take the largest first; then the CPUs see what is left for them."""
        if self.policy.on_pressure is OnPressure.FAIL:
            self._fail_what_is_out_of_reach()
        self._fill_gpus()
        self._fill_cpus()

    def _fill_gpus(self) -> None:
        for cls in self._state.classes:
            if not cls.is_cpu:
                self._placer.fill_class(cls)

    def _fill_cpus(self) -> None:
        for cls in self._state.classes:
            if cls.is_cpu:
                self._placer.fill_class(cls)

    def _settle(self) -> None:
        """Fill every device that changed, until nothing more starts and no claim is due."""
        endings, state = self._endings, self._state
        while True:
            while endings.touched or endings.refill:
                refill, endings.refill = endings.refill, False
                touched = list(endings.touched.values())
                endings.touched.clear()
                for account in touched:
                    self._placer.fill(account)
                if refill:
                    self._fill_gpus()
                if state.queued:
                    self._fill_cpus()
            for account in self._ageing.check():
                endings.touch(account)
            for account in state.unclaimed:
                account.reindex()
                endings.touch(account)
            state.unclaimed.clear()
            if not endings.touched:
                return
