"""Probes and disks that fail do so as they should, and for a while only."""

import os
from itertools import groupby

import pytest

from scheduler.core.model import Device, DeviceKind
from scheduler.host.probes import discover
from scheduler.host.reading import Probe, Reading
from scheduler.host.timed import TimedProbe
from scheduler.stress.faults import FAULT_READINGS, LATE_S, TIMEOUT_S, FaultyProbe, with_faults
from scheduler.stress.slow_disk import LEAST_S, MOST_S, slowed


class WellProbe(Probe):
    def devices(self):
        return (Device("V-0", "virtual0", DeviceKind.VIRTUAL, 100),)

    def read(self, uuid):
        return Reading(uuid, 100, 40)


def answers(probe: FaultyProbe, waits: list[float], uuid: str = "V-0") -> list[str]:
    """What each of 600 readings came to."""
    found = []
    for _ in range(600):
        before = len(waits)
        try:
            reading = probe.read(uuid)
        except OSError:
            found.append("raised")
            continue
        if reading.used_bytes is None:
            assert reading.problem == "injected fault: no answer"
            found.append("unknown")
        else:
            assert reading == Reading(uuid, 100, 40)
            found.append("late" if len(waits) > before else "well")
    return found


def test_every_fault_comes_and_goes():
    waits: list[float] = []
    probe = FaultyProbe(WellProbe(), (1,), waits.append)
    found = answers(probe, waits)
    assert set(found) == {"raised", "unknown", "late", "well"}
    assert set(waits) == {LATE_S}
    assert probe.faults == len(found) - found.count("well")
    lasted = [len(list(run)) for answer, run in groupby(found) if answer != "well"]
    assert min(lasted[:-1]) >= FAULT_READINGS[0]
    assert max(lasted) < FAULT_READINGS[1]


def test_the_same_seed_makes_the_same_faults():
    def course(seed: int) -> list[str]:
        waits: list[float] = []
        return answers(FaultyProbe(WellProbe(), (seed,), waits.append), waits)

    assert course(1) == course(1)
    assert course(1) != course(2)


def test_a_late_answer_is_later_than_the_guard_waits():
    assert LATE_S > TIMEOUT_S


def test_gpus_are_read_through_faulty_probes_behind_the_guard_and_the_cpu_isn_t():
    found = discover((), virtual=[1 << 30, 2 << 30], virtual_tag="faulty-test")
    try:
        wrapped, faulty = with_faults(found, 1)
        assert wrapped.devices == found.devices
        *gpus, cpu = wrapped.devices
        assert len(faulty) == 1
        probes = {wrapped._probes[gpu.uuid] for gpu in gpus}
        assert len(probes) == 1
        assert isinstance(probes.pop(), TimedProbe)
        assert wrapped._probes[cpu.uuid] is found._probes[cpu.uuid]
        assert {wrapped.read(gpus[1].uuid).total_bytes for _ in range(3)} == {2 << 30}
    finally:
        wrapped.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only /proc tells which file a descriptor is")
def test_only_the_slow_disk_is_slow(tmp_path):
    waits: list[float] = []
    synced: list[object] = []
    fsync = slowed(synced.append, waits.append)
    for folder in ("results", "slow-disk"):
        (tmp_path / folder).mkdir()
        with open(tmp_path / folder / "a.tif", "wb") as file:
            fsync(file)
            fsync(file.fileno())
    assert len(synced) == 4
    assert len(waits) == 2
    assert all(LEAST_S <= wait <= MOST_S for wait in waits)
