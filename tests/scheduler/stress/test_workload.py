"""The jobs of a stress test: the same for the same seed, of the footprints that were asked for."""

from itertools import product
from math import prod

import numpy as np
import pytest

from scheduler.stress.expected import difference, difference_of_file, expected_result, mixed_at_once
from scheduler.stress.workload import MODULI, Family, Mixing, StressJob, input_stack, make_workload

GIB = 1 << 30
FAMILY = Family("f", Mixing(2, (3, 5, 7, 11), 13), 1000, 0.1, turned=False)


@pytest.mark.parametrize("capacity", [256 << 20, 8 * GIB])
@pytest.mark.parametrize("seed", range(5))
def test_footprints_are_the_share_of_the_device_that_they_should_be(capacity, seed):
    jobs = make_workload(300, capacity=capacity, under_estimate=0.0, seed=seed)
    shares = [job.declared_bytes / capacity for job in jobs]
    assert 0.2 / 8 <= min(shares) < 0.05
    assert 0.5 < max(shares) <= 6 / 8


def test_the_same_seed_makes_the_same_jobs_and_another_one_others():
    arguments = {"capacity": 8 * GIB, "under_estimate": 20.0}
    first = make_workload(50, seed=1, **arguments)
    assert make_workload(50, seed=1, **arguments) == first
    assert make_workload(50, seed=2, **arguments) != first
    assert len({job.name for job in first}) == 50


@pytest.mark.parametrize(("per_cent", "made"), [(0.0, 0), (20.0, 40), (100.0, 200)])
def test_as_many_jobs_under_estimate_as_asked_and_each_fits_on_an_empty_device(per_cent, made):
    jobs = make_workload(200, capacity=8 * GIB, under_estimate=per_cent, seed=4)
    sly = [job for job in jobs if job.under_estimates]
    assert len(sly) == made
    for job in sly:
        # The scheduler's own margin for what it couldn't measure is 25 %.
        assert 125 < job.need_percent <= 200
        assert job.declared_bytes * job.need_percent / 100 <= 0.95 * 8 * GIB


def test_no_two_sides_of_a_stack_are_alike():
    jobs = make_workload(300, capacity=8 * GIB, under_estimate=0.0, seed=4)
    assert all(len(set(job.shape)) == 3 for job in jobs)
    assert {job.dtype for job in jobs} == set(MODULI)


@pytest.mark.parametrize("dtype", MODULI)
def test_a_stack_tells_what_its_job_needs_and_stays_below_its_modulus(dtype):
    job = StressJob("a", FAMILY, (3, 5, 7), dtype, (1, 2), need_percent=173)
    stack = input_stack(job)
    assert (stack.shape, stack.dtype) == ((3, 5, 7), np.dtype(dtype))
    assert stack[0, 0, 0] == 173
    assert int(stack.max()) < MODULI[dtype]
    assert (input_stack(job) == stack).all()


@pytest.mark.parametrize("dtype", MODULI)
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_what_is_expected_is_the_arithmetic_voxel_by_voxel(dtype, rounds):
    mixing = Mixing(rounds, (63, 1, 17, 42), 255)
    stack = input_stack(StressJob("a", FAMILY, (2, 3, 4), dtype, (1, 2)))
    values = {at: int(stack[at]) for at in product(*map(range, stack.shape))}
    own, plane, row, column = mixing.weights
    for _ in range(rounds):
        values = {
            (z, y, x): (
                own * value
                + plane * values[(z - 1) % 2, y, x]
                + row * values[z, (y - 1) % 3, x]
                + column * values[z, y, (x - 1) % 4]
                + mixing.offset
            )
            % MODULI[dtype]
            for (z, y, x), value in values.items()
        }
    mixed = mixed_at_once(stack, mixing)
    assert mixed.dtype == stack.dtype
    assert {at: int(mixed[at]) for at in values} == values


def test_a_turned_result_has_its_planes_reversed_and_rows_and_columns_swapped():
    plain = StressJob("a", FAMILY, (2, 3, 4), "uint16", (1, 2))
    turned = StressJob("a", Family("f", FAMILY.mixing, 1000, 0.1, turned=True), (2, 3, 4), "uint16", (1, 2))
    one, other = expected_result(plain), expected_result(turned)
    assert other.shape == (2, 4, 3)
    assert all(one[z, y, x] == other[1 - z, x, y] for z, y, x in np.ndindex(one.shape))


def test_declared_bytes_follow_the_shape():
    job = StressJob("a", FAMILY, (3, 5, 7), "uint8", (1, 2))
    assert job.declared_bytes == 1000 * prod((3, 5, 7))


RESULT = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)


def test_no_difference_where_every_value_is_right():
    assert difference(RESULT.copy(), RESULT) == ""


def test_one_wrong_value_is_found_and_named():
    wrong = RESULT.copy()
    wrong[1, 2, 3] += 1
    assert difference(wrong, RESULT) == ("has 1 wrong values of 24, the first at (1, 2, 3): 24 instead of 23")


def test_another_form_or_dtype_is_a_difference():
    assert "has shape (2, 4, 3) instead of (2, 3, 4)" in difference(RESULT.swapaxes(1, 2), RESULT)
    assert "has dtype int32 instead of uint16" in difference(RESULT.astype(np.int32), RESULT)
    assert difference(None, RESULT) == "is no array but NoneType"


def test_a_file_is_read_and_compared(tmp_path):
    import tifffile

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RESULT, photometric="minisblack")
    assert difference_of_file(path, RESULT) == ""
    assert "has 24 wrong values" in difference_of_file(path, RESULT + np.uint16(1))
    path.write_bytes(path.read_bytes()[:40])
    assert difference_of_file(path, RESULT) != ""
    assert difference_of_file(tmp_path / "gone.tif", RESULT).startswith("can't be read: ")
