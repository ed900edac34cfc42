"""Workers that drain, leave and join: what runs goes on, and what waits says what it waits for."""

from dataclasses import replace

import pytest

from scheduler.core.events import JobsAdded, OutOfMemory, Tick, WorkerDied, WorkerJoined, WorkerLost
from scheduler.core.instructions import FinishJob, JobOutcome, Start
from scheduler.core.model import Verdict
from tests.scheduler.core.build import GIB, World, cpu, gpu, in_blocks, job, jobs, on_cpu, on_gpu
from tests.scheduler.core.invariants import check_invariants

RETIRED = "its Slurm job reaches its time limit"


def drain(world, uuid, slots_left=0):
    return world.tell(WorkerLost(world.now, uuid, slots_left, (), RETIRED, blame=False))


def join(world, device, used=0):
    world.devices[device.uuid] = device
    return [*world.tell(WorkerJoined(world.now, device)), *world.snapshot(device.uuid, used)]


def started(instructions):
    return [i.placement.job_id for i in instructions if isinstance(i, Start)]


def test_a_process_that_may_take_more_than_the_others_is_given_what_waited_for_it():
    small = replace(cpu(slots=1), attempt_host_bytes=GIB)
    world = World(small, elastic=True)
    world.add(job("large", on_cpu(host=2)), job("small", on_cpu(host=0.5)))
    assert list(world.running) == ["small"]
    join(world, replace(small, slots=2, attempt_host_bytes=4 * GIB))
    assert world.running["large"].host_bytes >= 2 * GIB


# worker processes of unequal size


def test_a_job_whose_large_process_leaves_waits_for_another_and_does_not_go_to_a_smaller_one():
    device = replace(cpu(slots=2), attempt_host_bytes=16 * GIB)
    world = World(device, elastic=True)
    world.add(job("big", on_cpu(host=10)))
    left = WorkerLost(1.0, "c-host", 1, (), RETIRED, blame=False, attempt_host_bytes=4 * GIB)
    world.tell(left)
    assert world.end("big", WorkerDied(blame=False))[0].rung == "requeued"
    assert "cpu has 4 GiB for one process at most" in world.reason("big")
    assert started(join(world, device)) == ["big"]


def test_jobs_that_only_a_process_that_left_could_take_wait_for_another():
    world = World(replace(cpu(slots=2), attempt_host_bytes=16 * GIB), elastic=True)
    world.add(job("small", on_cpu(host=1)))
    drain(world, "c-host")
    world.add(job("big", on_cpu(host=10)))
    join(world, replace(cpu(slots=1), attempt_host_bytes=4 * GIB))
    check_invariants(world.dispatcher)
    assert world.reason("big").startswith("waits for a device to join that can run it")
    world.end("small")
    (finish,) = world.tell(Tick(1000.0))
    assert "10 GiB of host memory, and cpu has 4 GiB for one process at most" in finish.decision.reason


def test_of_two_hosts_only_the_one_with_a_large_process_takes_a_large_job():
    large = replace(cpu(slots=1), attempt_host_bytes=16 * GIB)
    small = replace(cpu(slots=3, host="other"), attempt_host_bytes=4 * GIB)
    world = World(small, large, elastic=True)
    world.add(*jobs(2, on_cpu(host=10), kind="big"), job("k", on_cpu(host=2)))
    assert {name: placement.device for name, placement in world.running.items()} == {
        "big0": "c-host",
        "k": "c-other",
    }
    assert world.reason("big1") == "needs 12 GiB, and no worker process of cpu may take more than 4 GiB"
    world.end("big0")
    assert world.where("big1") == "c-host"
    drain(world, "c-host")
    world.end("big1", WorkerDied(blame=False))
    assert "cpu has 4 GiB for one process at most" in world.reason("big1")


def test_of_two_gpus_only_the_one_with_a_large_process_takes_a_job_of_much_host_memory():
    world = World(
        replace(gpu(1), attempt_host_bytes=GIB), replace(gpu(2), attempt_host_bytes=4 * GIB), cpu(slots=0)
    )
    world.measure(on_gpu(1, host=2))
    world.add(*jobs(4, on_gpu(1, host=2)))
    assert {placement.device for placement in world.running.values()} == {"g2"}


def drain_for_a_big_job(world):
    """Small jobs pass a big one until the CPU is drained for it."""
    world.add(*jobs(3, on_cpu(host=1), kind="small", batch=1))
    world.add(job("big", on_cpu(host=6), batch=2))
    for batch in range(3, 7):
        world.add(*jobs(1, on_cpu(host=1), kind="small", start=batch, batch=batch))
        world.end(min(world.running))
    assert "cpu is being drained for it" in world.reason("big")


def test_what_was_drained_for_a_job_that_no_process_can_take_any_more_goes_to_others():
    world = World(replace(cpu(total=8, slots=4), attempt_host_bytes=7 * GIB), elastic=True, overtake_limit=2)
    drain_for_a_big_job(world)
    assert sorted(world.running) == ["small4", "small5"]
    left = WorkerLost(world.now, "c-host", 3, (), RETIRED, blame=False, attempt_host_bytes=4 * GIB)
    assert started(world.tell(left)) == ["small6"]
    check_invariants(world.dispatcher)
    assert "waits for a device to join" in world.reason("big")


def test_a_job_that_a_small_new_gpu_keeps_off_the_cpu_waits_for_a_larger_one():
    world = World(cpu(slots=1), elastic=True, on_pressure="wait")
    world.add(job("first", on_cpu()))
    world.add(job("big", on_gpu(9), on_cpu()))
    join(world, gpu(total=8))
    check_invariants(world.dispatcher)
    assert "the largest device, gpu0, has 8 GiB" in world.reason("big")
    assert started(join(world, gpu(1, total=16))) == ["big"]


# draining


def test_a_cpu_that_loses_one_of_four_processes_ends_what_runs_and_starts_less():
    world = World(cpu(slots=4))
    world.add(*jobs(8, on_cpu()))
    assert sorted(world.running) == ["k0", "k1", "k2", "k3"]
    assert drain(world, "c-host", 3) == []
    assert started(world.end("k0")) == [], "three still run, for three processes"
    assert started(world.end("k1")) == ["k4"]
    assert started(world.tell(WorkerJoined(world.now, cpu(slots=4)))) == ["k5"]
    assert [finish.outcome for finish in world.finished.values()] == [JobOutcome.DONE] * 2


def test_a_gpu_whose_worker_leaves_ends_what_runs_and_starts_nothing():
    world = World(gpu(slots=2))
    world.measure(on_gpu(1))
    world.add(*jobs(2, on_gpu(1)))
    assert drain(world, "g0") == []
    world.add(*jobs(1, on_gpu(1), start=2))
    (view,) = world.dispatcher.device_view()
    assert view.running == ("k0", "k1")
    assert view.reserved_bytes == sum(placement.reserve_bytes for placement in world.running.values())
    assert (view.free_bytes, view.problem) == (None, f"offline: {RETIRED}")
    for name in ("k0", "k1"):
        (finish,) = world.end(name)
        assert (finish.job_id, finish.outcome) == (name, JobOutcome.DONE)
    assert world.dispatcher.device_view()[0].reserved_bytes == 0
    assert started(world.tell(WorkerJoined(world.now, gpu(slots=2)))) == ["k2"]
    assert world.dispatcher.device_view()[0].problem == ""


def test_a_draining_device_that_runs_a_job_alone_takes_no_other_until_it_is_back():
    world = World(gpu(slots=2))
    world.add(*jobs(2, on_gpu(1)))
    assert world.running["k0"].alone
    drain(world, "g0")
    assert started(world.end("k0")) == []
    assert started(world.tell(WorkerJoined(world.now, gpu(slots=2)))) == ["k1"]


def test_out_of_memory_while_draining_is_retried_elsewhere():
    world = World(gpu(0), gpu(1))
    world.measure(on_gpu(1))
    world.add(*jobs(1, on_gpu(1)))
    drained = world.where("k0")
    drain(world, drained)
    world.end("k0", OutOfMemory(GIB))
    assert world.where("k0") != drained


def test_why_a_device_is_offline_is_not_forgotten_when_it_is_probed():
    world = World(gpu(0), gpu(1, slots=1))
    world.measure(on_gpu(1))
    drain(world, "g0")
    world.snapshot("g0", used=1)
    assert world.dispatcher.device_view()[0].problem == f"offline: {RETIRED}"
    world.add(*jobs(1, on_gpu(1), allowed=frozenset({"g0"})))
    assert f"gpu0 is offline: {RETIRED}" in world.reason("k0")


def test_a_device_that_was_claimed_gives_its_claim_up_with_its_last_worker():
    world = World(cpu(total=8, slots=4), overtake_limit=2)
    drain_for_a_big_job(world)
    drain(world, "c-host")
    check_invariants(world.dispatcher)
    assert "drained" not in world.reason("big")


# nobody there


def test_when_all_devices_have_left_jobs_wait_and_go_on_when_one_joins():
    world = World(gpu(), cpu(), elastic=True)
    world.measure(on_gpu(1), on_cpu())
    for uuid in ("g0", "c-host"):
        drain(world, uuid)
    world.add(*jobs(1, on_gpu(1), on_cpu()))
    assert world.reason("k0") == (
        f"no worker is there (gpu0 is offline: {RETIRED}; cpu is offline: {RETIRED}); "
        "it goes on when one joins"
    )
    world.tell(Tick(world.now + 1e6))
    assert "k0" not in world.finished
    assert started(join(world, gpu(5, model="B"))) == ["k0"]


@pytest.mark.parametrize("back", [gpu(), gpu(1), gpu(2, total=16, model="B")], ids=["same", "like", "other"])
def test_a_device_that_joins_takes_what_waited_for_one_that_left(back):
    world = World(gpu(), elastic=True)
    world.measure(on_gpu(1))
    drain(world, "g0")
    world.add(*jobs(2, on_gpu(1)))
    assert started(join(world, back)) == ["k0", "k1"]


def test_before_the_first_worker_has_come_jobs_wait_for_it():
    world = World(elastic=True)
    world.add(*jobs(1, on_gpu(1)))
    assert world.reason("k0") == "no worker is there; it goes on when one joins"
    world.tell(Tick(1e6))
    assert started(join(world, gpu())) == ["k0"]


def test_without_elastic_a_job_needs_a_device_at_once():
    world = World()
    world.add(*jobs(1, on_gpu(1)))
    assert world.finished["k0"].decision.reason == "no device has joined"


# nobody able


def test_a_job_waits_while_no_device_of_its_kind_is_there():
    world = World(cpu(), elastic=True, join_wait_s=10)
    world.add(*jobs(1, on_gpu(1)))
    assert world.reason("k0") == (
        "waits for a device to join that can run it: torch runs on cuda or virtual, and there is only cpu"
    )
    world.tell(Tick(1e6))
    assert "k0" not in world.finished, "it holds nothing up"
    assert started(join(world, gpu())) == ["k0"]


def large(**policy):
    world = World(gpu(total=8, headroom=0.5), elastic=True, **policy)
    world.add(job("big", on_gpu(9)))
    return world


def test_a_job_too_large_for_every_device_waits_for_a_larger_one_and_says_so():
    world = large()
    assert world.reason("big") == (
        "waits for a device to join that can run it: torch needs 9 GiB of device memory, and the largest "
        "device, gpu0, has 8 GiB with 512 MiB of headroom; "
        "it fails if none has joined 120 s after all else is done"
    )
    assert started(join(world, gpu(1, total=8, headroom=0.5))) == []
    assert started(join(world, gpu(2, total=16))) == ["big"]


def test_it_fails_with_the_figures_when_nothing_else_is_left_and_no_larger_one_comes():
    world = large(join_wait_s=60)
    assert world.tell(Tick(59.9)) == []
    (finish,) = world.tell(Tick(60.0))
    assert (finish.outcome, finish.decision.verdict) == (JobOutcome.FAILED, Verdict.REJECT)
    assert finish.decision.reason == (
        "can never fit: torch needs 9 GiB of device memory, and the largest device, gpu0, has 8 GiB with "
        "512 MiB of headroom; with all else done, none that could joined in 60 s"
    )


def test_it_waits_on_while_other_jobs_run():
    world = large(join_wait_s=60)
    world.add(*jobs(1, on_gpu(1)))
    assert world.tell(Tick(500.0)) == []
    world.now = 999.0
    world.end("k0")
    assert world.tell(Tick(1059.9)) == []
    assert [type(i) for i in world.tell(Tick(1060.0))] == [FinishJob]


def test_it_waits_on_while_other_jobs_wait_for_what_is_here():
    world = large(join_wait_s=60)
    world.snapshot("g0", used=8)
    world.add(*jobs(1, on_gpu(1)))
    assert world.tell(Tick(500.0)) == []
    assert "big" not in world.finished


@pytest.mark.parametrize("event", ["join", "add"])
def test_its_time_begins_anew_with_each_device_and_each_job(event):
    world = large(join_wait_s=60)
    world.now = 50.0
    if event == "join":
        join(world, gpu(1, total=8))
    else:
        world.tell(JobsAdded(50.0, (job("big2", on_gpu(9.5)),)))
    assert world.tell(Tick(109.9)) == []
    assert world.tell(Tick(110.0))[0].job_id == "big"


def test_it_is_not_given_up_while_no_worker_at_all_is_there():
    world = large(join_wait_s=60)
    drain(world, "g0")
    assert world.tell(Tick(1e6)) == []
    assert "no worker is there" in world.reason("big")


def test_without_elastic_it_is_rejected_at_once():
    world = World(gpu(total=8))
    world.add(job("big", on_gpu(9)))
    assert world.finished["big"].decision.verdict is Verdict.REJECT


@pytest.mark.parametrize(
    ("plans", "place"),
    [((on_gpu(9), in_blocks(4, 4)), "g0"), ((on_gpu(9), on_cpu()), "c-host")],
    ids=["blocks", "cpu"],
)
def test_what_can_run_in_another_way_does_not_wait_for_a_larger_device(plans, place):
    world = World(gpu(total=8), cpu(), elastic=True)
    world.add(job("big", *plans))
    assert world.where("big") == place


def test_it_waits_for_a_larger_gpu_where_the_cpu_must_not_be_used_instead():
    world = World(gpu(total=8), cpu(), elastic=True, on_pressure="wait")
    world.add(job("big", on_gpu(9), on_cpu()))
    assert "on_pressure is wait, so the CPU isn't used instead" in world.reason("big")
    assert started(join(world, gpu(1, total=16))) == ["big"]


def test_a_job_of_particular_devices_waits_for_them():
    world = World(gpu(), elastic=True)
    world.add(job("there", on_gpu(1), allowed=frozenset({"g7"})))
    assert "torch: none of the devices that it may use is left" in world.reason("there")
    assert started(join(world, gpu(7))) == ["there"]


def test_a_job_that_outgrows_every_device_while_it_waits_is_parked_too():
    world = World(gpu(total=8), elastic=True)
    world.add(*jobs(2, on_gpu(4)))
    world.end("k0", OutOfMemory(int(7.9 * GIB)))
    world.now = 5.0
    while "k0" in world.running:
        world.end("k0", OutOfMemory(8 * GIB))
    assert world.finished["k0"].outcome is JobOutcome.FAILED
    assert "k1" not in world.finished
    assert started(join(world, replace(gpu(1, total=32), slots=1))) == ["k1"]


# nobody comes back


def test_jobs_for_a_gpu_that_nobody_serves_any_more_fail_while_the_cpu_goes_on():
    world = World(gpu(), cpu(), absence_wait_s=60.0)
    world.measure(on_gpu(1), on_cpu())
    world.add(*jobs(4, on_gpu(1)), *jobs(4, on_cpu(), kind="c"))
    drain(world, "g0")
    for name in ("k0", "k1"):
        world.end(name, WorkerDied(blame=False), after=0.0)
    world.now += 59.9
    assert not any(isinstance(each, FinishJob) for each in world.tell(Tick(world.now)))
    assert f"gpu0 is offline: {RETIRED}" in world.reason("k2")
    world.now += 0.2
    failed = [each for each in world.tell(Tick(world.now)) if isinstance(each, FinishJob)]
    assert {each.job_id for each in failed} == {"k0", "k1", "k2", "k3"}
    assert {each.outcome for each in failed} == {JobOutcome.FAILED}
    reason = f"gpu0 is offline: {RETIRED}; no worker has come back in 60 s"
    assert {each.decision.reason for each in failed} == {reason}
    for name in ("c0", "c1", "c2", "c3"):
        world.end(name)
    assert world.finished["c3"].outcome is JobOutcome.DONE
    check_invariants(world.dispatcher)


def test_with_no_worker_left_at_all_no_job_is_failed_for_itself():
    world = World(gpu(), absence_wait_s=60.0)
    world.measure(on_gpu(1))
    drain(world, "g0")
    world.add(*jobs(2, on_gpu(1)))
    world.now += 3600.0
    assert not any(isinstance(each, FinishJob) for each in world.tell(Tick(world.now)))


def test_jobs_wait_on_while_another_gpu_that_could_run_them_is_served():
    world = World(gpu(0), gpu(1, slots=1), absence_wait_s=60.0)
    world.measure(on_gpu(1))
    drain(world, "g0")
    world.add(*jobs(2, on_gpu(1)))
    world.now += 3600.0
    assert not any(isinstance(each, FinishJob) for each in world.tell(Tick(world.now)))


def test_where_devices_may_join_jobs_wait_for_one_of_their_kind():
    world = World(gpu(), cpu(), elastic=True, absence_wait_s=60.0)
    world.measure(on_gpu(1), on_cpu())
    drain(world, "g0")
    world.add(*jobs(1, on_gpu(1)))
    world.now += 3600.0
    assert not any(isinstance(each, FinishJob) for each in world.tell(Tick(world.now)))
    assert started(join(world, gpu())) == ["k0"]
