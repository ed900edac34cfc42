"""Why a job isn't running, in words with figures; worked out when somebody asks."""

from scheduler.core.accounts import DeviceAccount
from scheduler.core.model import gib
from scheduler.core.options import why_not_here
from scheduler.core.pressure import out_of_reach, why_not_cpu
from scheduler.core.records import Group, JobRecord, Option
from scheduler.core.state import State


def why_waiting(state: State, record: JobRecord) -> str:
    """One sentence for a person: what this job waits for."""
    group = record.group
    if state.stopped:
        return f"the run was stopped: {state.stopped}"
    if state.held:
        return f"nothing more is started: {state.held}"
    nobody = _no_worker(state)
    if nobody:
        return nobody
    if not group.options:
        return _why_parked(state, group)
    if record.refused:
        prefix = f"its worker found less memory than expected ({record.refused}); "
    else:
        prefix = f"{group.rung}: " if group.rung else ""
    if record.claim is not None:
        account = state.accounts[record.claim]
        return f"{prefix}{account.device.name} is being drained for it: {_obstacle(state, record, account)}"
    on_gpu = {i: choices for i, choices in group.options.items() if not state.classes[i].is_cpu}
    on_cpu = {i: choices for i, choices in group.options.items() if state.classes[i].is_cpu}
    if not on_gpu:
        index = next(iter(on_cpu))
        return prefix + _best_obstacle(state, record, {index: on_cpu[index]})
    strangers = out_of_reach(state, group)
    reason = strangers if strangers is not None and not on_cpu else _best_obstacle(state, record, on_gpu)
    if state.policy.reproducible:
        return (
            f"{prefix}{reason}; reproducible fixes it to {next(iter(on_gpu.values()))[0].plan.name} on such "
            "devices"
        )
    if not any(plan.on_cpu for plan in group.plans):
        return f"{prefix}{reason}; its chain has no CPU implementation"
    if not on_cpu:
        return f"{prefix}{reason}; no CPU can take it"
    cpu = state.classes[next(iter(on_cpu))]
    kept = why_not_cpu(state, group, cpu)
    if kept is None:
        kept = "and on the CPU: " + _best_obstacle(state, record, {cpu.index: on_cpu[cpu.index]})
    return f"{prefix}{reason}; {kept}"


def _no_worker(state: State) -> str:
    """Where every worker has gone, if none is left or none has come yet; else ""."""
    accounts = state.accounts.values()
    if any(account.slots for account in accounts):
        return ""
    gone = [f"{account.device.name} is {account.absence}" for account in accounts if account.absence]
    told = f" ({'; '.join(gone[:3])}{', and others' if len(gone) > 3 else ''})" if gone else ""
    return f"no worker is there{told}; it goes on when one joins"


def _why_parked(state: State, group: Group) -> str:
    """What a job that none of the devices here can run waits for."""
    figures = state.why_pinned(group) or why_not_here(
        group, state.classes, state.estimates, state.policy.on_pressure
    )
    reason = f"waits for a device to join that can run it: {figures}"
    if not state.has_kind_for(group):
        return reason
    return f"{reason}; it fails if none has joined {state.policy.join_wait_s:g} s after all else is done"


def _best_obstacle(state: State, record: JobRecord, options: dict[int, tuple[Option, ...]]) -> str:
    """The obstacle on the device that could take it soonest: one with a slot and the most room."""
    best: DeviceAccount | None = None
    for index in options:
        for account in state.classes[index].accounts:
            if not record.group.permits(account.device.uuid):
                continue
            if best is None or (account.has_slot, account.for_one) > (best.has_slot, best.for_one):
                best = account
    if best is None:
        return "none of the devices that it may use is here"
    return _obstacle(state, record, best)


def _obstacle(state: State, record: JobRecord, account: DeviceAccount) -> str:
    group = record.group
    name = account.device.name
    options = group.options.get(account.cls.index, ())
    need = min((option.need for option in options), default=0)
    if account.absence:
        return f"{name} is {account.absence}"
    if not account.known:
        return f"{name}'s free memory is unknown ({account.problem}), which is not the same as free"
    if account.blocked:
        return f"{name} refused it and waits for a fresh look at its memory ({account.blocked})"
    if account.exclusive is not None:
        cold = account.running[account.exclusive].group.cold
        return f"{name} runs {account.exclusive} alone, {'to measure it' if cold else 'as it must run alone'}"
    if not account.slots:
        return f"{name} has no worker for it"
    if account.claim is not None and account.claim is not record:
        return f"{name} is being drained for {account.claim.job.job_id}, which was passed too often"
    limit = account.slots if account.cls.is_cpu else account.window
    if len(account.running) >= limit:
        return f"{name} is busy with {len(account.running)} of {account.window} jobs"
    if (group.alone or group.cold) and account.running and not account.cls.is_cpu:
        cause = "the first of its kind runs alone and is measured" if group.cold else "it must run alone"
        return f"{cause}, and {len(account.running)} jobs run on {name}"
    if account.cls.is_cpu and need > account.process_limit:
        most = gib(account.process_limit)
        return f"needs {gib(need)}, and no worker process of {name} may take more than {most}"
    free = account.free
    if need > free:
        figures = f"needs {gib(need)}, and {name} has {gib(max(0, free))} free of {gib(account.total)}"
        parts = [f"jobs of this run reserve {gib(account.reserved)}"] if account.reserved else []
        if account.external:
            parts.append(f"other programs use {gib(account.external)}")
        if account.foreign:
            parts.append(f"other runs reserve {gib(account.foreign)}")
        if account.excess:
            parts.append(f"our processes hold {gib(account.excess)} beyond their reservations")
        return figures + (f": {', '.join(parts)}" if parts else "")
    host_need = min((option.host_need for option in options), default=0)
    if host_need > account.host_for_one:
        most = gib(max(0, account.host_for_one))
        return f"needs {gib(host_need)} of host memory beside {name}, and {most} are free for one job"
    ahead = state.queued - 1
    return f"{name} has room, and {ahead} other jobs are considered with it"
