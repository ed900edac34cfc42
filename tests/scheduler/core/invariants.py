"""What must hold after every event, checked against the dispatcher's own books."""

from collections import Counter

from scheduler.core.dispatcher import Dispatcher
from scheduler.core.records import JobState


def check_invariants(dispatcher: Dispatcher) -> None:
    """Raise AssertionError at the first rule that the dispatcher's state breaks."""
    state = dispatcher._state
    records = state.records.values()
    running = [record for record in records if record.state is JobState.RUNNING]
    waiting = [record for record in records if record.state is JobState.WAITING]
    assert state.running == len(running)
    assert state.queued == len(waiting)

    # no job in two places, and every account is the sum of what runs there
    places = Counter(name for account in state.accounts.values() for name in account.running)
    assert all(count == 1 for count in places.values()), places
    for account in state.accounts.values():
        uuid = account.device.uuid
        here = [record for record in running if record.placement.device == uuid]
        on_device = [record for record in here if record.on_device]
        assert set(account.running) == {record.job.job_id for record in on_device}
        if account.cls.is_cpu:
            host = account.device.host
            promised = sum(r.placement.host_bytes for r in running if r.placement.host == host)
        else:
            promised = sum(record.placement.reserve_bytes for record in on_device)
            promised += sum(account.residents.values())
        assert account.reserved == promised, (uuid, account.reserved, promised)
        if account.exclusive is not None:
            assert set(account.running) == {account.exclusive}
        if account.claim is not None:
            assert account.claim.claim == uuid
            assert account.claim.state is JobState.WAITING
            assert account.slots > 0
        # the index of open devices says what the account says
        is_open = account.has_slot and account.claim is None
        entries = [entry for entry in account.cls.open if entry[2] is account]
        assert len(entries) == is_open, (uuid, account.key)
        if is_open:
            assert entries[0][0] == account.room
        assert account.cls.open == sorted(account.cls.open, key=lambda entry: entry[:2])

    # every waiting job waits in exactly one group, which is in the books
    grouped = Counter()
    for groups in state.families.values():
        for group in groups.values():
            members = list({id(record): record for record in group.waiting()}.values())
            assert len(members) == group.count > 0
            assert group.queued
            grouped.update(record.job.job_id for record in members)
    assert grouped == Counter(record.job.job_id for record in waiting)
    for record in running:
        assert record.attempts == record.placement.attempt
    for record in waiting:
        assert record.placement is None

    # every waiting job has a reason in words
    for waits in dispatcher.waiting():
        assert waits.reason.strip(), waits

    work = sum(group.count * group.area for groups in state.families.values() for group in groups.values())
    assert abs(state.backlog - work) <= 1e-6 * max(1.0, work)
