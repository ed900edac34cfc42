"""What becomes of jobs whose attempts don't succeed."""

from dataclasses import replace

import pytest

from scheduler.core.events import (
    DeviceReleased,
    Failed,
    JobsAdded,
    OutOfMemory,
    Refused,
    TimedOut,
    WorkerDied,
    WorkerLost,
)
from scheduler.core.instructions import JobOutcome, Retry, Start, StopRun
from scheduler.core.model import DeviceSnapshot, Split
from tests.scheduler.core.build import GIB, World, cpu, gpu, in_blocks, job, jobs, on_cpu, on_gpu


def rungs(world):
    return [i.rung for i in world.instructions if isinstance(i, Retry)]


def test_the_whole_ladder_is_climbed_and_every_rung_is_told():
    plans = (on_gpu(2), in_blocks(1, 4), in_blocks(0.5, 8), on_cpu())
    world = World(gpu(0, total=8), gpu(1, total=8), cpu())
    world.measure(on_gpu(2))
    world.add(*jobs(1, *plans))
    places = []
    while "k0" in world.running:
        placement = world.running["k0"]
        places.append((placement.device, placement.plan.name, placement.alone))
        world.end("k0", OutOfMemory(None, on_host=placement.plan.on_cpu))
    assert [name for _, name, _ in places] == ["torch"] * 3 + ["torch/4", "torch/8"] + ["numpy"] * 3
    assert places[0][0] != places[2][0] or places[1][0] != places[0][0], "another device was tried"
    told = rungs(world)
    assert told[0] == "a device that has more room"
    assert told[2:5] == ["in 4 blocks", "in 8 blocks", "the CPU"]
    assert world.finished["k0"].outcome is JobOutcome.FAILED
    assert "out of memory on cpu" in world.finished["k0"].decision.reason


def test_the_next_job_of_the_kind_does_not_repeat_an_underestimate():
    world = World(gpu(total=16, slots=4))
    world.measure(on_gpu(2))
    world.add(*jobs(2, on_gpu(2)))
    reserved = world.running["k0"].reserve_bytes
    world.end("k0", OutOfMemory(4 * GIB))
    world.end("k1")
    world.add(*jobs(1, on_gpu(2), start=2))
    assert world.running["k2"].reserve_bytes >= 4 * GIB > reserved


def test_a_strangers_spike_raises_no_estimate():
    world = World(gpu(total=16, slots=4))
    world.measure(on_gpu(4))
    world.add(*jobs(2, on_gpu(4)))
    reserved = world.running["k0"].reserve_bytes
    snapshot = DeviceSnapshot("g0", 16 * GIB, 12 * GIB)
    world.end("k0", OutOfMemory(GIB, snapshot))
    assert world.running == {"k1": world.running["k1"]}
    world.snapshot("g0")
    world.end("k0")
    world.add(*jobs(1, on_gpu(4), start=2))
    assert world.running["k2"].reserve_bytes <= reserved


def test_out_of_memory_alone_on_the_only_device_ends_with_the_figures():
    world = World(gpu(total=8))
    world.add(*jobs(1, on_gpu(2)))
    assert world.running["k0"].alone
    world.end("k0", OutOfMemory(8 * GIB))
    reason = world.finished["k0"].decision.reason
    for figure in ("out of memory on gpu0", "reserved 7.5 GiB", "reached 8 GiB", "nothing smaller"):
        assert figure in reason


def test_host_memory_that_runs_out_is_asked_for_more_and_then_given_up():
    world = World(cpu(total=8, slots=2))
    world.add(*jobs(1, on_cpu(host=2)))
    first = world.running["k0"].host_bytes
    world.end("k0", OutOfMemory(None, on_host=True))
    assert world.running["k0"].host_bytes >= 1.29 * first
    while "k0" in world.running:
        world.end("k0", OutOfMemory(None, on_host=True, error="MemoryError: Unable to allocate 1. PiB"))
    assert world.finished["k0"].outcome is JobOutcome.FAILED
    reason = world.finished["k0"].decision.reason
    assert reason.endswith("it was tried 3 times; the last time: MemoryError: Unable to allocate 1. PiB")


def test_more_host_memory_than_any_host_has_is_not_waited_for():
    world = World(cpu(total=8, slots=2))
    world.add(*jobs(1, on_cpu(host=5)))
    world.end("k0", OutOfMemory(7 * GIB, on_host=True))
    assert world.finished["k0"].outcome is JobOutcome.FAILED
    reason = world.finished["k0"].decision.reason
    assert reason.endswith("9.1 GiB of host memory that a retry would ask for are more than any host has")


def on_cpu_in_blocks(host, blocks):
    return replace(on_cpu(host, 20.0, f"numpy/{blocks}"), split=Split("z", blocks))


def test_host_memory_that_runs_out_is_tried_in_blocks_at_last():
    world = World(cpu(total=8, slots=2))
    world.add(job("k0", on_cpu(host=2), on_cpu_in_blocks(1, 2), on_cpu_in_blocks(0.5, 4)))
    names = []
    while "k0" in world.running:
        names.append(world.running["k0"].plan.name)
        world.end("k0", OutOfMemory(None, on_host=True))
    assert names == ["numpy"] * 3 + ["numpy/2", "numpy/4"]
    assert rungs(world) == ["more host memory"] * 2 + ["in 2 blocks", "in 4 blocks"]


def test_a_reproducible_run_does_not_go_to_blocks_when_host_memory_runs_out():
    world = World(cpu(total=8, slots=2), reproducible=True)
    world.add(job("k0", on_cpu(host=2), on_cpu_in_blocks(1, 2)))
    while "k0" in world.running:
        assert world.running["k0"].plan.name == "numpy"
        world.end("k0", OutOfMemory(None, on_host=True))
    assert world.finished["k0"].outcome is JobOutcome.FAILED


def test_blocks_are_chosen_up_front_where_no_process_may_take_the_whole():
    world = World(replace(cpu(total=32), attempt_host_bytes=2 * GIB))
    world.add(job("whole", on_cpu(host=2)), job("cut", on_cpu(host=3), on_cpu_in_blocks(1, 4)))
    assert {name: placement.plan.name for name, placement in world.running.items()} == {
        "whole": "numpy",
        "cut": "numpy/4",
    }
    world.add(job("large", on_cpu(host=2.5)))
    reason = world.finished["large"].decision.reason
    assert "needs 2.5 GiB of host memory, and cpu has 2 GiB for one process at most" in reason


def test_a_gpus_process_bounds_what_a_job_takes_of_its_host():
    world = World(replace(gpu(), attempt_host_bytes=GIB), cpu(slots=0))
    world.add(job("k0", on_gpu(1, host=1.5)), job("k1", on_gpu(1, host=0.5)))
    assert list(world.running) == ["k1"]
    assert "needs 1.5 GiB of host memory beside the device" in world.finished["k0"].decision.reason


def test_refused_costs_no_rung_and_is_not_proposed_again_before_a_fresh_look():
    world = World(gpu(slots=1))
    world.measure(on_gpu(1))
    world.add(*jobs(1, on_gpu(1)))
    for round_number in range(20):
        attempt = world.running["k0"].attempt
        (retry,) = world.end("k0", Refused("less than thought"))
        assert (retry.rung, attempt) == ("refused", round_number + 1)
        assert "less than thought" in retry.decision.reason
        assert "k0" not in world.running
        world.snapshot("g0")
    world.end("k0")
    assert world.finished["k0"].outcome is JobOutcome.DONE


def test_a_suspect_runs_alone_and_the_second_death_sets_it_aside():
    world = World(gpu(slots=4))
    world.measure(on_gpu(1))
    world.add(*jobs(3, on_gpu(1)))
    poison = world.running["k0"]
    world.tell(WorkerLost(1.0, "g0", 0, None, "signal 11"))
    world.running.clear()
    world.tell(world_joined(world))
    alone = [i.placement for i in world.instructions if isinstance(i, Start)][-1]
    assert alone.alone
    while world.running:
        (name,) = world.running
        assert world.running[name].alone
        if name == poison.job_id:
            world.end(name, WorkerDied("signal 11"))
        else:
            world.end(name)
    outcomes = {name: finish.outcome for name, finish in world.finished.items() if name.startswith("k")}
    assert outcomes == {"k0": JobOutcome.SET_ASIDE, "k1": JobOutcome.DONE, "k2": JobOutcome.DONE}
    assert "signal 11 on gpu0" in world.finished["k0"].decision.reason


def test_a_suspect_has_its_process_to_itself_until_its_end_is_told():
    """What began while it still wrote could hold up their process, and would be no more to blame than it."""
    world = World(gpu(slots=4))
    world.measure(on_gpu(1))
    world.add(*jobs(2, on_gpu(1)))
    world.tell(WorkerLost(1.0, "g0", 0, None, "fell silent"))
    world.running.clear()
    world.tell(world_joined(world))
    (name,) = world.running
    world.tell(DeviceReleased(world.now, name, world.running[name].attempt))
    assert set(world.running) == {name}
    world.end(name)
    assert set(world.running) == {"k0", "k1"} - {name}


def world_joined(world):
    from scheduler.core.events import WorkerJoined

    return WorkerJoined(world.now, world.devices["g0"])


def test_one_poison_job_beside_fifty_innocent_ones_loses_none_of_them():
    world = World(gpu(slots=2))
    world.measure(on_gpu(1))
    world.add(job("poison", on_gpu(1), family="k"), *jobs(50, on_gpu(1)))
    deaths = 0
    while world.running:
        if "poison" in world.running:
            deaths += 1
            world.running.clear()
            world.tell(WorkerLost(world.now, "g0"))
            world.tell(world_joined(world))
        else:
            world.end(min(world.running))
    assert deaths == 2
    assert world.finished["poison"].outcome is JobOutcome.SET_ASIDE
    assert world.finished["poison"].decision.reason.endswith("2 times under this job")
    assert sum(finish.outcome is JobOutcome.DONE for finish in world.finished.values()) == 51


def test_jobs_beside_a_hung_one_are_requeued_without_a_strike():
    world = World(gpu(slots=3))
    world.measure(on_gpu(1))
    world.add(*jobs(3, on_gpu(1)))
    world.end("k0", TimedOut("ran 3605 s, timeout_s is 3600"))
    world.running.clear()
    world.tell(WorkerLost(2.0, "g0", 0, ("k1", "k2"), "restarted, as k0 hung", blame=False))
    world.tell(world_joined(world))
    assert world.finished["k0"].outcome is JobOutcome.FAILED
    assert sorted(world.running) == ["k1", "k2"]
    assert not any(placement.alone for placement in world.running.values())


def test_a_lost_worker_with_a_hung_job_blames_that_one_only():
    world = World(gpu(slots=3))
    world.measure(on_gpu(1))
    world.add(*jobs(3, on_gpu(1)))
    world.tell(WorkerLost(2.0, "g0", 0, None, "no heartbeat", hung="k1"))
    assert [i.rung for i in world.instructions if isinstance(i, Retry)] == ["requeued", "suspect", "requeued"]


def test_one_cpu_process_of_several_takes_only_its_own_job_along():
    world = World(cpu(slots=2))
    world.add(*jobs(3, on_cpu()))
    world.tell(WorkerLost(1.0, "c-host", 1, ("k0",), blame=False))
    assert world.dispatcher.running == 1
    assert world.dispatcher.queued == 2
    world.end("k1")
    assert world.dispatcher.running == 1


@pytest.mark.parametrize("succeeds_first", [False, True])
def test_ten_equal_failures_before_any_success_stop_the_run(succeeds_first):
    world = World(cpu(slots=1))
    world.add(*jobs(20, on_cpu()))
    if succeeds_first:
        world.end("k0")
    failures = 0
    while world.running and failures < 10:
        assert not any(isinstance(i, StopRun) for i in world.instructions)
        world.end(min(world.running), Failed(f"no file {failures}", key="FileNotFoundError"))
        failures += 1
    stops = [i for i in world.instructions if isinstance(i, StopRun)]
    if succeeds_first:
        assert stops == []
        assert world.running
    else:
        assert len(stops) == 1
        reason = stops[0].decision.reason
        assert reason == "10 jobs failed alike before any succeeded, the last with: no file 9"
        assert not world.running


def test_unequal_failures_do_not_stop_the_run():
    world = World(cpu(slots=1))
    world.add(*jobs(20, on_cpu()))
    for number in range(15):
        world.end(min(world.running), Failed(f"fault {number}"))
    assert world.running


def test_a_job_cannot_be_added_twice():
    world = World(gpu())
    world.add(*jobs(1, on_gpu(1)))
    with pytest.raises(ValueError, match="'k0' was added before"):
        world.tell(JobsAdded(0.0, tuple(jobs(1, on_gpu(1)))))
    with pytest.raises(ValueError, match="other plans"):
        world.tell(JobsAdded(0.0, tuple(jobs(1, on_gpu(2), start=5))))


def test_a_host_memory_error_without_figures_teaches_nothing_about_other_jobs():
    world = World(cpu(total=64, slots=1))
    world.add(*jobs(3, on_cpu(host=1)))
    before = world.running["k0"].host_bytes
    while "k0" in world.running:
        world.end("k0", OutOfMemory(None, on_host=True))
    assert world.finished["k0"].outcome is JobOutcome.FAILED
    assert world.running["k1"].host_bytes == before


def test_a_margin_leaves_room_for_what_idle_processes_hold():
    """A need of the whole host would wait for ever: our own processes always hold a little of it."""
    world = World(cpu(total=8, slots=2), probed=False)
    world.add(*jobs(1, on_cpu(host=7)))  # with the margin of a cold start more than the host has
    world.snapshot("c-host", used=0.25, held_bytes=0.25)
    assert 7 * GIB <= world.running["k0"].host_bytes < 8 * GIB
