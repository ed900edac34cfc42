"""What is learned of peaks and durations."""

import json
import random
from statistics import median

import pytest

from scheduler.core.footprint import COLD_MARGIN, Estimates
from scheduler.host.estimates import load_estimates, save_estimates
from tests.scheduler.core.build import GIB, World, cpu, job, on_cpu, on_gpu

PLAN = on_gpu(4, host=2)


def test_unmeasured_footprints_are_the_declared_ones():
    estimates = Estimates()
    assert not estimates.measured("f", PLAN)
    assert estimates.device_bytes("f", "k", PLAN, "A") == 4 * GIB
    assert estimates.host_bytes("f", "k", PLAN) == int(PLAN.footprint.host_bytes * COLD_MARGIN)
    assert estimates.seconds("f", PLAN, "A") is None


def test_one_measurement_speaks_for_every_shape_of_the_family():
    estimates = Estimates()
    assert estimates.observe_device_peak("f", "k", PLAN, "A", 6 * GIB)
    other = on_gpu(8)
    assert 12 * GIB < estimates.device_bytes("f", "other", other, "A") < 14 * GIB
    assert estimates.device_bytes("f", "other", other, "B") == estimates.device_bytes(
        "f", "other", other, "A"
    )
    assert estimates.device_bytes("g", "k", PLAN, "A") == 4 * GIB


def test_never_below_what_was_once_measured_for_the_same_kind():
    estimates = Estimates()
    estimates.observe_device_peak("f", "k", PLAN, "A", 7 * GIB)
    for _ in range(200):
        estimates.observe_device_peak("f", "k2", PLAN, "A", 3 * GIB)
    assert estimates.device_bytes("f", "k", PLAN, "A") >= 7 * GIB
    assert estimates.device_bytes("f", "k3", PLAN, "A") < 7 * GIB


def test_what_others_declare_at_random_widens_nobodys_margin_without_bound():
    estimates = Estimates()
    choose = random.Random(3)
    for _ in range(300):
        estimates.observe_device_peak("wild", "w", PLAN, "A", int(4 * GIB * choose.lognormvariate(0, 2.0)))
        estimates.observe_host_peak("wild", "w", PLAN, int(2 * GIB * choose.lognormvariate(0, 2.0)))
    estimates.observe_device_peak("f", "k", PLAN, "A", 4 * GIB)
    estimates.observe_host_peak("f", "k", PLAN, 2 * GIB)
    assert 9 * GIB < estimates.device_bytes("f", "k", PLAN, "A") < 10.1 * GIB
    assert 4.5 * GIB < estimates.host_bytes("f", "k", PLAN) < 5.1 * GIB
    assert estimates.device_bytes("wild", "w2", PLAN, "A") > 100 * GIB, "its own scatter is its own"


def test_an_overstated_model_comes_down_when_measurements_agree():
    estimates = Estimates()
    for _ in range(50):
        estimates.observe_device_peak("f", "k", PLAN, "A", 2 * GIB)
    assert 2 * GIB <= estimates.device_bytes("f", "k", PLAN, "A") < 2.1 * GIB


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.06])
def test_estimates_cover_ninety_nine_of_a_hundred_jobs_and_waste_little(noise):
    choose = random.Random(7)
    estimates = Estimates()
    covered = total = 0
    waste = []
    for family in range(20):
        error = choose.lognormvariate(0, 0.3)
        for number in range(200):
            declared = choose.uniform(0.1, 8)
            plan = on_gpu(declared)
            kind = f"{family}-{declared}"
            peak = int(plan.footprint.device_bytes * error * choose.lognormvariate(0, noise))
            if number:
                estimate = estimates.device_bytes(str(family), kind, plan, "A")
                covered += peak <= estimate
                total += 1
                waste.append(max(0.0, 1 - peak / estimate))
            estimates.observe_device_peak(str(family), kind, plan, "A", peak)
    assert covered / total >= 0.99
    assert median(waste) <= 0.25


def test_what_was_learned_survives_on_disk(tmp_path):
    estimates = Estimates()
    for share in (0.9, 1.0, 1.2):
        estimates.observe_device_peak("f", "k", PLAN, "A", int(share * 4 * GIB))
        estimates.observe_host_peak("f", "k", PLAN, int(share * GIB))
        estimates.observe_seconds("f", PLAN, "A", share)
    path = tmp_path / "deep" / "estimates.json"
    save_estimates(estimates, path)
    again = load_estimates(path)
    for kind in ("k", "other"):
        assert again.device_bytes("f", kind, PLAN, "A") == estimates.device_bytes("f", kind, PLAN, "A")
        assert again.host_bytes("f", kind, PLAN) == estimates.host_bytes("f", kind, PLAN)
    assert again.seconds("f", PLAN, "A") == estimates.seconds("f", PLAN, "A")
    assert [entry.name for entry in path.parent.iterdir()] == ["estimates.json"]


def test_of_a_file_without_fixed_parts_the_peaks_are_kept_and_the_rates_are_not():
    estimates = Estimates()
    estimates.observe_device_peak("f", "k", PLAN, "A", 6 * GIB)
    estimates.observe_host_peak("f", "k", PLAN, GIB)
    record = {**estimates.to_json(), "format": 2, "rates": [["f", "torch", "A", 12, 0.5]]}
    again = Estimates.from_json(json.loads(json.dumps(record)))
    assert again.device_bytes("f", "k", PLAN, "A") == estimates.device_bytes("f", "k", PLAN, "A")
    assert again.host_bytes("f", "k", PLAN) == estimates.host_bytes("f", "k", PLAN)
    assert again.seconds("f", PLAN, "A") is None
    assert again.to_json()["format"] == 3


def test_no_file_is_nothing_learned_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "estimates.json"
    assert not load_estimates(path).measured("f", PLAN)
    path.write_text(json.dumps({"format": -1}))
    assert not load_estimates(path).measured("f", PLAN)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"estimates\.json is damaged"):
        load_estimates(path)


def test_a_margin_asks_for_no_more_of_a_host_than_its_idle_processes_leave():
    world = World(cpu(total=16), probed=False)
    world.snapshot("c-host", used=3.9, held_bytes=3.9)
    world.add(job("j", on_cpu(host=10)))  # 12.5 GiB with the margin of what was never measured
    assert world.where("j") == "c-host"
    assert world.running["j"].host_bytes == 12 * GIB
