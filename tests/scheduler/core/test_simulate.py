"""The simulator: its physics, its bound, and the dispatcher in it against simple schedulers."""

import json

import pytest
import yaml

from scheduler.core.baselines import BASELINES
from scheduler.core.bound import makespan_bound
from scheduler.core.engine import concurrency
from scheduler.core.policy import Policy
from scheduler.core.simulate import run_baseline, run_dispatcher, simulate
from scheduler.core.trace import Death, Hog, Trace, TraceJob, TruePlan
from scheduler.screens.workload import Mix, make_trace
from tests.scheduler.core.build import GIB, cpu, gpu, job, on_cpu, on_gpu, resident

CONFIGS = ("small", "mixed", "large")


def mix(name):
    with open(f"configs/simulation/{name}.yaml") as file:
        return Mix.from_mapping(yaml.safe_load(file))


def trace_of(count, need=2, declared=None, seconds=10.0, devices=None, **rest):
    plan = on_gpu(declared or need, host=0)
    found = tuple(
        TraceJob(job(f"j{number}", plan, kind="k"), {"torch": TruePlan(int(need * GIB), 0, seconds)})
        for number in range(count)
    )
    return Trace("t", devices or (gpu(total=8, slots=4),), found, **rest)


def test_four_at_a_time_after_the_first_was_measured():
    outcome = run_dispatcher(trace_of(9, need=1.5))
    # one alone, then two rounds of four
    assert outcome.makespan_s == pytest.approx(30.0)
    assert (outcome.done, outcome.oom_attempts, outcome.lost) == (9, 0, 0)


def test_an_underestimate_is_found_by_running_alone():
    outcome = run_dispatcher(trace_of(9, need=3, declared=1))
    assert (outcome.done, outcome.oom_attempts) == (9, 0)


def test_memory_blind_baselines_run_out_of_memory_and_pay_for_it():
    trace = trace_of(8, need=3)
    blind = run_baseline(trace, BASELINES[0])
    assert blind.oom_attempts > 0
    assert blind.done == 8
    assert blind.makespan_s > run_dispatcher(trace).makespan_s


def test_a_hog_takes_what_is_free_and_the_jobs_wait_for_the_rest():
    hogged = trace_of(8, need=1, hogs=(Hog("g0", 0.0, 6 * GIB, 35.0),))
    outcome = run_dispatcher(hogged)
    assert (outcome.done, outcome.oom_attempts) == (8, 0)
    assert outcome.makespan_s > run_dispatcher(trace_of(8, need=1)).makespan_s


def test_a_workers_death_loses_no_job():
    outcome = run_dispatcher(trace_of(8, need=1, deaths=(Death("g0", 12.0), Death("g0", 25.0))))
    assert (outcome.done, outcome.lost) == (8, 0)
    assert outcome.attempts > 8


def test_what_can_never_run_fails_and_is_not_lost():
    outcome = run_dispatcher(trace_of(2, need=9))
    assert (outcome.failed, outcome.lost, outcome.done) == (2, 0, 0)


def test_the_bound_of_one_device_is_memory_area_slots_or_the_longest_job():
    # memory: 6 jobs of 4 of 8 GiB for 10 s are 30 device-seconds; slots: 15; longest: 10
    assert makespan_bound(trace_of(6, need=4)) == pytest.approx(30.0)
    # memory 3.75, slots 6 x 10 / 4 = 15
    assert makespan_bound(trace_of(6, need=0.5)) == pytest.approx(15.0)
    assert makespan_bound(trace_of(1, need=0.5)) == pytest.approx(10.0)


def test_the_bound_of_unlike_devices_shares_the_work_out():
    devices = (gpu(0, slots=1, model="A"), gpu(1, slots=1, model="B"))
    trace = trace_of(30, need=8, devices=devices, speeds={"B": 2.0})
    assert makespan_bound(trace) == pytest.approx(100.0)


def test_the_bound_counts_the_cpu():
    plans = (on_gpu(8), on_cpu(host=0))
    truth = {"torch": TruePlan(8 * GIB, 0, 10.0), "numpy": TruePlan(0, 0, 30.0)}
    found = tuple(TraceJob(job(f"j{n}", *plans, kind="k"), truth) for n in range(8))
    assert makespan_bound(Trace("t", (gpu(slots=1), cpu(slots=1)), found)) == pytest.approx(60.0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("hogs", [False, True])
def test_mixes_end_with_few_out_of_memory_and_no_earlier_than_the_bound(name, hogs):
    trace = make_trace(mix(name), 1, hogs=hogs, jobs=400)
    outcome = run_dispatcher(trace)
    assert (outcome.done, outcome.lost) == (400, 0)
    assert outcome.oom_attempts <= 400 * (0.02 if hogs else 0.01)
    assert outcome.makespan_s >= makespan_bound(trace)


@pytest.mark.parametrize("name", CONFIGS)
def test_exact_estimates_never_run_out_of_memory(name):
    assert run_dispatcher(make_trace(mix(name), 2, exact=True, jobs=400)).oom_attempts == 0


def test_the_same_seed_gives_the_same_run():
    first, second = (run_dispatcher(make_trace(mix("mixed"), 3, hogs=True, jobs=200)) for _ in range(2))
    assert first == second
    assert first != run_dispatcher(make_trace(mix("mixed"), 4, hogs=True, jobs=200))


def test_a_trace_survives_json():
    trace = make_trace(mix("mixed"), 1, hogs=True, jobs=50)
    again = Trace.from_json(json.loads(json.dumps(trace.to_json())))
    assert run_dispatcher(again) == run_dispatcher(trace)


def test_simulate_gives_the_keys_of_the_command():
    ticks = iter((0.0, 2.0))
    found = simulate(trace_of(8, need=3), Policy(), clock=lambda: next(ticks), keep_spans=True)
    record = found.to_json()
    assert set(record) == {"jobs", "makespan_s", "bound_s", "decisions_per_s", "oom_attempts", "baselines"}
    assert set(record["baselines"]) == {baseline.name for baseline in BASELINES}
    assert record["decisions_per_s"] == found.outcome.attempts / 2.0
    (levels,) = concurrency(found.outcome.spans).values()
    assert max(level for _, level in levels) <= 8 * GIB
    assert levels[-1][1] == 0


def test_unknown_keys_of_a_mix_are_named():
    with pytest.raises(ValueError, match="unknown key 'slot'"):
        Mix.from_mapping({"slot": 1})


def test_idle_resident_state_is_evicted_in_the_simulation_too():
    warm = on_gpu(1, resident=resident(nbytes=5))
    plans = {"w": warm, "x": on_gpu(6)}
    truth = {"torch": TruePlan(GIB, 0, 10.0)}, {"torch": TruePlan(6 * GIB, 0, 10.0)}
    found = tuple(
        TraceJob(job(f"{kind}{n}", plan, kind=kind), truth[kind == "x"], arrival_s=40.0 * (kind == "x"))
        for kind, plan in plans.items()
        for n in range(2)
    )
    outcome = run_dispatcher(Trace("t", (gpu(total=8, slots=2),), found))
    assert (outcome.done, outcome.lost, outcome.oom_attempts) == (4, 0, 0)


@pytest.mark.parametrize(("seconds", "done", "failed"), [(5.0, 2, 0), (5.001, 0, 2), (1000.0, 0, 2)])
def test_an_attempt_past_its_time_limit_fails(seconds, done, failed):
    plan = on_gpu(1, host=0)
    found = tuple(
        TraceJob(
            job(f"j{n}", plan, kind="k", timeout_s=5),
            {"torch": TruePlan(GIB, 0, seconds)},
            arrival_s=60.0 * n,
        )
        for n in range(2)
    )
    outcome = run_dispatcher(Trace("t", (gpu(),), found))
    assert (outcome.done, outcome.failed, outcome.lost) == (done, failed, 0)
    assert outcome.attempts == 2
