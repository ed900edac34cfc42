"""What follows when an attempt or a job ends.

Learning, the ladder, strikes, equal failures, freed devices.
"""

from heapq import heappop, heappush

from scheduler.core.accounts import DeviceAccount
from scheduler.core.ageing import Ageing
from scheduler.core.events import Cancelled, Done, Outcome, OutOfMemory, Refused, TimedOut, WorkerDied
from scheduler.core.instructions import CancelAttempt, FinishJob, JobOutcome, Retry, StopRun
from scheduler.core.model import Decision, Placement, Verdict
from scheduler.core.options import why_impossible
from scheduler.core.placing import Placer
from scheduler.core.records import Group, JobRecord, JobState
from scheduler.core.recovery import STRIKES, after_oom, suspect
from scheduler.core.state import State

# An out of memory that had reached this much of its reservation was an underestimate; less was a stranger's
# doing.
UNDERESTIMATE = 0.9
OOM_RAISE = 1.1


class Endings:
    """Takes attempts out of the accounts and jobs out of the run; `touched` collects devices that may start
    more.

    `refill`: what waits has changed its needs, so any open device may be able to start something.
    """

    def __init__(self, state: State, placer: Placer, ageing: Ageing) -> None:
        self._state = state
        self._placer = placer
        self._ageing = ageing
        self.touched: dict[str, DeviceAccount] = {}
        self._epoch = state.estimates.epoch
        self._succeeded = False
        self._failures: dict[str, int] = {}
        self.refill = False

    def touch(self, account: DeviceAccount) -> None:
        """This device may be able to start something now."""
        self.touched[account.device.uuid] = account
        if account.host.starved:
            account.host.starved = False
            self.touched.update((other.device.uuid, other) for other in account.host.devices)

    def enqueue(self, group: Group) -> None:
        """Queue a group; its jobs are rejected, with the figures, if they can never run.

        Where devices may still join they are parked instead, until one does.
        """
        state = self._state
        if state.enqueue(group):
            state.parked.pop(group.order, None)
            if group.cold or group.alone or group.rung:
                self._ageing.watch(group)
            return
        if state.policy.elastic and group.plans:
            self._ageing.drop_claims(group)
            state.parked[group.order] = group
            group.queued = True
            return
        self._reject(group, self._why_impossible(group))

    def _why_impossible(self, group: Group) -> str:
        state = self._state
        return state.why_pinned(group) or why_impossible(
            group, state.classes, state.estimates, state.policy.on_pressure
        )

    def _reject(self, group: Group, reason: str) -> None:
        """The jobs of a group that no device can run fail."""
        while group.count:
            record = group.oldest()
            self.drop(record)
            self._state.leave(record)
            self.finish(record, JobOutcome.FAILED, reason, Verdict.REJECT)

    def give_up_waiting_for_larger(self, now: float) -> None:
        """Fail parked jobs for which the devices here are too small, once they are all that is left.

        Jobs for whose kind of device there is no worker at all go on waiting: they hold nothing up.
        """
        state = self._state
        if state.queued > sum(group.count for group in state.parked.values()):
            state.busy_at = now
        waited = now - max(state.busy_at, state.joined_at)
        if not state.parked or state.running or waited < state.policy.join_wait_s:
            return
        for group in list(state.parked.values()):
            if state.has_kind_for(group):
                joined = f"with all else done, none that could joined in {waited:.0f} s"
                self._reject(group, f"{self._why_impossible(group)}; {joined}")

    def give_up_waiting_for_absent(self, now: float) -> None:
        """Fail jobs all of whose devices have been without a worker for too long, where none may join.

        With no worker left anywhere that is for the driver to say, of the whole run.
        """
        state = self._state
        wait_s = state.policy.absence_wait_s
        absent = {
            uuid: account
            for uuid, account in state.accounts.items()
            if account.gone and now - account.gone_at >= wait_s
        }
        if state.policy.elastic or not absent or not any(each.slots for each in state.accounts.values()):
            return
        for group in list(state.waiting_groups()):
            able = [
                account
                for index in group.options
                for account in state.classes[index].accounts
                if group.permits(account.device.uuid)
            ]
            if able and all(account.device.uuid in absent for account in able):
                names = ", ".join(f"{account.device.name} is {account.absence}" for account in able)
                since = now - max(account.gone_at for account in able)
                self._reject(group, f"{names}; no worker has come back in {since:.0f} s")

    def drop(self, record: JobRecord) -> None:
        """A job leaves the run without having started: count its departure, release its claim."""
        self._ageing.release(record)
        if not record.started:
            record.started = True
            self._state.departures += 1
            record.cohort.departed += 1

    def finish(
        self, record: JobRecord, outcome: JobOutcome, reason: str, verdict: Verdict = Verdict.FINISH
    ) -> None:
        """The job is over."""
        record.state = JobState.FINISHED
        self._placer.out.append(FinishJob(record.job.job_id, outcome, Decision(verdict, reason)))

    def attempt_began(self, record: JobRecord, began_at: float) -> None:
        """The attempt's deadline counts from here, not from its submission.

        Until then it may have waited in its worker's window behind others. What it has waited for since moves
        it on.
        """
        self._placer.note_length(record, began_at)
        if record.began_at is not None and began_at <= record.began_at:
            return
        record.began_at = began_at
        timeout_s = record.job.timeout_s
        if timeout_s is not None:
            heappush(self._state.deadlines, (began_at + timeout_s, record.order, record.attempts, record))

    def stop_overdue(self, now: float) -> None:
        """Cancel attempts that have passed their `timeout_s`, and restart their workers."""
        deadlines = self._state.deadlines
        while deadlines and deadlines[0][0] < now:
            deadline, _, attempt, record = heappop(deadlines)
            placement, timeout_s = record.placement, record.job.timeout_s
            if placement is None or placement.attempt != attempt or record.began_at is None:
                continue
            if timeout_s is None or record.began_at + timeout_s != deadline:
                continue  # it has waited since; a later deadline stands for this one
            reason = f"runs for {now - record.began_at:.1f} s, and its timeout_s is {timeout_s:g}"
            decision = Decision(Verdict.CANCEL, reason)
            self._placer.out.append(
                CancelAttempt(placement.job_id, attempt, placement.device, True, decision)
            )

    def attempt_ended(self, record: JobRecord, outcome: Outcome) -> None:
        """Free what the attempt had, learn from it, and decide what becomes of the job."""
        placement = record.placement
        if placement is None:
            return
        account = self._placer.vacate(record)
        assert account is not None
        self.touch(account)
        if isinstance(outcome, Done):
            # even if it was to be cancelled: its output is in place
            self._done(record, placement, account, outcome)
        elif record.cancelled is not None:
            self.finish(record, JobOutcome.CANCELLED, record.cancelled, Verdict.CANCEL)
        elif isinstance(outcome, Cancelled):
            self.finish(record, JobOutcome.CANCELLED, outcome.reason, Verdict.CANCEL)
        elif isinstance(outcome, OutOfMemory):
            self._out_of_memory(record, placement, account, outcome)
        elif isinstance(outcome, Refused):
            self._refused(record, placement, account, outcome)
        elif isinstance(outcome, WorkerDied):
            self._worker_died(record, account, outcome)
        elif isinstance(outcome, TimedOut):
            self._failed(record, outcome.reason, "timed out")
        else:
            self._failed(record, outcome.error, outcome.key or outcome.error)

    def _done(self, record: JobRecord, placement: Placement, account: DeviceAccount, outcome: Done) -> None:
        self._succeeded = True
        account.done += 1
        late = f", before it could be stopped ({record.cancelled})" if record.cancelled is not None else ""
        self.finish(record, JobOutcome.DONE, f"done on {account.device.name}{late}")
        self._learn(record, placement, account, outcome)

    def _learn(self, record: JobRecord, placement: Placement, account: DeviceAccount, outcome: Done) -> None:
        estimates = self._state.estimates
        job, plan, model = record.job, placement.plan, account.device.model
        family, changed = job.learns_as, False
        if not account.cls.is_cpu:
            if outcome.device_peak_bytes is None:
                changed = estimates.accept_declared(family, plan)
            elif outcome.attributed or placement.alone:
                peak = outcome.device_peak_bytes
                changed = estimates.observe_device_peak(family, job.kind, plan, model, peak)
        if outcome.attributed and outcome.host_peak_bytes is not None:
            changed |= estimates.observe_host_peak(family, job.kind, plan, outcome.host_peak_bytes)
        if outcome.duration_s is not None:
            changed |= estimates.observe_seconds(family, plan, model, outcome.duration_s)
        if estimates.epoch != self._epoch:
            self._epoch = estimates.epoch
            for name in list(self._state.families):
                self._requeue_family(name)
        elif changed:
            self._requeue_family(family)

    def _requeue_family(self, family: str) -> None:
        """Its estimates have changed: every waiting group of the family finds its new place."""
        for group in list(self._state.families.get(family, {}).values()):
            self.enqueue(group)
        self.refill = True

    def _out_of_memory(
        self, record: JobRecord, placement: Placement, account: DeviceAccount, outcome: OutOfMemory
    ) -> None:
        state = self._state
        on_host = outcome.on_host or account.cls.is_cpu
        peak = outcome.peak_bytes
        reserved = placement.host_bytes if on_host else placement.reserve_bytes
        # A host's MemoryError without a figure may be one absurd request: it tells nothing about other jobs.
        told = not on_host if peak is None else peak >= UNDERESTIMATE * reserved
        if told:
            job, raised = record.job, int(max(peak or 0, reserved) * OOM_RAISE)
            model = account.device.model
            if on_host:
                changed = state.estimates.observe_host_peak(job.learns_as, job.kind, placement.plan, raised)
            else:
                changed = state.estimates.observe_device_peak(
                    job.learns_as, job.kind, placement.plan, model, raised
                )
            if changed:
                self._requeue_family(job.learns_as)
        self._forget_new_resident(placement, account)
        if outcome.snapshot is not None:
            account.take_snapshot(outcome.snapshot)
            account.reindex()
        rung = after_oom(state, record, placement, outcome)
        if rung.group is None:
            self.finish(record, JobOutcome.FAILED, rung.reason)
            self._count_failure("out of memory", rung.reason)
            return
        self._ageing.watch(rung.group)
        self._retry(record, rung.name, rung.reason, Verdict.RETRY)
        self.refill = True

    def _refused(
        self, record: JobRecord, placement: Placement, account: DeviceAccount, outcome: Refused
    ) -> None:
        self._forget_new_resident(placement, account)
        if outcome.snapshot is not None:
            account.take_snapshot(outcome.snapshot)
        # without this the same placement would be proposed at once, and refused again
        account.blocked = outcome.reason
        account.refresh()
        account.reindex()
        record.refused = outcome.reason
        self._back(record)
        self._retry(record, "refused", f"{account.device.name}: {outcome.reason}", Verdict.REQUEUE)

    def _worker_died(self, record: JobRecord, account: DeviceAccount, outcome: WorkerDied) -> None:
        where = f"{outcome.reason} on {account.device.name}"
        if not outcome.blame:
            self._back(record)
            self._retry(record, "requeued", f"{where}, through no fault of its own", Verdict.REQUEUE)
            return
        record.strikes += 1
        if record.strikes >= STRIKES:
            reason = f"set aside: {where}, which has now happened {record.strikes} times under this job"
            self.finish(record, JobOutcome.SET_ASIDE, reason, Verdict.SET_ASIDE)
            return
        self.enqueue(suspect(self._state, record))
        self._retry(record, "suspect", f"{where}: it runs alone next time", Verdict.REQUEUE)
        self.refill = True

    def _failed(self, record: JobRecord, reason: str, key: str) -> None:
        self.finish(record, JobOutcome.FAILED, reason)
        self._count_failure(key, reason)

    def _count_failure(self, key: str, reason: str) -> None:
        state = self._state
        count = self._failures[key] = self._failures.get(key, 0) + 1
        if not self._succeeded and not state.stopped and 0 < state.policy.max_failures <= count:
            state.stopped = f"{count} jobs failed alike before any succeeded, the last with: {reason}"
            self._placer.out.append(StopRun(Decision(Verdict.STOP, state.stopped)))

    def _back(self, record: JobRecord) -> None:
        """Wait again on the same terms."""
        group = record.group
        if group.rung or group.alone:
            self._state.wait(record, group, front=True)
        else:
            group = self._state.requeue(record)
        if not group.queued:
            self.enqueue(group)

    def _retry(self, record: JobRecord, rung: str, reason: str, verdict: Verdict) -> None:
        if record.state is JobState.WAITING:
            decision = Decision(verdict, reason)
            self._placer.out.append(Retry(record.job.job_id, record.attempts, rung, decision))

    def _forget_new_resident(self, placement: Placement, account: DeviceAccount) -> None:
        """Nobody knows if an attempt that failed has set its state up, but for those who work with it."""
        resident = placement.plan.resident
        if resident is None or not placement.resident_bytes:
            return
        if resident.name not in self._placer.residents_in_use(account):
            self._placer.forget_resident(account, resident.name)
