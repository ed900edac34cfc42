"""The NumPy implementations against definitions written out, or another library's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from scheduler.steps.resolve import StepError, resolve_step

Run = Callable[..., NDArray[Any]]
SHAPE = (7, 37, 53)


@pytest.mark.parametrize("sigma", [1.5, (0.0, 2.0, 0.7), (3.0, 3.0, 3.0)])
def test_gaussian_is_scipys_with_the_edge_repeated(run: Run, make_stack: Run, sigma: Any) -> None:
    stack = make_stack(SHAPE, "uint16")
    expected = ndimage.gaussian_filter(stack, sigma, mode="nearest", output=np.float32)
    np.testing.assert_array_equal(run("numpy", "gaussian", stack, sigma=sigma), expected)


def test_background_is_the_opening_by_a_square_in_each_slice(run: Run, make_stack: Run) -> None:
    stack = make_stack(SHAPE, "uint16")
    expected = np.stack([ndimage.white_tophat(plane, size=(9, 9), mode="nearest") for plane in stack])
    np.testing.assert_array_equal(run("numpy", "subtract_background", stack, radius=4), expected)


def test_background_leaves_a_spot_on_a_gradient(run: Run) -> None:
    stack = np.broadcast_to(np.arange(0, 400, 10, dtype=np.uint16), (2, 30, 40)).copy()
    stack[:, 15, 20] += 1000
    result = run("numpy", "subtract_background", stack, radius=3)
    inside = result[:, :, :-3]  # at the bright end of a gradient the window is cut off
    assert inside[0, 15, 20] == 1000
    assert inside.sum() == 2 * 1000


def test_rescaling_maps_the_ends_exactly(run: Run) -> None:
    stack = np.array([[[100, 150, 300]]], np.uint16)
    np.testing.assert_array_equal(run("numpy", "rescale_intensity", stack), [[[0, 0.25, 1]]])
    np.testing.assert_array_equal(
        run("numpy", "rescale_intensity", stack, out_range=[0, 65535]), [[[0, 16383.75, 65535]]]
    )
    np.testing.assert_array_equal(
        run("numpy", "rescale_intensity", stack, in_range=[120, 160], out_range=[0, 4]), [[[0, 3, 4]]]
    )


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "uint32"])
@pytest.mark.parametrize("memory_type", ["numpy", "torch"])
def test_percentiles_are_values_of_the_stack(run: Run, memory_type: str, dtype: str) -> None:
    values = np.arange(101, dtype=dtype) - (50 if dtype == "int16" else 0)
    stack = np.random.default_rng(3).permutation(values.astype(dtype)).reshape(1, 1, 101)
    result = run(memory_type, "rescale_intensity", stack, percentiles=[10, 90], out_range=[10, 90])
    offset = 50 if dtype == "int16" else 0
    np.testing.assert_allclose(result, np.clip(stack.astype(float) + offset, 10, 90), rtol=1e-6)


@pytest.mark.parametrize("memory_type", ["numpy", "torch", "jax"])
def test_a_stack_without_contrast_becomes_the_start_of_the_range(run: Run, memory_type: str) -> None:
    flat = np.full((2, 3, 4), 700, np.uint16)
    np.testing.assert_array_equal(run(memory_type, "rescale_intensity", flat, out_range=[5, 9]), 5.0)


def naive_lucy(counts: NDArray[Any], psf: NDArray[Any], iterations: int) -> NDArray[Any]:
    """The textbook's iteration from a flat estimate, in double precision and by direct sums."""
    estimate = np.ones(counts.shape)
    for _ in range(iterations):
        blurred = ndimage.convolve(estimate, psf, mode="nearest")
        estimate *= ndimage.correlate(counts / blurred, psf, mode="nearest")
    return estimate


@pytest.mark.parametrize("psf_shape", [(3, 5, 7), (1, 1, 3), (3, 3, 3)])
def test_lucy_with_an_array_is_the_textbooks(run: Run, make_stack: Run, psf_shape: Any) -> None:
    psf = np.random.default_rng(5).random(psf_shape)
    stack = make_stack(SHAPE, "float64")
    result = run("numpy", "richardson_lucy", stack, psf=psf.tolist(), iterations=6)
    np.testing.assert_allclose(result, naive_lucy(stack, psf / psf.sum(), 6), rtol=1e-9)


def test_lucy_with_an_even_sided_array_has_its_centre_at_half_the_side(run: Run) -> None:
    stack = np.zeros((1, 1, 9))
    stack[0, 0, 4] = 1.0
    # A PSF that is one voxel at shape // 2 moves nothing.
    np.testing.assert_allclose(
        run("numpy", "richardson_lucy", stack, psf=[[[0.0, 0.0, 1.0, 0.0]]], iterations=3), stack, atol=1e-12
    )


def test_lucy_with_a_gaussian_is_the_textbooks(run: Run, make_stack: Run) -> None:
    stack = make_stack(SHAPE, "float64")
    offsets = [np.arange(-radius, radius + 1) for radius in (4, 6, 6)]
    z, y, x = np.meshgrid(*offsets, indexing="ij")
    psf = np.exp(-0.5 * (z**2 / 1.0 + y**2 / 1.5**2 + x**2 / 1.5**2))
    result = run("numpy", "richardson_lucy", stack, sigma=[1.0, 1.5, 1.5], iterations=4)
    np.testing.assert_allclose(result, naive_lucy(stack, psf / psf.sum(), 4), rtol=1e-9)


@pytest.mark.parametrize("memory_type", ["numpy", "torch", "jax", "pyclesperanto"])
@pytest.mark.parametrize("how", [{"sigma": 1.2}, {"psf": [[[1.0, 2.0, 1.0]]]}], ids=["gaussian", "array"])
def test_lucy_sharpens_and_stays_finite_where_it_is_dark(run: Run, memory_type: str, how: Any) -> None:
    truth = np.zeros((7, 37, 53))
    truth[2, 10, 11] = 5e4
    blurred = ndimage.gaussian_filter(truth, 1.2).astype(np.float32)
    blurred[:, :6] = 0.0
    result = run(memory_type, "richardson_lucy", blurred, iterations=15, **how)
    assert np.isfinite(result).all()
    assert (result >= 0).all()
    assert result.max() > 1.2 * blurred.max()
    assert np.unravel_index(result.argmax(), result.shape) == (2, 10, 11)


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_a_psf_may_be_in_a_file(run: Run, make_stack: Run, tmp_path: Path, suffix: str) -> None:
    psf = np.random.default_rng(5).random((3, 5, 7)).astype(np.float32)
    path = tmp_path / f"psf{suffix}"
    if suffix == ".npy":
        np.save(path, psf)
    else:
        tifffile.imwrite(path, psf, photometric="minisblack")
    stack = make_stack(SHAPE, "uint16")
    np.testing.assert_array_equal(
        run("numpy", "richardson_lucy", stack, psf=str(path), iterations=2),
        run("numpy", "richardson_lucy", stack, psf=psf.tolist(), iterations=2),
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("psf.tif", "must be a full path"),
        ("/nowhere/psf.tif", "can't be read"),
        ("/nowhere/psf.npy", "can't be read"),
    ],
)
def test_a_psf_that_cannot_be_read_is_found_when_the_step_is_resolved(name: str, message: str) -> None:
    with pytest.raises(StepError, match=message):
        resolve_step("richardson_lucy", with_={"psf": name})


def test_a_psf_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    for name in ("psf.tif", "psf.npy"):
        (tmp_path / name).write_text("not an image")
        with pytest.raises(StepError, match=f"{name} can't be read"):
            resolve_step("richardson_lucy", with_={"psf": str(tmp_path / name)})
