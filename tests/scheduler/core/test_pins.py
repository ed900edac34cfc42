"""The second part of a reproducible run does what is left as the first part did the like of it."""

from scheduler.core.instructions import JobOutcome
from scheduler.core.policy import Pin
from tests.scheduler.core.build import World, cpu, gpu, job, on_cpu, on_gpu

BOTH = (on_gpu(2, cost=1), on_cpu(cost=10))
ON_CPU, ON_GPU = BOTH[1].name, BOTH[0].name


def test_the_first_parts_plan_and_model_are_kept_though_a_better_one_is_free():
    pins = {"k": Pin(ON_GPU, "B")}
    world = World(gpu(0, model="A"), gpu(1, model="B"), cpu(), reproducible=True, pins=pins)
    world.add(job("k0", *BOTH, kind="k"))
    assert world.where("k0") == "g1"


def test_a_run_begun_on_the_cpu_stays_there():
    world = World(gpu(), cpu(), reproducible=True, pins={"k": Pin(ON_CPU, cpu().model)})
    world.add(job("k0", *BOTH, kind="k"))
    assert world.where("k0") == cpu().uuid


def test_without_such_a_device_the_job_fails_and_says_what_it_was_done_on():
    world = World(gpu(model="A"), cpu(), reproducible=True, pins={"k": Pin(ON_GPU, "B")})
    world.add(job("k0", *BOTH, kind="k"))
    finish = world.finished["k0"]
    assert finish.outcome is JobOutcome.FAILED
    assert f"by {ON_GPU} on B" in finish.decision.reason


def test_pins_bind_only_a_reproducible_run():
    world = World(gpu(model="A"), cpu(), pins={"k": Pin(ON_GPU, "B")})
    world.add(job("k0", *BOTH, kind="k"))
    assert world.where("k0") == "g0"
