"""Promises beyond what is there are seen, and nothing else is taken for one."""

from pools.process import ProcessId, this_process
from scheduler.core.model import Device, DeviceKind
from scheduler.host.reading import Reading
from scheduler.host.reservations import Grant, Reservations
from scheduler.host.rows import ReservationRow
from scheduler.stress.evidence import rows_left
from scheduler.stress.watch import HogLook, Promises, Watch


def row(nbytes: int, job: str = "a") -> ReservationRow:
    return ReservationRow("V-0", ProcessId(1, 2, 3), nbytes, job, "run")


def looked(*looks: tuple[list[ReservationRow], int, int], every_s: float = 0.02) -> int:
    """The worst after looks at (rows, what the hog held before, what it held after)."""
    promises = Promises({"V-0": 100})
    for number, (rows, before, after) in enumerate(looks):
        at = number * every_s
        promises.look(rows, HogLook(at, {"V-0": before}), HogLook(at + 0.001, {"V-0": after}))
    return promises.report().worst_bytes


def test_promises_up_to_the_last_byte_are_fine():
    assert looked(([row(60), row(40, "b")], 0, 0)) == 0


def test_one_byte_more_than_the_device_has():
    assert looked(([row(60), row(41, "b")], 0, 0)) == 1


def test_a_new_promise_beside_a_hog_that_was_there_all_the_time():
    assert looked(([row(60)], 30, 30), ([row(60), row(10, "b")], 30, 30)) == 0
    assert looked(([row(60)], 30, 30), ([row(60), row(11, "b")], 30, 30)) == 1


def test_a_hog_that_grows_after_the_promise_is_no_fault_of_ours():
    assert looked(([row(60)], 30, 30), ([row(60)], 60, 60), ([row(60)], 60, 60)) == 0


def test_a_hog_that_may_have_come_after_a_new_promise_doesn_t_count():
    assert looked(([], 0, 0), ([row(80)], 0, 30)) == 0
    assert looked(([], 0, 30), ([row(80)], 30, 30)) == 0


def test_a_hog_that_may_have_gone_before_a_new_promise_doesn_t_count():
    assert looked(([], 30, 30), ([row(80)], 30, 0)) == 0


def test_after_looking_away_for_long_the_hog_doesn_t_count():
    looks = ([], 30, 30), ([row(80)], 30, 30)
    assert looked(*looks) == 10
    assert looked(*looks, every_s=1.0) == 0


def test_the_worst_is_kept_by_device_and_grants_are_counted_once():
    promises = Promises({"V-0": 100, "V-1": 100})
    empty = HogLook(0.0, {})
    for rows in ([row(120)], [row(120), row(5, "b")], [row(5, "b")]):
        promises.look(rows, empty, empty)
    report = promises.report()
    assert report.overcommit_bytes == {"V-0": 25}
    assert report.moments == {"V-0": "120 bytes to a, 5 bytes to b, beside 0 bytes of others, of 100 bytes"}
    assert (report.looks, report.grants) == (3, 2)


def test_the_process_sees_a_promise_that_was_granted_wrongly():
    """A probe that lies lets a reservation through which the device can't hold."""
    uuid = f"V-watched-{this_process().pid}"
    device = Device(uuid, "virtual0", DeviceKind.VIRTUAL, 100)
    run = f"watched-{this_process().pid}"
    watch = Watch([device], run, [], ())
    with Reservations(run=run) as reservations:
        grants = [
            reservations.reserve(job, {uuid: nbytes}, read=lambda uuid: Reading(uuid, 1000, 0))
            for job, nbytes in (("a", 70), ("b", 50))
        ]
        assert len(rows_left(run)) == 2
        report = watch.stop()
        for grant in grants:
            assert isinstance(grant, Grant)
            reservations.release(grant)
    assert report.overcommit_bytes == {uuid: 20}
    assert report.grants == 2
    assert rows_left(run) == []
