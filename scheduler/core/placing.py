"""Starting a job and giving back what it had: what that does to the accounts, and the instructions for it."""

from scheduler.core.accounts import DeviceAccount, DeviceClass
from scheduler.core.choosing import RESTRICTED_LOOKED_AT, Chooser
from scheduler.core.instructions import Evict, Instruction, Reclaim, Request, Start
from scheduler.core.model import Decision, Placement, Verdict, gib
from scheduler.core.records import Group, JobRecord, JobState, Option
from scheduler.core.state import State

# A job that takes longer gains little by being ready in its worker process when the one before it ends, and
# whoever waits behind it there would lose.
SHORT_S = 0.5
# Of the shortest several are kept ready for each slot of a CPU, as many as take this long.
READY_S = 0.8
# They hold no memory before they run, but it is kept for them: no more than this part of the host's.
READY_SHARE = 16
# So long one device is asked to evict state for a job before others are, and before the CPU takes the job.
ROOM_S = 10.0
# A job that the CPU takes at once asks nobody.
REQUEST_AFTER_S = 0.5
# A request to other runs is forgotten unless it is made again: `host.requests.REQUEST_S`.
REQUEST_AGAIN_S = 2.0


class Placer:
    """Fills devices from the queues of a `State`, appending instructions to `out`."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.out: list[Instruction] = []
        self._chooser = Chooser(state)

    def fill(self, account: DeviceAccount) -> bool:
        """Start what fits on this device until nothing more does; True if anything started."""
        started = False
        while self.start_one(account):
            started = True
        return started

    def fill_class(self, cls: DeviceClass) -> None:
        """Start waiting jobs on the class's open devices, one at a time, the roomiest device first."""
        while cls.open:
            # the roomiest device takes any job that fits on some device, but for those that are particular
            first = cls.open[-1][2]
            # which CPUs keep how many short jobs ready is a matter of each
            only_behind = cls.is_cpu and len(first.running) >= first.slots
            particular = cls.restricted or self.state.alone[cls.index] or cls.uneven() or only_behind
            roomiest = cls.open[: -RESTRICTED_LOOKED_AT if particular else -2 : -1]
            if not any(self.start_one(account) for _, _, account in roomiest):
                break

    def start_one(self, account: DeviceAccount) -> bool:
        """Start the best job for this device, if there is one."""
        state = self.state
        if state.held or state.stopped or not state.queued or not account.has_slot:
            return False
        choice = self._chooser.choose(account)
        if choice is None:
            if account.residents or account.unused:
                self._make_room(account)
            return False
        ahead = account.cls.is_cpu and len(account.running) >= account.slots
        if ahead and len(account.running) >= account.slots * self._rounds(account, *choice):
            return False
        self._start(account, *choice)
        return True

    def _rounds(self, account: DeviceAccount, group: Group, option: Option, _: bool, why: str) -> int:
        """How many such jobs a CPU may have for each of its slots, the running one included.

        A job that would rather have a GPU is bound to the CPU no sooner than it must be. Near the end no
        process is given what another one could take.
        """
        if not _is_short(group, option):
            return 1
        if 2 * account.device.slots * option.need > account.process_limit:
            return 1
        if why or group.area > 0.0:
            return 2
        in_time = int(READY_S / option.seconds) if option.seconds else account.window
        with_room = account.cls.capacity // (READY_SHARE * account.slots * max(1, option.need))
        fair = self.state.queued // self.state.cpu_slots
        return 1 + max(1, min(in_time, with_room, fair))

    def _start(self, account: DeviceAccount, group: Group, option: Option, alone: bool, why: str) -> None:
        state = self.state
        record = group.oldest() if account.claim is None else account.claim
        device = account.device
        free = account.free
        resident = option.resident - self._chooser.warmth(account, option)
        need = option.need - option.resident
        if alone:
            # a first job may need more than anybody thinks: it gets nearly all there is (used bytes flicker a
            # little)
            need = max(need, free - free // 16 - resident)
        host_need = option.host_need
        record.attempts += 1
        placement = Placement(
            record.job.job_id,
            record.attempts,
            device.uuid,
            device.host,
            option.plan,
            0 if account.cls.is_cpu else need,
            host_need,
            resident,
            alone,
        )
        decision = self._explain(account, group, option, placement, free, why)
        self._reclaim(account, need + resident, placement)
        state.leave(record)
        if not record.started:
            record.started = True
            state.departures += 1
            record.cohort.departed += 1
        self._release_claim(record)
        record.state = JobState.RUNNING
        record.placement = placement
        record.on_device = True
        record.room_on = record.requested_on = None
        record.refused = ""
        record.began_at = None
        account.running[record.job.job_id] = record
        if alone:
            account.exclusive = record.job.job_id
            account.refresh()
        if account.cls.is_cpu:
            if not _is_short(group, option):
                record.lengthy = True
                account.lengthy += 1
                account.refresh()
            account.reserved += host_need
            if why and not option.measured:
                state.exploring[group.family] = record.job.job_id
        else:
            account.reserved += need + resident
            if option.plan.resident is not None and resident:
                account.residents[option.plan.resident.name] = resident
            if account.host.cpu is not None:
                account.host.cpu.reserved += host_need
            record.share = option.share
            record.expected_end = state.now + option.seconds
            state.running_share += record.share
            state.running_ends += record.share * record.expected_end
        state.running += 1
        account.reindex()
        self.out.append(Start(placement, decision))

    def note_length(self, record: JobRecord, began_at: float) -> None:
        """A job that was thought to be short isn't: nothing more waits behind others on its CPU."""
        account = self.state.accounts[record.placement.device] if record.placement is not None else None
        if account is None or not (account.cls.is_cpu and record.on_device) or record.lengthy:
            return
        if self.state.now - began_at >= SHORT_S:
            record.lengthy = True
            account.lengthy += 1
            account.refresh()
            account.reindex()

    def vacate(self, record: JobRecord, release_host: bool = True) -> DeviceAccount | None:
        """Give back what an attempt had reserved.

        `release_host` False while only its device segment has ended.
        """
        placement = record.placement
        if placement is None:
            return None
        account = self.state.accounts[placement.device]
        job_id = placement.job_id
        if record.on_device:
            record.on_device = False
            account.running.pop(job_id, None)
            if account.exclusive == job_id:
                account.exclusive = None
                account.refresh()
            if record.lengthy:
                record.lengthy = False
                account.lengthy -= 1
                account.refresh()
            if account.cls.is_cpu:
                if self.state.exploring.get(record.job.learns_as) == job_id:
                    del self.state.exploring[record.job.learns_as]
            else:
                account.reserved -= placement.reserve_bytes
                self.state.running_share -= record.share
                self.state.running_ends -= record.share * record.expected_end
            account.reindex()
        if release_host:
            self.state.running -= 1
            record.placement = None
            cpu = account.host.cpu
            if cpu is not None:
                cpu.reserved -= placement.host_bytes
        return account

    def forget_resident(self, account: DeviceAccount, name: str) -> None:
        """A step's resident state isn't on the device any more."""
        account.reserved -= account.residents.pop(name, 0)
        account.evicting.discard(name)
        account.reindex()

    def _explain(
        self, account: DeviceAccount, group: Group, option: Option, placement: Placement, free: int, why: str
    ) -> Decision:
        name = account.device.name
        inputs = {
            "need": option.need,
            "free": free,
            "total": account.total,
            "external": account.external,
            "reserved": account.reserved,
            "headroom": account.device.headroom_bytes,
            "host_need": option.host_need,
        }
        if account.cls.is_cpu and not why and not group.rung:
            why = self.state.why_on_cpu(group)
        if why:
            return Decision(Verdict.FALL_BACK, f"goes to {name}: {why}", inputs)
        if placement.alone:
            cause = "nothing of its kind was measured yet" if group.cold else group.rung or "it is a suspect"
            reason = f"{option.plan.name} runs alone on {name} ({gib(free)} free): {cause}"
            return Decision(Verdict.ADMIT, reason, inputs)
        need = option.need if account.cls.is_cpu else placement.reserve_bytes + placement.resident_bytes
        reason = f"{option.plan.name} on {name}: needs {gib(need)} of {gib(free)} free"
        return Decision(Verdict.ADMIT, reason, inputs)

    def _reclaim(self, account: DeviceAccount, need: int, placement: Placement) -> None:
        """Idle bytes of another process of ours must go before this one can allocate.

        Its own pool sees to its own.
        """
        lacking = need - (account.total - account.used)
        if lacking > 0 and account.idle and account.processes > 1:
            nbytes = min(lacking, account.idle)
            reason = (
                f"{placement.job_id} may allocate {gib(need)} on {account.device.name}, where idle arrays "
                "hold "
                f"{gib(account.idle)}"
            )
            inputs = {"need": need, "idle": account.idle, "used": account.used}
            self.out.append(Reclaim(account.device.uuid, nbytes, Decision(Verdict.RECLAIM, reason, inputs)))
            account.idle -= nbytes
            account.used -= nbytes

    def _release_claim(self, record: JobRecord) -> None:
        if record.claim is not None:
            claimed = self.state.accounts[record.claim]
            claimed.claim = None
            record.claim = None
            self.state.unclaimed.append(claimed)

    def residents_in_use(self, account: DeviceAccount) -> set[str]:
        """The resident state that attempts on the device work with, or will as soon as they are there."""
        return {
            record.placement.plan.resident.name
            for record in account.running.values()
            if record.placement is not None and record.placement.plan.resident is not None
        }

    def _make_room(self, account: DeviceAccount) -> None:
        """Ask for idle resident state to go if a waiting job would fit then, on one device for each job.

        This run's own first; if that isn't enough, what other runs don't use now.
        """
        in_use = self.residents_in_use(account)
        uuid = account.device.uuid
        room = free = account.free
        idle: list[str] = []
        for name, nbytes in account.residents.items():
            if name in in_use:
                continue
            room += nbytes
            idle.append(name)
            for group, option in self._chooser.wants(account, room):
                own = option.plan.resident
                # what the job itself needs is worth keeping for it, unless it would set up less
                victim = next(
                    (
                        each
                        for each in reversed(idle)
                        if own is None or each != own.name or account.residents[each] > option.resident
                    ),
                    None,
                )
                if victim is not None and not group.room_is_made(self.state.now, uuid):
                    self._evict(account, victim, group, option, free)
                    return
        if not account.unused or account.evicting:
            return
        for group, option in self._chooser.wants(account, room + account.unused):
            need = option.need - self._chooser.warmth(account, option)
            if need > free and not group.room_is_made(self.state.now, uuid):
                self._request(account, need, group.oldest())
                return

    def _request(self, account: DeviceAccount, need: int, record: JobRecord) -> None:
        """Ask other runs, for one device after the other. Nobody knows whether they give way.

        The CPU may take the job meanwhile.
        """
        now, uuid, job_id = self.state.now, account.device.uuid, record.job.job_id
        if now - record.since < REQUEST_AFTER_S:
            return
        if account.requested[0] == job_id and now < account.requested[1]:
            return
        if record.requested_on not in (None, uuid) and now < record.requested_until:
            return
        record.requested_on, record.requested_until = _turn(
            record.requested_on, record.requested_until, uuid, now
        )
        if record.requested_on is None:
            return
        account.requested = job_id, now + REQUEST_AGAIN_S
        reason = (
            f"{job_id} needs {gib(need)} on {account.device.name}, where {gib(max(0, account.free))} are "
            f"free: other runs are asked for {gib(account.unused)} of state that they don't use now"
        )
        inputs = {"need": need, "free": account.free, "unused_state": account.unused}
        nbytes = need + account.device.headroom_bytes
        self.out.append(Request(uuid, nbytes, job_id, Decision(Verdict.RECLAIM, reason, inputs)))

    def _evict(self, account: DeviceAccount, name: str, group: Group, option: Option, free: int) -> None:
        record, now = group.oldest(), self.state.now
        record.room_on, record.room_until = _turn(record.room_on, record.room_until, account.device.uuid, now)
        if record.room_on is None or name in account.evicting:
            return
        account.evicting.add(name)
        nbytes = account.residents[name]
        reason = (
            f"{record.job.job_id} needs {gib(option.need)} on {account.device.name}, where "
            f"{gib(max(0, free))} are free and idle state of {name} holds {gib(nbytes)}"
        )
        inputs = {"need": option.need, "free": free, "idle_state": nbytes}
        self.out.append(Evict(account.device.uuid, name, Decision(Verdict.RECLAIM, reason, inputs)))


def _turn(on: str | None, until: float, uuid: str, now: float) -> tuple[str | None, float]:
    """Where room is made for a job, and until when, as a device is looked at; None: others have a turn."""
    if on != uuid:
        return uuid, now + ROOM_S
    return (on, until) if now < until else (None, 0.0)


def _is_short(group: Group, option: Option) -> bool:
    """Whether others may wait behind such a job; one that is tried again may be one that ends its worker."""
    return option.measured and option.seconds <= SHORT_S and not group.rung and not group.alone
