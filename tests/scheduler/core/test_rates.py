"""How expected seconds are learned from durations: a fixed part and a slope."""

import json
import random

import pytest

from scheduler.core.footprint import Estimates
from scheduler.core.rates import RECENT, Rate
from tests.scheduler.core.build import on_cpu, on_gpu

TINY = 24 / 1024  # MiB


def learned(durations):
    rate = Rate()
    for cost, seconds in durations:
        rate.add(cost, seconds)
    return rate


def scattered(seed, costs, fixed_s, slope, noise=0.05):
    choose = random.Random(seed)
    return [(cost, (fixed_s + slope * cost) * choose.lognormvariate(0, noise)) for cost in costs]


def within(ratio, factor):
    return 1 / factor <= ratio <= factor


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("slope_s", [0.001, 0.004, 0.02, 0.4])
def test_a_large_job_is_foreseen_within_a_factor_of_two_from_tiny_ones(seed, slope_s):
    """500 jobs of 12 to 36 KiB and 40 ms of overhead, `slope_s` of real work at 24 KiB; then 24 MiB."""
    choose = random.Random(seed)
    slope = slope_s / TINY
    costs = [TINY * choose.uniform(0.5, 1.5) for _ in range(500)]
    rate = learned(scattered(seed, costs, 0.04, slope))
    truth = 0.04 + slope * 1000 * TINY
    assert within(rate.seconds(1000 * TINY) / truth, 2.0)
    assert within(rate.seconds(TINY) / (0.04 + slope * TINY), 1.05)


def test_tiny_jobs_of_one_size_are_taken_for_neither_all_slope_nor_all_overhead():
    rate = learned(scattered(1, [TINY] * 500, 0.04, 0.004 / TINY))
    in_proportion = 1000 * rate.seconds(TINY)
    assert rate.seconds(TINY) == pytest.approx(0.044, rel=0.05)
    assert in_proportion / 100 <= rate.seconds(1000 * TINY) <= in_proportion / 5


def test_one_large_job_settles_it():
    durations = scattered(1, [TINY] * 500, 0.04, 0.0004 / TINY)
    rate = learned([*durations, (1000 * TINY, 0.44)])
    assert rate.seconds(1000 * TINY) == pytest.approx(0.44, rel=0.1)
    assert rate.seconds(4000 * TINY) == pytest.approx(1.64, rel=0.15)
    assert rate.seconds(TINY) == pytest.approx(0.04, rel=0.1)


def test_many_tiny_jobs_afterwards_do_not_forget_the_large_one():
    durations = scattered(1, [TINY] * 2000, 0.04, 0.0004 / TINY)
    rate = learned([(1000 * TINY, 0.44), *durations])
    assert rate.seconds(1000 * TINY) == pytest.approx(0.44, rel=0.1)


@pytest.mark.parametrize("cost", [1.0, 37.0, 1e-6, 1e9])
def test_long_jobs_of_one_size_are_in_proportion_to_their_cost(cost):
    rate = learned([(cost, 20.0)])
    assert rate.seconds(cost) == pytest.approx(20.0)
    assert rate.seconds(100 * cost) == pytest.approx(2000.0, rel=0.01)
    assert rate.seconds(cost / 100) == pytest.approx(0.2, rel=0.5)


def test_a_fixed_part_of_seconds_is_learned_too_where_sizes_show_it():
    choose = random.Random(3)
    rate = learned(scattered(3, [choose.uniform(1, 100) for _ in range(60)], 3.0, 0.1))
    assert rate.fixed_s == pytest.approx(3.0, rel=0.15)
    assert rate.seconds(1000) == pytest.approx(103.0, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_a_few_noisy_long_jobs_of_like_sizes_are_not_read_as_overhead(seed):
    """Two sizes so near each other that their noise could pass for any slope."""
    rate = learned(scattered(seed, [10.0, 14.0] * 2, 0.0, 1.0, noise=0.1))
    assert within(rate.seconds(100.0) / 100.0, 1.2)


@pytest.mark.parametrize(("share", "factor"), [(0.05, 20), (0.05, 0.05), (0.2, 3)])
def test_outliers_move_little(share, factor):
    choose = random.Random(5)
    durations = scattered(5, [10 ** choose.uniform(-1, 2) for _ in range(300)], 0.04, 0.01)
    spoiled = [(cost, seconds * (factor if choose.random() < share else 1)) for cost, seconds in durations]
    rate = learned(spoiled)
    assert rate.seconds(0.1) == pytest.approx(0.041, rel=0.15)
    assert rate.seconds(1000) == pytest.approx(10.04, rel=0.15)


def test_one_absurdly_short_job_of_another_size_moves_little():
    choose = random.Random(6)
    durations = scattered(6, [TINY * choose.uniform(0.5, 1.5) for _ in range(500)], 0.04, 0.004 / TINY)
    before = learned(durations)
    after = learned([*durations, (0.1 * TINY, 0.0005)])
    assert within(after.seconds(1000 * TINY) / before.seconds(1000 * TINY), 1.2)
    assert after.seconds(TINY) == pytest.approx(0.044, rel=0.1)


def test_one_absurdly_short_large_job_does_not_turn_the_slope_round():
    rate = learned([*scattered(7, [1.0] * 20, 0.04, 0.004), (1000.0, 0.001)])
    assert rate.slope > 0
    assert rate.seconds(1.0) == pytest.approx(0.044, rel=0.2)


def test_a_first_job_that_paid_for_the_start_is_forgotten_at_once():
    rate = learned([(1.0, 30.0), (1.0, 0.5)])
    assert rate.seconds(1.0) == pytest.approx(0.5)


def test_a_machine_that_becomes_slower_is_followed_within_a_few_jobs():
    rate = learned(scattered(1, [10.0] * 200, 0.0, 1.0, noise=0.02))
    for number, (cost, seconds) in enumerate(scattered(2, [10.0] * 60, 0.0, 3.0, noise=0.02)):
        rate.add(cost, seconds)
        if number + 1 == RECENT:
            assert rate.seconds(10.0) == pytest.approx(30.0, rel=0.05)
    assert rate.seconds(10.0) == pytest.approx(30.0, rel=0.02)


def test_slow_drift_is_followed():
    rate = Rate()
    for number in range(400):
        rate.add(10.0, 10.0 * (1 + number / 400))
    assert rate.seconds(10.0) == pytest.approx(20.0, rel=0.1)


def test_more_cost_is_never_expected_to_take_less_time():
    """Not even where durations fall with the cost."""
    rate = learned(scattered(1, [1.0, 2.0, 4.0, 8.0] * 20, 8.0, -0.9))
    assert rate.slope > 0
    assert rate.fixed_s >= 0


def test_a_duration_of_zero_is_taken():
    rate = learned([(1.0, 0.0)] * 3)
    assert 0 < rate.seconds(1.0) < 1e-5


def test_news_is_told_when_expected_seconds_change_and_not_for_noise():
    rate = Rate()
    assert rate.add(1.0, 10.0)
    durations = scattered(1, [1.0] * 300, 0.0, 10.0, noise=0.03)
    assert not any(rate.add(cost, seconds) for cost, seconds in durations)
    assert rate.add(50.0, 100.0), "a large job took a fifth of what was expected"


def test_rates_survive_json():
    choose = random.Random(1)
    rate = learned(scattered(1, [choose.uniform(1, 100) for _ in range(50)], 0.5, 0.1))
    again = Rate.from_json(json.loads(json.dumps(rate.to_json())))
    more = scattered(2, [choose.uniform(1, 100) for _ in range(50)], 0.5, 0.1)
    for each in (rate, again):
        for cost, seconds in more:
            each.add(cost, seconds)
    for cost in (0.1, 10.0, 1000.0):
        assert again.seconds(cost) == pytest.approx(rate.seconds(cost), rel=0.02)


def test_each_plan_and_device_model_has_its_own_rate_and_others_are_guessed_from_the_first():
    estimates = Estimates()
    gpu, cpu = on_gpu(1, cost=2), on_cpu(cost=20)
    assert estimates.expected_seconds("f", cpu) == 20
    assert estimates.observe_seconds("f", gpu, "A", 6.0)
    assert estimates.seconds("f", gpu, "A") == pytest.approx(6.0)
    assert estimates.seconds("f", gpu, "B") is None
    assert estimates.seconds("f", cpu, "cpu") is None
    assert estimates.expected_seconds("f", cpu) == pytest.approx(60.0, rel=0.01)
    assert estimates.observe_seconds("f", cpu, "cpu", 300.0)
    assert estimates.seconds("f", cpu, "cpu") == pytest.approx(300.0)
    assert estimates.expected_seconds("f", on_gpu(1, cost=2, name="other")) == pytest.approx(6.0)


def test_a_changed_rate_changes_the_familys_version():
    estimates = Estimates()
    estimates.observe_seconds("f", on_gpu(1, cost=1), "A", 0.04)
    before = estimates.version("f")
    assert not estimates.observe_seconds("f", on_gpu(1, cost=1), "A", 0.0401)
    assert estimates.version("f") == before
    assert estimates.observe_seconds("f", on_gpu(1, cost=1000), "A", 0.5)
    assert estimates.version("f") > before
