"""A device's window: attempts read and prepare while others compute, and leave it with their device segment.

Here a chain runs on the host, on the device, and on the host again, a second each, in virtual time. A CPU
keeps short jobs ready in its worker processes.
"""

from dataclasses import replace
from heapq import heappop, heappush

import pytest

from scheduler.core.events import AttemptBegan, DeviceReleased, WorkerDied, WorkerLost
from scheduler.core.instructions import Start
from scheduler.core.placing import READY_S, READY_SHARE, SHORT_S
from tests.scheduler.core.build import GIB, World, cpu, gpu, jobs, on_cpu, on_gpu

PART_S = 1.0


class Chains(World):
    """Carries out attempts on one device: all prepare at once, `slots` compute at a time, and all finish."""

    def __init__(self, device, count):
        self.slots = device.slots
        self.moments = []
        self.ready = []
        self.computing = {}
        self.busy = []
        self.widest = 0
        self.most = 0
        super().__init__(device)
        self.add(*jobs(count, on_gpu(1)))
        while self.moments:
            self.now, _, name, step = heappop(self.moments)
            step(name)

    def later(self, name, step):
        heappush(self.moments, (self.now + PART_S, len(self.instructions), name, step))

    def tell(self, event):
        found = super().tell(event)
        for instruction in found:
            if isinstance(instruction, Start):
                placement = instruction.placement
                super().tell(AttemptBegan(self.now, placement.job_id, placement.attempt))
                self.later(placement.job_id, self.prepared)
        (view,) = self.dispatcher.device_view()
        self.widest = max(self.widest, len(view.running))
        self.most = max(self.most, self.dispatcher.running)
        return found

    def prepared(self, name):
        self.ready.append(name)
        self.compute()

    def compute(self):
        while self.ready and len(self.computing) < self.slots:
            name = self.ready.pop(0)
            self.computing[name] = self.now
            self.later(name, self.computed)

    def computed(self, name):
        self.busy.append((self.computing.pop(name), self.now))
        self.compute()
        self.later(name, lambda name: self.end(name, after=0.0))
        self.tell(DeviceReleased(self.now, name, self.running[name].attempt))

    @property
    def busy_share(self):
        """Of the time from the first device segment to the last, on all slots."""
        span = max(end for _, end in self.busy) - min(begin for begin, _ in self.busy)
        return sum(end - begin for begin, end in self.busy) / (self.slots * span)


@pytest.mark.parametrize(("slots", "prefetch"), [(1, 1), (1, 2), (1, 3), (2, 2), (2, 4)])
def test_a_window_keeps_the_device_busy_through_the_host_parts_of_a_chain(slots, prefetch):
    chains = Chains(replace(gpu(total=16, slots=slots), prefetch=prefetch), 60)
    assert len(chains.finished) == 60
    assert chains.busy_share >= 0.9


def test_without_a_window_the_device_idles_while_the_next_job_prepares():
    chains = Chains(gpu(slots=1), 60)
    assert chains.busy_share == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
def test_a_window_is_slots_and_prefetch_without_those_that_have_left_the_device(prefetch):
    chains = Chains(replace(gpu(total=16, slots=1), prefetch=prefetch), 40)
    assert chains.widest == 1 + prefetch
    assert chains.most > 1 + prefetch


def on_two_cpus(*costs):
    """Two processes of a CPU that keep one job ready each; a kind of job of each cost has been measured."""
    world = World(replace(cpu(slots=2), prefetch=2))
    for cost in costs:
        world.measure(on_cpu(cost=cost), kind=f"k{cost}")
    return world


def test_a_cpu_keeps_short_jobs_ready_in_its_processes():
    world = on_two_cpus(SHORT_S)
    world.add(*jobs(9, on_cpu(cost=SHORT_S), kind=f"k{SHORT_S}"))
    assert len(world.running) == 4


def test_long_jobs_dont_wait_behind_one_another_in_a_process():
    world = on_two_cpus(SHORT_S * 1.1)
    world.add(*jobs(9, on_cpu(cost=SHORT_S * 1.1), kind=f"k{SHORT_S * 1.1}"))
    assert len(world.running) == 2
    assert world.reason(f"k{SHORT_S * 1.1}5") == "cpu is busy with 2 of 2 jobs"


def test_a_job_that_was_never_measured_may_be_long():
    world = on_two_cpus()
    world.add(*jobs(9, on_cpu(cost=0.001)))
    assert len(world.running) == 2


def test_short_jobs_dont_wait_behind_a_long_one():
    world = on_two_cpus(0.1, 60.0)
    world.add(*jobs(1, on_cpu(cost=60.0), kind="k60.0"))
    world.add(*jobs(9, on_cpu(cost=0.1), kind="k0.1"))
    assert len(world.running) == 2
    world.end("k60.00")
    assert len(world.running) == 4


def test_a_long_job_starts_on_an_empty_process_only():
    world = on_two_cpus(0.1, 60.0)
    world.add(*jobs(4, on_cpu(cost=0.1), kind="k0.1"))
    world.add(*jobs(1, on_cpu(cost=60.0), kind="k60.0"))
    for number in range(2):
        world.end(f"k0.1{number}")
        assert "k60.00" not in world.running
    assert world.reason("k60.00") == "cpu is busy with 2 of 4 jobs"
    world.end("k0.12")
    assert "k60.00" in world.running


def many_ready(cost, *, need=0.1, prefetch=16, total=64):
    """Two processes that may keep eight jobs ready each, and how many of 100 such jobs are given to them."""
    world = World(replace(cpu(slots=2, total=total), prefetch=prefetch))
    world.measure(on_cpu(need, cost=cost), kind="k")
    world.add(*jobs(100, on_cpu(need, cost=cost), kind="k"))
    return world


@pytest.mark.parametrize(("cost", "rounds"), [(SHORT_S, 2), (READY_S / 3.5, 4), (READY_S / 100, 9)])
def test_the_shorter_the_jobs_the_more_are_ready(cost, rounds):
    assert len(many_ready(cost).running) == 2 * rounds


def test_near_the_end_no_process_is_given_more_than_its_share():
    world = many_ready(0.001)
    widest = {}
    while world.running:
        waiting = world.dispatcher.queued
        widest[waiting] = max(widest.get(waiting, 0), len(world.running))
        world.end(min(world.running))
    assert widest[20] == 18
    for waiting in range(1, 16):
        assert widest[waiting] <= 2 * (1 + max(1, (waiting + 1) // 2))


def test_what_is_ready_has_only_a_small_part_of_the_hosts_memory():
    world = many_ready(0.001, need=0.5)
    (placement, *_) = world.running.values()
    assert 4 < len(world.running) < 18
    assert (len(world.running) - 2) * placement.host_bytes <= 64 * GIB / READY_SHARE


def test_what_is_ready_doesnt_keep_a_gpu_from_its_hosts_memory():
    world = World(replace(cpu(slots=2, total=64), prefetch=16), gpu())
    world.measure(on_cpu(0.5, cost=0.001), kind="k")
    world.measure(on_gpu(1, host=50), kind="g")
    world.add(*jobs(1000, on_cpu(0.5, cost=0.001), kind="k"))
    world.add(*jobs(1, on_gpu(1, host=50), kind="g"))
    assert "g0" in world.running


def test_a_job_that_takes_longer_than_was_thought_has_nothing_more_put_behind_others():
    world = many_ready(0.001)
    slow, *others = list(world.running)
    world.tell(AttemptBegan(world.now + SHORT_S, slow, world.running[slow].attempt, SHORT_S))
    for name in others:
        world.end(name, WorkerDied("it waited behind one that takes long", blame=False))
    assert len(world.running) == 2
    world.end(slow)
    assert len(world.running) > 4


def test_a_report_that_a_short_job_runs_changes_nothing():
    world = many_ready(0.001)
    name = next(iter(world.running))
    world.tell(AttemptBegan(world.now, name, world.running[name].attempt, SHORT_S / 2))
    world.end(name)
    assert len(world.running) == 18


def test_a_free_slot_is_found_however_many_other_hosts_have_places_for_short_jobs():
    hosts = [f"h{number}" for number in range(70)]
    world = World(*(replace(cpu(slots=2, total=64, host=host), prefetch=16) for host in hosts))
    world.measure(on_cpu(0.1, cost=0.1), kind="k")
    world.measure(on_cpu(0.1, cost=60.0), kind="long")
    world.add(*jobs(1, on_cpu(0.1, cost=60.0), kind="long"))
    world.add(*jobs(5000, on_cpu(0.1, cost=0.1), kind="k"))
    busy = world.running["long0"].host
    assert sum(placement.host == busy for placement in world.running.values()) == 2


def test_every_host_keeps_jobs_ready():
    hosts = ("one", "two")
    world = World(*(replace(cpu(slots=2, total=64, host=host), prefetch=16) for host in hosts))
    world.measure(on_cpu(0.1, cost=SHORT_S), kind="k")
    world.add(*jobs(100, on_cpu(0.1, cost=SHORT_S), kind="k"))
    places = [placement.host for placement in world.running.values()]
    assert [places.count(host) for host in hosts] == [4, 4]


def test_two_that_are_too_large_for_one_process_dont_wait_behind_one_another():
    world = World(replace(cpu(slots=2, total=64), prefetch=16, attempt_host_bytes=3 * GIB))
    world.measure(on_cpu(1.8, cost=0.001), kind="k")
    world.add(*jobs(100, on_cpu(1.8, cost=0.001), kind="k"))
    assert len(world.running) == 2


def test_nothing_waits_behind_a_job_that_may_have_ended_its_worker():
    world = on_two_cpus(0.1)
    world.add(*jobs(1, on_cpu(cost=0.1), kind="k0.1"))
    world.end("k0.10", WorkerDied())
    assert "k0.10" in world.running
    world.add(*jobs(9, on_cpu(cost=0.1), kind="k0.1", start=1))
    assert len(world.running) == 2


def test_a_process_that_goes_takes_the_place_of_its_ready_job_with_it():
    world = on_two_cpus(0.1)
    world.tell(WorkerLost(world.now, "c-host", 1, (), "gone"))
    world.add(*jobs(9, on_cpu(cost=0.1), kind="k0.1"))
    assert len(world.running) == 2
