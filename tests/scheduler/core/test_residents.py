"""What steps keep on devices: counted once, however attempts end; evicted once for each job that needs it."""

import pytest

from scheduler.core.events import (
    Cancel,
    Failed,
    OutOfMemory,
    Refused,
    ResidentEvicted,
    Tick,
    TimedOut,
    WorkerDied,
    WorkerJoined,
    WorkerLost,
)
from scheduler.core.instructions import Evict, Request, Start
from scheduler.core.model import gib
from scheduler.core.placing import REQUEST_AFTER_S, REQUEST_AGAIN_S, ROOM_S
from tests.scheduler.core.build import GIB, World, cpu, gpu, job, jobs, on_cpu, on_gpu, resident
from tests.scheduler.core.invariants import check_invariants

WARM = on_gpu(1, resident=resident(nbytes=4))
OTHER = on_gpu(1, name="other", resident=resident("other", nbytes=3))
BIG = on_gpu(5, name="big")


def evicted(world):
    """What was asked to go, as (device, name)."""
    return [(each.device, each.name) for each in world.instructions if isinstance(each, Evict)]


def requested(world):
    """What was requested of other runs, as (device, job)."""
    return [(each.device, each.job_id) for each in world.instructions if isinstance(each, Request)]


def answer(world, uuid="g0", name="weights"):
    """The worker has evicted it."""
    found = world.tell(ResidentEvicted(world.now, uuid, name))
    check_invariants(world.dispatcher)
    return found


def reserved(world, number=0):
    return world.dispatcher.device_view()[number].reserved_bytes


def warmed(*devices, **policy):
    """BIG is measured; on one device is idle state of WARM, and nothing runs."""
    world = World(*devices, **policy)
    world.measure(BIG, kind="big")
    world.measure(WARM)
    assert sum(view.reserved_bytes for view in world.dispatcher.device_view()) == 4 * GIB
    world.instructions.clear()
    return world


def warm_everywhere():
    """The same with two devices, and idle state on both."""
    world = warmed(gpu(0, total=8), gpu(1, total=8))
    world.add(*jobs(4, WARM))
    for name in list(world.running):
        world.end(name)
    assert [reserved(world, number) for number in (0, 1)] == [4 * GIB, 4 * GIB]
    world.instructions.clear()
    return world


def big(count=1, plans=(BIG,), **rest):
    return jobs(count, *plans, kind="b", family="big", **rest)


@pytest.mark.parametrize(
    "outcome",
    [
        Failed("setup of step Segment failed: OSError: no weights"),
        OutOfMemory(GIB),
        OutOfMemory(None, on_host=True),
        Refused("less than thought"),
        TimedOut("too long"),
        WorkerDied("retired", blame=False),
        WorkerDied(),
    ],
)
def test_the_books_agree_however_the_attempt_that_brings_it_ends(outcome):
    world = World(gpu(total=16, slots=4), on_pressure="wait")
    world.measure(WARM)
    answer(world)
    world.add(*jobs(3, WARM))
    assert [world.running[f"k{n}"].resident_bytes for n in range(3)] == [4 * GIB, 0, 0]
    world.end("k0", outcome)
    check_invariants(world.dispatcher)
    # the neighbours have set it up, or are about to: their bytes and the state's are counted
    promised = sum(placement.reserve_bytes for placement in world.running.values())
    assert reserved(world) == 4 * GIB + promised
    for name in list(world.running):
        world.end(name)
    check_invariants(world.dispatcher)


@pytest.mark.parametrize("outcome", [OutOfMemory(None, on_host=True), Refused("less than thought")])
def test_state_that_nobody_else_uses_is_forgotten_with_the_attempt_that_failed(outcome):
    world = World(gpu(total=8), on_pressure="wait")
    world.measure(WARM)
    answer(world)
    world.add(*jobs(1, WARM))
    first = world.running["k0"]
    world.end("k0", outcome)
    world.snapshot("g0", used=0.1)
    again = world.running["k0"]
    assert (first.resident_bytes, again.resident_bytes) == (4 * GIB, 4 * GIB)
    assert reserved(world) == 4 * GIB + again.reserve_bytes


def test_what_a_failed_setup_was_to_keep_can_be_evicted():
    """The worker says that it isn't there, whether or not it ever was."""
    world = World(gpu(total=8))
    world.measure(BIG, kind="big")
    world.add(*jobs(1, WARM))
    world.end("k0", Failed("setup failed"))
    world.instructions.clear()
    world.add(*big())
    assert evicted(world) == [("g0", "weights")]
    answer(world)
    assert "b0" in world.running


def test_a_lost_worker_has_lost_its_state():
    world = warmed(gpu(total=8))
    world.add(*jobs(1, WARM))
    assert world.running["k0"].resident_bytes == 0
    world.tell(WorkerLost(world.now, "g0", blame=False))
    world.tell(WorkerJoined(world.now, world.devices["g0"]))
    again = [each.placement for each in world.instructions if isinstance(each, Start)][-1]
    assert again.resident_bytes == 4 * GIB
    check_invariants(world.dispatcher)


def test_of_two_states_both_go_if_both_must():
    world = World(gpu(total=8))
    world.measure(on_gpu(7, name="big"), kind="big")
    world.measure(WARM)
    world.measure(OTHER, kind="o")
    assert reserved(world) == 7 * GIB
    world.instructions.clear()
    world.add(*big(plans=(on_gpu(7, name="big"),)))
    (first,) = evicted(world)
    answer(world, *first)
    assert "b0" not in world.running
    _, second = evicted(world)
    assert {first[1], second[1]} == {"weights", "other"}
    answer(world, *second)
    assert "b0" in world.running


def test_of_two_states_only_one_goes_if_one_is_enough():
    world = World(gpu(total=8))
    world.measure(on_gpu(4, name="big"), kind="big")
    world.measure(WARM)
    world.measure(OTHER, kind="o")
    world.instructions.clear()
    world.add(*big(plans=(on_gpu(4, name="big"),)))
    (only,) = evicted(world)
    answer(world, *only)
    assert "b0" in world.running
    assert len(evicted(world)) == 1


def test_what_the_waiting_job_itself_needs_stays():
    """Idle is what another chain keeps, and what this job does: only the first is in its way."""
    for first, second in ((WARM, OTHER), (OTHER, WARM)):
        world = World(gpu(total=8))
        fits_with_weights = on_gpu(3, name="large", resident=WARM.resident)
        world.measure(on_gpu(3, name="large"), kind="large")
        world.measure(first, kind="first")
        world.measure(second, kind="second")
        world.instructions.clear()
        world.add(job("l", fits_with_weights, kind="l", family="large"))
        assert evicted(world) == [("g0", "other")]
        answer(world, name="other")
        assert world.running["l"].resident_bytes == 0


def test_its_own_state_goes_if_it_would_set_up_less_and_fit_then():
    """Steps may share a name and not a size: what another kind left is larger than this job's own."""
    world = World(gpu(total=8))
    tight = on_gpu(7, name="tight", resident=resident(nbytes=1))
    world.measure(tight, kind="tight")
    answer(world)
    world.measure(on_gpu(1, resident=resident(nbytes=2)))
    world.instructions.clear()
    world.add(*jobs(1, tight, kind="t", family="tight"))
    assert evicted(world) == [("g0", "weights")]
    answer(world)
    assert world.running["t0"].resident_bytes == GIB


def test_one_job_has_state_evicted_on_one_device_only():
    world = warm_everywhere()
    world.add(*big())
    (asked,) = evicted(world)
    for _ in range(3):
        # nobody has answered yet: the same device is asked again
        world.now += 1.0
        world.tell(Tick(world.now))
        assert set(evicted(world)) == {asked}
    answer(world, asked[0])
    assert world.where("b0") == asked[0]
    assert {uuid for uuid, _ in evicted(world)} == {asked[0]}


def test_two_jobs_have_state_evicted_on_two_devices():
    world = warm_everywhere()
    world.add(*big(2))
    answer(world, evicted(world)[0][0])
    world.tell(Tick(world.now))
    assert {uuid for uuid, _ in evicted(world)} == {"g0", "g1"}


def test_a_device_that_does_not_answer_is_not_waited_for_for_ever():
    world = warm_everywhere()
    world.add(*big())
    for _ in range(3):
        world.now += 11.0
        world.tell(Tick(world.now))
    devices = [uuid for uuid, _ in evicted(world)]
    assert set(devices) == {"g0", "g1"}
    assert devices[0] != devices[1]


def test_an_eviction_overtaken_by_a_job_that_uses_the_state_frees_nothing():
    """The attempt sets it up again, whether it comes to the worker before the eviction or after it."""
    world = warmed(gpu(total=8))
    world.add(*big())
    assert evicted(world) == [("g0", "weights")]
    world.add(*jobs(1, WARM))
    assert world.running["k0"].resident_bytes == 0
    answer(world)
    assert "b0" not in world.running
    assert reserved(world) == 4 * GIB + world.running["k0"].reserve_bytes
    world.end("k0")
    assert evicted(world)[1:] == [("g0", "weights")]
    answer(world)
    assert "b0" in world.running


def test_state_is_not_evicted_for_a_job_that_host_memory_holds_back():
    world = World(gpu(total=8, slots=4), cpu(total=8, slots=2))
    plan = on_gpu(1, host=3, resident=resident(nbytes=4))
    other = on_gpu(5, host=3, name="big")
    world.measure(other, kind="big")
    world.measure(plan)
    world.add(job("hostly", on_cpu(host=5), kind="hostly"))
    assert "hostly" in world.running
    world.instructions.clear()
    world.add(*jobs(1, plan), *big(plans=(other,)))
    assert evicted(world) == []
    world.end("hostly")
    assert "k0" in world.running or "b0" in world.running


@pytest.mark.parametrize("mode", ["earliest-finish", "cpu", "wait", "fail"])
def test_state_is_evicted_before_a_job_is_turned_away_to_the_cpu(mode):
    slow = on_cpu(cost=0.01)
    world = World(gpu(total=8), cpu(), on_pressure=mode)
    world.measure(BIG, slow, kind="big")
    world.measure(WARM)
    world.instructions.clear()
    world.add(*big(plans=(BIG, slow)))
    assert evicted(world) == [("g0", "weights")]
    assert "b0" not in world.running
    answer(world)
    assert world.where("b0") == "g0"


def test_the_cpu_takes_a_job_for_which_no_room_is_made_in_time():
    slow = on_cpu(cost=0.01)
    world = World(gpu(total=8), cpu(), on_pressure="cpu")
    world.measure(BIG, slow, kind="big")
    world.measure(WARM)
    world.add(*big(plans=(BIG, slow)))
    world.now += 9.0
    world.tell(Tick(world.now))
    assert "b0" not in world.running
    world.now += 2.0
    world.tell(Tick(world.now))
    assert world.where("b0") == "c-host"


def test_a_cancelled_job_leaves_the_state_there():
    world = warmed(gpu(total=8))
    world.add(*jobs(1, WARM))
    world.tell(Cancel(world.now, "k0"))
    world.end("k0", Failed("cancelled"))
    assert reserved(world) == 4 * GIB
    check_invariants(world.dispatcher)


# What other runs keep


def crowded(*devices, unused, **policy):
    """BIG is measured; on every device of 8 another run reserves 4, of which so much is state at rest."""
    world = World(*devices, **policy)
    world.measure(BIG, kind="big")
    for device in devices:
        world.other_run_reserves(device.uuid, 4, unused)
    world.instructions.clear()
    return world


def later(world, seconds):
    world.now += seconds
    return world.tell(Tick(world.now))


def test_other_runs_are_asked_for_what_they_do_not_use():
    world = crowded(gpu(total=8, headroom=0.5), unused=3)
    world.add(*big())
    assert world.instructions == []
    later(world, REQUEST_AFTER_S)
    (request,) = world.instructions
    need = request.decision.inputs["need"]
    assert 5 * GIB < need < 6 * GIB
    assert (request.device, request.nbytes, request.job_id) == ("g0", need + GIB // 2, "b0")
    assert request.decision.reason == (
        f"b0 needs {gib(need)} on gpu0, where 3.5 GiB are free: other runs are asked for 3 GiB of state that "
        "they don't use now"
    )
    world.other_run_reserves("g0", 1)
    assert list(world.running) == ["b0"]


def test_other_runs_are_not_asked_where_that_would_not_help():
    world = crowded(gpu(total=8, headroom=0.5), unused=1)
    world.add(*big())
    later(world, 1)
    assert requested(world) == []
    world.other_run_reserves("g0", 4, 3)
    assert requested(world) == [("g0", "b0")]


def test_other_runs_are_not_asked_by_a_job_that_has_the_bytes_and_waits_for_something_else():
    world = crowded(gpu(total=16, slots=1), unused=3)
    world.add(*big(2), *jobs(1, BIG, kind="x", family="x"))
    assert len(world.running) == 1
    later(world, 60)
    assert requested(world) == []


def test_a_request_is_made_again_while_the_job_waits():
    world = crowded(gpu(total=8), unused=3)
    world.add(*big())
    for _ in range(4):
        later(world, REQUEST_AGAIN_S / 2)
    assert len(requested(world)) == 2
    world.tell(Cancel(world.now, None, "enough"))
    later(world, 60)
    assert len(requested(world)) == 2


def test_a_job_that_was_refused_where_it_began_asks_again():
    world = crowded(gpu(total=8), unused=3)
    world.add(*big())
    later(world, 1)
    world.other_run_reserves("g0", 1)
    assert list(world.running) == ["b0"]
    world.end("b0", Refused("somebody was quicker"), after=0.1)
    world.other_run_reserves("g0", 4, 3)
    later(world, REQUEST_AGAIN_S)
    assert requested(world) == [("g0", "b0")] * 2


def test_the_next_job_that_lacks_room_does_not_wait_to_ask():
    world = crowded(gpu(total=8), unused=3)
    world.add(*big(2))
    later(world, 1)
    world.other_run_reserves("g0", 1)
    assert list(world.running) == ["b0"]
    world.other_run_reserves("g0", 4, 3)
    world.end("b0", after=0.1)
    assert requested(world) == [("g0", "b0"), ("g0", "b1")]


def test_of_several_devices_one_is_asked_for_and_then_another():
    world = crowded(gpu(0), gpu(1), unused=3)
    world.add(*big())
    later(world, REQUEST_AGAIN_S)
    assert len({device for device, _ in requested(world)}) == 1
    for _ in range(4):
        later(world, ROOM_S)
    assert {device for device, _ in requested(world)} == {"g0", "g1"}


@pytest.mark.parametrize("on_pressure", ["earliest-finish", "cpu"])
def test_what_other_runs_are_asked_for_keeps_no_job_from_the_cpu(on_pressure):
    either = (BIG, on_cpu(cost=1.0))
    world = crowded(gpu(total=8), cpu(), unused=3, on_pressure=on_pressure)
    world.measure(either[1], kind="big")
    world.instructions.clear()
    world.add(*big(3, either))
    assert sorted(placement.device for placement in world.running.values()) == ["c-host", "c-host"]
    later(world, 1)
    assert requested(world) == [("g0", "b2")]


def test_a_runs_own_idle_state_goes_first():
    world = warmed(gpu(total=8))
    world.snapshot("g0", used=0)
    world.other_run_reserves("g0", 2, 2)
    world.add(*big())
    assert evicted(world) == [("g0", "weights")]
    later(world, 1)
    assert requested(world) == []
    answer(world)
    assert list(world.running) == ["b0"]


def test_other_runs_are_asked_for_what_a_runs_own_state_does_not_make_up_for():
    world = warmed(gpu(total=8))
    world.other_run_reserves("g0", 4, 3)
    world.instructions.clear()
    world.add(*big())
    later(world, 1)
    assert (evicted(world), requested(world)) == ([], [("g0", "b0")])
    world.other_run_reserves("g0", 1)
    assert evicted(world) == [("g0", "weights")]
    answer(world)
    assert list(world.running) == ["b0"]
