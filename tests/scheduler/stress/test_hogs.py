"""Hogs take memory from outside, and are gone with the test."""

from itertools import islice

import psutil
import pytest

from pools.virtual import VirtualDeviceMemory
from scheduler.core.model import Device, DeviceKind
from scheduler.stress.hogs import LEAST_PAUSE_S, HogPlan, Hogs, behave, steps_of, taker
from scheduler.stress.modes import HogMode
from scheduler.stress.options import StressError

GIB = 1 << 30


def plan(mode: HogMode, seed: int = 1) -> HogPlan:
    return HogPlan("V-0", DeviceKind.VIRTUAL, 8 * GIB, mode, (seed, 0))


def test_a_random_hog_grows_stays_and_gives_everything_back():
    held, peaks, most_steps, steps = 0, [], 0, 0
    for nbytes, seconds in islice(steps_of(plan(HogMode.RANDOM)), 2000):
        assert seconds >= LEAST_PAUSE_S
        if nbytes > 0:
            held += nbytes
            steps += 1
        elif nbytes < 0:
            peaks.append(held / (8 * GIB))
            most_steps = max(most_steps, steps)
            held = steps = 0
    assert len(peaks) > 20
    assert min(peaks) >= 0.099
    assert max(peaks) <= 0.501
    assert max(peaks) - min(peaks) > 0.2
    assert most_steps > 3


def test_the_same_seed_makes_the_same_hog():
    def course(seed: int) -> list[tuple[int, float]]:
        return list(islice(steps_of(plan(HogMode.RANDOM, seed)), 50))

    assert course(1) == course(1)
    assert course(1) != course(2)


def test_a_steady_hog_takes_its_share_once():
    steps = list(islice(steps_of(plan(HogMode.STEADY)), 10))
    assert [nbytes for nbytes, _ in steps] == [2 * GIB] + 9 * [0]


def test_a_hog_never_says_that_it_holds_more_than_it_does(device):
    memory = VirtualDeviceMemory(device.uuid)
    said: list[int] = []

    def say(nbytes: int) -> None:
        assert nbytes <= memory.used()
        assert nbytes or not said or memory.used() == said[-1]  # it says so before it gives back
        said.append(nbytes)

    one = HogPlan(device.uuid, DeviceKind.VIRTUAL, 2 * device.total_bytes, HogMode.RANDOM, (1, 0))
    for _ in islice(behave(steps_of(one), taker(one), say), 500):
        assert memory.used() == (said[-1] if said else 0)
    assert said.count(0) > 5
    assert max(said) > 0.8 * device.total_bytes  # the device was full, and the hog went on


@pytest.fixture
def device():
    memory = VirtualDeviceMemory(f"hog-test-{psutil.Process().pid}", GIB)
    yield Device(memory.path.name.split("-", 2)[2], "virtual0", DeviceKind.VIRTUAL, GIB)
    memory.unlink()


def test_a_hog_is_a_process_that_charges_the_device(device):
    cpu = Device("CPU", "cpu", DeviceKind.CPU, GIB)
    memory = VirtualDeviceMemory(device.uuid)
    with Hogs([device, cpu], HogMode.STEADY, seed=1) as hogs:
        assert hogs.uuids == (device.uuid,)
        (pid,) = hogs.pids
        (charge,) = memory.charges()
        assert (charge.process.pid, charge.nbytes, charge.owner) == (pid, GIB // 4, "hog")
        assert hogs.held[0] == GIB // 4
    assert memory.charges() == []
    assert not psutil.pid_exists(pid)


def test_without_hogs_there_is_no_process(device):
    with Hogs([device], HogMode.NONE, seed=1) as hogs:
        assert (hogs.uuids, hogs.pids) == ((), [])


def test_a_hog_that_can_t_run_says_why():
    gone = Device("no-such-device", "virtual0", DeviceKind.VIRTUAL, GIB)
    with pytest.raises(StressError, match="no hog can run on no-such-device: FileNotFoundError"):
        Hogs([gone], HogMode.STEADY, seed=1)
