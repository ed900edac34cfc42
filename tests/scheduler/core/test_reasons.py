"""Every job that isn't running has a reason that a person understands: one situation each."""

import pytest

from scheduler.core.events import AdmissionHeld, AttemptEnded, Failed, Refused, Tick, WorkerDied, WorkerLost
from tests.scheduler.core.build import World, cpu, gpu, job, jobs, on_cpu, on_gpu


def busy():
    world = World(gpu(slots=1))
    world.measure(on_gpu(1))
    world.add(*jobs(2, on_gpu(1)))
    return world, "k1", ["gpu0 is busy with 1 of 1 jobs", "no CPU implementation"]


def memory_held_by_our_jobs():
    world = World(gpu(total=8, slots=4))
    world.measure(on_gpu(5))
    world.add(*jobs(2, on_gpu(5)))
    return world, "k1", ["needs 5.", "gpu0 has 2.", "free of 8 GiB", "jobs of this run reserve 5."]


def memory_held_by_strangers():
    world = World(gpu(total=8))
    world.measure(on_gpu(5))
    world.snapshot("g0", used=6)
    world.add(*jobs(1, on_gpu(5)))
    return world, "k0", ["needs 5.", "gpu0, has 2 GiB of 8 GiB", "other programs use 6 GiB"]


def memory_reserved_by_another_run():
    world = World(gpu(total=8))
    world.measure(on_gpu(5))
    world.other_run_reserves("g0", 7)
    world.add(*jobs(1, on_gpu(5)))
    return world, "k0", ["needs 5.", "other runs have reserved 7 GiB"]


def unknown_memory():
    world = World(gpu())
    world.snapshot("g0", used=None, problem="GPU is lost")
    world.add(*jobs(1, on_gpu(1)))
    return world, "k0", ["gpu0's free memory is unknown (GPU is lost)", "not the same as free"]


def never_probed():
    world = World(gpu(), probed=False)
    world.add(*jobs(1, on_gpu(1)))
    return world, "k0", ["unknown (not probed yet)"]


def measured_alone():
    world = World(gpu())
    world.add(*jobs(2, on_gpu(1)))
    return world, "k1", ["gpu0 runs k0 alone, to measure it"]


def no_empty_device_for_the_first_of_a_kind():
    world = World(gpu(slots=3))
    world.measure(on_gpu(1))
    world.add(*jobs(1, on_gpu(1)))
    world.add(job("new", on_gpu(1)))
    return world, "new", ["the first of its kind runs alone and is measured", "1 jobs run on gpu0"]


def the_cpu_would_take_longer():
    world = World(gpu(slots=1), cpu())
    world.measure(on_gpu(1), on_cpu(cost=10))
    world.add(*jobs(2, on_gpu(1), on_cpu(cost=10)))
    return world, "k1", ["gpu0 is busy", "expected to finish it in", "the CPU would take 10 s"]


def policy_is_to_wait():
    world = World(gpu(slots=1), cpu(), on_pressure="wait")
    world.measure(on_gpu(1))
    world.add(*jobs(2, on_gpu(1), on_cpu()))
    return world, "k1", ["gpu0 is busy", "on_pressure is wait"]


def host_memory():
    world = World(gpu(slots=4), cpu(total=4, slots=0))
    world.measure(on_gpu(1, host=2.5))
    world.add(*jobs(2, on_gpu(1, host=2.5)))
    return world, "k1", ["of host memory beside gpu0", "1.", "free"]


def refused():
    world = World(gpu())
    world.measure(on_gpu(1))
    world.add(*jobs(1, on_gpu(1)))
    world.end("k0", Refused("3 GiB less than thought"))
    return world, "k0", ["found less memory than expected (3 GiB less than thought)", "fresh look"]


def disk_full():
    world = World(gpu())
    world.tell(AdmissionHeld(0.0, "the disk of out is full"))
    world.add(*jobs(1, on_gpu(1)))
    return world, "k0", ["nothing more is started: the disk of out is full"]


def run_stopped():
    world = World(gpu(), max_failures=1)
    world.add(*jobs(2, on_gpu(1)))
    world.end("k0", Failed("no module named cellpose"))
    return world, "k1", ["the run was stopped: 1 jobs failed alike", "no module named cellpose"]


def suspect():
    world = World(gpu(slots=3))
    world.measure(on_gpu(1))
    world.add(*jobs(2, on_gpu(1)))
    world.end("k0", WorkerDied())
    return world, "k0", ["its worker died under it, so it runs alone", "1 jobs run on gpu0"]


def drained():
    world = World(gpu(total=8, slots=4), overtake_limit=2)
    world.measure(on_gpu(6), kind="large")
    world.measure(on_gpu(1), kind="small")
    world.add(*jobs(3, on_gpu(1), kind="small", batch=1))
    world.add(job("big", on_gpu(6), kind="large", batch=2))
    for batch in range(3, 7):
        world.add(*jobs(1, on_gpu(1), kind="small", start=batch, batch=batch))
        world.end(min(world.running))
    return world, "big", ["gpu0 is being drained for it", "needs 6."]


def passed_by_a_claim():
    world, _, _ = drained()
    return world, "small6", ["gpu0 is being drained for big, which was passed too often"]


def reproducible():
    world = World(gpu(0, slots=1), gpu(1, model="B"), reproducible=True)
    world.add(*jobs(2, on_gpu(1)))
    return world, "k1", ["reproducible fixes it to torch"]


def worker_lost():
    world = World(gpu())
    world.measure(on_gpu(1))
    world.tell(WorkerLost(world.now, "g0", reason="its node was preempted"))
    world.add(*jobs(1, on_gpu(1)))
    return world, "k0", ["gpu0 is offline", "its node was preempted"]


def no_device_yet():
    world = World(cpu(), elastic=True)
    world.add(*jobs(1, on_gpu(1)))
    return world, "k0", ["waits for a device to join"]


def the_cpu_is_busy_too():
    world = World(gpu(slots=1), cpu(slots=1), on_pressure="cpu")
    world.add(*jobs(3, on_gpu(1), on_cpu()))
    return world, "k2", ["gpu0 runs k0 alone", "and on the CPU: cpu is busy with 1 of 1 jobs"]


SITUATIONS = [
    busy,
    memory_held_by_our_jobs,
    memory_held_by_strangers,
    memory_reserved_by_another_run,
    unknown_memory,
    never_probed,
    measured_alone,
    no_empty_device_for_the_first_of_a_kind,
    the_cpu_would_take_longer,
    policy_is_to_wait,
    host_memory,
    refused,
    disk_full,
    run_stopped,
    suspect,
    drained,
    passed_by_a_claim,
    reproducible,
    worker_lost,
    no_device_yet,
    the_cpu_is_busy_too,
]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
def test_a_waiting_job_says_why(situation):
    world, name, parts = situation()
    reason = world.reason(name)
    for part in parts:
        assert part in reason, reason


def test_no_two_situations_are_told_alike():
    assert len({situation()[0].reason(situation()[1]) for situation in SITUATIONS}) == len(SITUATIONS)


def test_waiting_is_listed_oldest_first_and_only_as_many_as_asked():
    world = World(gpu(slots=1))
    world.measure(on_gpu(1))
    world.add(*jobs(5, on_gpu(1)))
    assert [waits.job_id for waits in world.dispatcher.waiting(2)] == ["k1", "k2"]
    assert world.dispatcher.queued == 4


def test_a_tick_changes_no_reason():
    world, name, _ = busy()
    before = world.reason(name)
    world.tell(Tick(world.now))
    assert world.reason(name) == before


def test_an_ended_attempt_of_a_finished_job_is_ignored():
    world = World(gpu())
    world.add(*jobs(1, on_gpu(1)))
    attempt = world.running["k0"].attempt
    world.end("k0")
    assert world.tell(AttemptEnded(9.0, "k0", attempt, Failed("late"))) == []
    assert world.dispatcher.device_view()[0].reserved_bytes == 0
