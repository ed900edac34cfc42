"""What the dispatcher does about pressure, priorities, warm devices and jobs that can never fit."""

import pytest

from scheduler.core.events import (
    DeviceReleased,
    Done,
    ResidentEvicted,
    SnapshotTaken,
    WorkerJoined,
    WorkerLost,
)
from scheduler.core.footprint import Estimates
from scheduler.core.instructions import Evict, JobOutcome, Reclaim, Start
from scheduler.core.model import Device, DeviceSnapshot, ProcessMemory, Verdict
from tests.scheduler.core.build import GIB, World, cpu, gpu, in_blocks, job, jobs, on_cpu, on_gpu, resident

BOTH = (on_gpu(2, cost=1), on_cpu(cost=10))


def known(*devices, plans=BOTH, **policy):
    """A world in which the plans' family was measured everywhere it can run."""
    world = World(*devices, **policy)
    world.measure(*plans)
    return world


def test_what_can_never_fit_is_rejected_at_once_with_numbers():
    world = World(gpu(total=8, headroom=0.5), cpu(total=4))
    world.add(job("j", on_gpu(9), on_cpu(host=6)))
    finish = world.finished["j"]
    assert finish.outcome is JobOutcome.FAILED
    assert finish.decision.verdict is Verdict.REJECT
    for figure in (
        "9 GiB of device memory",
        "8 GiB with 512 MiB of headroom",
        "6 GiB of host memory",
        "4 GiB at",
    ):
        assert figure in finish.decision.reason


def test_exactly_what_fits_is_admitted_and_a_byte_more_is_not():
    world = World(gpu(total=8, headroom=1))
    world.add(job("fits", on_gpu(7)), job("over", on_gpu(7 + 1 / GIB)))
    assert world.where("fits") == "g0"
    assert world.finished["over"].outcome is JobOutcome.FAILED


def test_a_job_too_large_for_every_gpu_goes_to_the_cpu():
    world = World(gpu(total=8), cpu())
    world.add(job("j", on_gpu(9), on_cpu()))
    assert world.where("j") == "c-host"


def test_cpu_takes_what_a_full_gpu_cannot():
    world = known(gpu(slots=1), cpu(), on_pressure="cpu")
    world.add(*jobs(2, *BOTH))
    assert [world.where(name) for name in ("k0", "k1")] == ["g0", "c-host"]
    fallback = [i for i in world.instructions if isinstance(i, Start)][-1]
    assert fallback.decision.verdict is Verdict.FALL_BACK
    assert "on_pressure is cpu" in fallback.decision.reason
    assert fallback.placement.reserve_bytes == 0


@pytest.mark.parametrize("mode", ["wait", "fail"])
def test_own_jobs_in_the_way_are_waited_for(mode):
    world = known(gpu(slots=1), cpu(), on_pressure=mode)
    world.add(*jobs(2, *BOTH))
    assert "k1" not in world.running
    assert "k1" not in world.finished
    world.end("k0")
    assert world.where("k1") == "g0"


def test_fail_fails_with_the_figures_when_strangers_hold_the_memory():
    world = known(gpu(total=8, headroom=0.5), cpu(), on_pressure="fail")
    world.add(*jobs(1, *BOTH))
    world.add(*jobs(2, *BOTH, start=1))
    world.end("k0")
    world.snapshot("g0", used=7)
    world.end("k1")
    world.add(*jobs(1, *BOTH, start=9))
    reason = world.finished["k9"].decision.reason
    for figure in ("needs 2.1", "512 MiB of 8 GiB", "other programs use 7 GiB", "on_pressure is fail"):
        assert figure in reason


def test_wait_waits_for_strangers_and_goes_on_when_they_leave():
    world = known(gpu(total=8), cpu(), on_pressure="wait")
    world.snapshot("g0", used=7)
    world.add(*jobs(1, *BOTH))
    assert "other programs use 7 GiB" in world.reason("k0")
    world.snapshot("g0", used=1)
    assert world.where("k0") == "g0"


def test_earliest_finish_uses_the_cpu_only_where_it_ends_earlier():
    world = known(gpu(slots=1), cpu(slots=1))
    world.add(*jobs(4, *BOTH))
    assert "c-host" not in [placement.device for placement in world.running.values()]
    # with twenty seconds of work queued, ten seconds on the CPU are the better deal
    world.add(*jobs(20, *BOTH, start=4))
    assert "c-host" in [placement.device for placement in world.running.values()]


def test_earliest_finish_acts_as_cpu_while_strangers_hold_the_memory():
    world = known(gpu(total=8), cpu(slots=3))
    world.snapshot("g0", used=7)
    world.add(*jobs(2, *BOTH))
    assert {placement.device for placement in world.running.values()} == {"c-host"}
    starts = [i.decision.reason for i in world.instructions if isinstance(i, Start)]
    assert "other programs leave 1 GiB at most" in starts[-1]


def test_overhead_of_tiny_jobs_does_not_send_large_ones_to_the_cpu():
    """The GPU has 40 ms of overhead and the CPU 10; for each unit of cost the CPU takes ten times as long."""
    estimates = Estimates()
    for number in range(200):
        cost = 0.5 + number % 20 / 20
        gpu_plan, cpu_plan = on_gpu(1, cost=cost), on_cpu(cost=cost)
        estimates.observe_device_peak("k", "tiny", gpu_plan, "A", GIB)
        estimates.observe_seconds("k", gpu_plan, "A", 0.04 + 0.001 * cost)
        estimates.observe_seconds("k", cpu_plan, "cpu", 0.01 + 0.01 * cost)
    world = World(gpu(slots=1), cpu(slots=1), estimates=estimates)
    world.add(*jobs(2, on_gpu(1, cost=1000), on_cpu(cost=1000)))
    assert [placement.device for placement in world.running.values()] == ["g0"]
    assert "the CPU would take 10" in world.reason("k1")


def test_while_the_cpus_rate_is_unknown_one_job_of_the_family_finds_out():
    plans = (on_gpu(2, cost=10), on_cpu(cost=10))
    world = World(gpu(slots=1), cpu(slots=4))
    world.add(*jobs(4, *plans))
    assert sorted(placement.device for placement in world.running.values()) == ["c-host", "g0"]
    assert "how long the CPU takes is being measured with k1" in world.reason("k2")


def test_an_unknown_rate_is_not_tried_where_the_declared_cost_speaks_against_it():
    world = World(gpu(slots=1), cpu(slots=4))
    world.add(*jobs(4, *BOTH))
    assert [placement.device for placement in world.running.values()] == ["g0"]


def test_the_first_of_a_kind_runs_alone_and_its_measure_is_used():
    world = World(gpu(total=8, slots=4))
    world.add(*jobs(4, on_gpu(1)))
    assert list(world.running) == ["k0"]
    assert world.running["k0"].alone
    assert world.running["k0"].reserve_bytes >= 7 * GIB
    world.end("k0", Done(int(1.5 * GIB), None, 1.0))
    assert len(world.running) == 3
    assert all(1.5 * GIB < placement.reserve_bytes < 1.9 * GIB for placement in world.running.values())


def test_a_device_that_tells_no_peaks_is_believed_with_a_margin():
    world = World(gpu(slots=4))
    world.add(*jobs(4, on_gpu(1)))
    world.end("k0", Done(None, None, 1.0))
    assert len(world.running) == 3
    assert world.running["k1"].reserve_bytes == int(1.25 * GIB)


def test_higher_priority_first():
    world = known(gpu(slots=1))
    world.add(*jobs(1, *BOTH))
    world.add(job("low", *BOTH, family="k"), job("high", *BOTH, family="k", priority=5))
    world.end("k0")
    assert "high" in world.running


def test_a_small_job_passes_a_large_one_but_not_without_end():
    world = World(gpu(total=8, slots=4), overtake_limit=3)
    world.measure(on_gpu(6), kind="large")
    world.measure(on_gpu(2), kind="small")
    world.add(*jobs(2, on_gpu(2), kind="small"))
    world.add(job("big", on_gpu(6), kind="large", batch=1))
    number = 10
    while "big" not in world.running and number < 40:
        world.add(*jobs(1, on_gpu(2), kind="small", start=number, batch=number))
        world.end(min(world.running))
        number += 1
    passed = [i.placement.job_id for i in world.instructions if isinstance(i, Start)]
    overtakers = [
        name for name in passed[: passed.index("big")] if name.startswith("small") and len(name) > 6
    ]
    assert len(overtakers) <= 3 + 4


def test_a_job_goes_where_its_input_is_warm_but_does_not_insist():
    world = known(gpu(0), gpu(1))
    world.add(job("warm", *BOTH, kind="w", family="k", prefers=frozenset({"g0"})))
    world.add(job("filler", *BOTH, kind="k2", family="k"))
    busy = known(gpu(0, slots=1), gpu(1, slots=1))
    busy.add(job("first", *BOTH, kind="w", family="k", prefers=frozenset({"g0"})))
    busy.add(job("second", *BOTH, kind="w", family="k", prefers=frozenset({"g0"})))
    assert {busy.where("first"), busy.where("second")} == {"g0", "g1"}


def test_allowed_devices_are_obeyed():
    world = known(gpu(0, slots=1), gpu(1, slots=4))
    world.add(*jobs(2, *BOTH, allowed=frozenset({"g0"})))
    assert world.where("k0") == "g0"
    assert "k1" not in world.running


@pytest.mark.parametrize(("mode", "places"), [("wait", {"g0"}), ("cpu", {"g0", "c-host"})])
def test_on_pressure_holds_for_jobs_of_particular_devices_too(mode, places):
    world = known(gpu(0, slots=1), gpu(1, slots=1), cpu(), on_pressure=mode)
    world.add(*jobs(2, *BOTH, allowed=frozenset({"g0", "c-host"})))
    assert {placement.device for placement in world.running.values()} == places


def test_resident_state_is_reserved_once_for_each_device():
    plan = on_gpu(1, resident=resident(nbytes=2))
    world = World(gpu(total=8, slots=8))
    world.measure(plan)
    world.end_residents = world.dispatcher.device_view()[0].reserved_bytes
    assert world.end_residents == 2 * GIB
    world.add(*jobs(3, plan))
    assert all(placement.resident_bytes == 0 for placement in world.running.values())
    assert world.dispatcher.device_view()[0].reserved_bytes < 2 * GIB + 3 * 1.2 * GIB


def test_idle_resident_state_is_evicted_before_a_job_is_turned_away():
    plan = on_gpu(1, resident=resident(nbytes=4))
    world = World(gpu(total=8))
    world.measure(plan)
    world.measure(on_gpu(3), kind="other")
    out = world.add(*jobs(1, on_gpu(5), kind="other", family="other"))
    (evict,) = [i for i in out if isinstance(i, Evict)]
    assert evict.name == "weights"
    assert "idle state of weights holds 4 GiB" in evict.decision.reason
    assert not world.running
    out = world.tell(ResidentEvicted(1.0, "g0", "weights"))
    assert [i.placement.job_id for i in out] == ["other0"]


def test_resident_state_in_use_is_not_evicted():
    plan = on_gpu(1, resident=resident(nbytes=4))
    world = World(gpu(total=8))
    world.measure(plan)
    world.measure(on_gpu(3), kind="other")
    world.add(*jobs(1, plan))
    out = world.add(*jobs(1, on_gpu(5), kind="other", family="other"))
    assert out == []


def test_a_window_is_slots_and_what_is_prefetched():
    device = Device("g0", "gpu0", gpu().kind, 8 * GIB, 2, "A", "host", 0, prefetch=1)
    world = known(device)
    world.add(*jobs(9, *BOTH))
    assert len(world.running) == 3


def test_host_memory_beside_a_gpu_is_counted():
    world = World(gpu(slots=4), cpu(total=4, slots=0))
    world.measure(on_gpu(1, host=1))
    world.add(*jobs(4, on_gpu(1, host=1)))
    assert len(world.running) == 3
    assert world.dispatcher.device_view()[1].reserved_bytes > 3 * GIB
    world.end("k0")
    assert len(world.running) == 3


def test_a_device_released_early_takes_the_next_while_host_bytes_stay():
    world = known(gpu(slots=1), cpu(slots=0))
    world.add(*jobs(2, *BOTH))
    host = world.dispatcher.device_view()[1].reserved_bytes
    world.tell(DeviceReleased(1.0, "k0", world.running["k0"].attempt))
    assert world.where("k1") == "g0"
    assert world.dispatcher.device_view()[1].reserved_bytes == 2 * host
    world.end("k0")
    world.end("k1")
    assert [view.reserved_bytes for view in world.dispatcher.device_view()] == [0, 0]
    assert world.finished["k0"].outcome is JobOutcome.DONE


def test_unknown_is_full_until_it_answers():
    world = known(gpu())
    world.snapshot("g0", used=None, problem="GPU is lost")
    world.add(*jobs(1, *BOTH[:1]))
    assert not world.running
    assert world.dispatcher.device_view()[0].free_bytes is None
    world.snapshot("g0")
    assert world.where("k0") == "g0"


def test_what_our_processes_hold_beyond_reservations_is_not_promised():
    world = World(gpu(total=8, slots=4))
    world.measure(on_gpu(2))
    # 5 GiB held, 1 of it idle: 4 GiB can't be given back, and nothing reserves them
    held = (ProcessMemory(1, 5 * GIB, GIB, 0),)
    world.tell(SnapshotTaken(0.0, DeviceSnapshot("g0", 8 * GIB, 5 * GIB, held)))
    world.add(*jobs(4, on_gpu(2)))
    assert len(world.running) == 1


def test_idle_bytes_of_another_process_are_trimmed_first():
    world = World(gpu(total=8, slots=4))
    world.measure(on_gpu(5))
    idle = (ProcessMemory(1, 4 * GIB, 4 * GIB, 0), ProcessMemory(2, 3 * GIB, 3 * GIB, 0))
    world.tell(SnapshotTaken(0.0, DeviceSnapshot("g0", 8 * GIB, 7 * GIB, idle)))
    out = world.add(*jobs(1, on_gpu(5)))
    reclaim, start = out
    assert isinstance(reclaim, Reclaim)
    assert reclaim.nbytes == start.placement.reserve_bytes - GIB
    assert isinstance(start, Start)


def test_reproducible_waits_for_an_identical_device():
    plans = (on_gpu(3, cost=1), on_gpu(1, cost=2, name="lean"), in_blocks(1, 4), on_cpu())
    world = World(gpu(0, slots=1), gpu(1, slots=1), gpu(2, model="B"), cpu(), reproducible=True)
    world.add(*jobs(4, *plans))
    assert {placement.device for placement in world.running.values()} == {"g0", "g1"}
    assert {placement.plan.name for placement in world.running.values()} == {"torch"}
    assert "reproducible fixes it to torch" in world.reason("k3")


def test_a_leaner_plan_is_used_where_the_first_does_not_fit():
    plans = (on_gpu(5, cost=1), on_gpu(2, cost=1.2, name="lean"))
    world = World(gpu(total=8, slots=4))
    world.measure(*plans)
    world.add(*jobs(2, *plans))
    assert sorted(placement.plan.name for placement in world.running.values()) == ["lean", "torch"]


def test_blocks_are_chosen_up_front_where_the_whole_can_never_fit():
    world = World(gpu(total=8))
    world.add(job("j", on_gpu(20), in_blocks(6, 4)))
    assert world.running["j"].plan.split.blocks == 4


def test_a_faster_device_is_preferred_at_the_end_of_a_queue():
    world = World(gpu(0, slots=1, model="slow"), gpu(1, slots=1, model="fast"))
    plan = on_gpu(1, cost=10)
    for device, seconds in (("g0", 100.0), ("g1", 10.0)):
        world.add(job(f"m{device}", plan, family="k", allowed=frozenset({device})))
        world.end(f"m{device}", Done(GIB, None, seconds, attributed=True))
    world.add(*jobs(2, plan))
    assert [world.where(name) for name in world.running] == ["g1"]
    world.add(*jobs(40, plan, start=2))
    assert {placement.device for placement in world.running.values()} == {"g0", "g1"}


def test_late_and_returning_workers_are_used():
    world = World(cpu(), elastic=True)
    world.add(*jobs(1, on_gpu(1)))
    device = gpu()
    world.devices["g0"] = device
    world.tell(WorkerJoined(1.0, device))
    assert not world.running
    world.snapshot("g0")
    assert world.where("k0") == "g0"
    out = world.tell(WorkerLost(2.0, "g0", reason="preempted", blame=False))
    assert "through no fault of its own" in out[0].decision.reason
    world.tell(WorkerJoined(3.0, device))
    assert world.where("k0") == "g0"


def test_the_view_adds_up():
    world = known(gpu(total=8, headroom=1))
    world.add(*jobs(1, *BOTH))
    world.tell(
        SnapshotTaken(0.0, DeviceSnapshot("g0", 8 * GIB, 3 * GIB, (ProcessMemory(1, 2 * GIB, GIB, 3 * GIB),)))
    )
    (view,) = world.dispatcher.device_view()
    reserved = world.running["k0"].reserve_bytes
    assert (view.total_bytes, view.external_bytes, view.idle_bytes) == (8 * GIB, GIB, GIB)
    assert view.reserved_bytes == reserved
    assert view.free_bytes == 8 * GIB - GIB - GIB - reserved
    assert view.running == ("k0",)
    assert view.done == 1
