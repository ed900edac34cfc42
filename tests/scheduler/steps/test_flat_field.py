"""`flat_field` against its definition, on every framework, and what it refuses."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import memcore
from memcore import DtypeError, StackError
from scheduler.images.arrays import ArrayFile
from scheduler.steps.resolve import resolve_step

SHAPE = (5, 37, 53)
STEP = resolve_step("flat_field", arrays={"flat": ArrayFile("flat.npy", SHAPE[1:], "float32", "")}).step
Run = Callable[..., NDArray[Any]]


def frames(dtype: str = "uint16") -> tuple[NDArray[Any], NDArray[Any]]:
    """An illumination that falls off to the edge, and a dark frame of some noise."""
    y, x = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    flat = 200 + 3000 * np.exp(-(x**2 + y**2))
    dark = np.random.default_rng(2).integers(90, 110, SHAPE[1:])
    return flat.astype(dtype), dark.astype(dtype)


def corrected(memory_type: str, stack: NDArray[Any], **arrays: NDArray[Any]) -> NDArray[Any]:
    """The step on a framework's arrays, as the chain would give them."""
    if memory_type != "numpy":
        pytest.importorskip(memory_type, reason=f"needs {memory_type}", exc_type=ImportError)
    given = {
        name: memcore.convert_memory(array, "numpy", memory_type, "cpu") for name, array in arrays.items()
    }
    before = memcore.convert_memory(stack, "numpy", memory_type, "cpu", copy=True)
    result = STEP.implementation_for(memory_type)(before, **given)
    unchanged = memcore.convert_memory(before, memory_type, "numpy", "cpu")
    np.testing.assert_array_equal(unchanged, stack, err_msg="the step has written to its input")
    return memcore.convert_memory(result, memory_type, "numpy", "cpu")


DOUBLE = [("numpy", "float64"), ("torch", "float64")]  # JAX has no 64 bits unless asked


@pytest.mark.parametrize(
    ("memory_type", "dtype"),
    [(name, dtype) for name in ("numpy", "torch", "jax") for dtype in ("uint16", "float32")] + DOUBLE,
)
def test_it_is_the_two_point_correction(make_stack: Run, memory_type: str, dtype: str) -> None:
    stack = make_stack(SHAPE, "uint16").astype(dtype)
    flat, dark = frames()
    gain = flat.astype(float) - dark
    expected = (stack.astype(float) - dark) / (gain / gain.mean())
    result = corrected(memory_type, stack, flat=flat, dark=dark)
    assert result.dtype == ("float64" if dtype == "float64" else "float32")
    tolerance = 1e-14 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * expected.max() * 2)


@pytest.mark.parametrize("memory_type", ["numpy", "torch", "jax"])
def test_an_evenly_bright_specimen_becomes_even(memory_type: str) -> None:
    flat, _ = frames("float32")
    result = corrected(memory_type, np.stack([flat, 2 * flat]), flat=flat[np.newaxis])
    np.testing.assert_allclose(result[0], flat.mean(dtype=float), rtol=1e-6)
    np.testing.assert_allclose(result[1], 2 * flat.mean(dtype=float), rtol=1e-6)


@pytest.mark.parametrize("memory_type", ["numpy", "torch"])
def test_some_of_the_slices_come_as_in_the_whole(make_stack: Run, memory_type: str) -> None:
    stack = make_stack(SHAPE, "uint16")
    flat, dark = frames()
    part = corrected(memory_type, stack[1:3].copy(), flat=flat, dark=dark)
    np.testing.assert_array_equal(part, corrected(memory_type, stack, flat=flat, dark=dark)[1:3])
    contract = STEP.implementation_for(memory_type).contract
    assert (contract.splittable_for(), contract.halo_for()) == ("z", (0, 0, 0))


def test_frames_of_another_size_are_refused_with_both() -> None:
    stack, flat = np.ones(SHAPE, np.uint16), np.ones((53, 37), np.uint16)
    with pytest.raises(
        StackError, match=r"flat has the shape \(53, 37\), and the stack's slices have \(37, 53\)"
    ):
        corrected("numpy", stack, flat=flat)
    with pytest.raises(StackError, match=r"dark has the shape \(2, 37, 53\)"):
        corrected("numpy", stack, flat=flat.T.copy(), dark=stack[:2])


@pytest.mark.parametrize("memory_type", ["numpy", "torch", "jax"])
def test_a_flat_field_that_is_dark_somewhere_is_refused(memory_type: str) -> None:
    stack, flat = np.ones(SHAPE, np.uint16), np.full(SHAPE[1:], 7, np.uint16)
    flat[3, 4] = 0
    with pytest.raises(ValueError, match="isn't above 0 everywhere"):
        corrected(memory_type, stack, flat=flat)
    dark = np.full(SHAPE[1:], 7, np.uint16)
    with pytest.raises(ValueError, match="less the dark frame isn't above 0"):
        corrected(memory_type, stack, flat=dark, dark=dark)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("memory_type", ["numpy", "torch", "jax"])
def test_frames_that_give_no_finite_gain_are_refused(memory_type: str) -> None:
    stack, even = np.ones(SHAPE, np.uint16), np.full(SHAPE[1:], 7, np.float32)

    def with_one(value: float, dtype: str = "float32") -> NDArray[Any]:
        frame = even.astype(dtype)
        frame[3, 4] = value
        return frame

    for flat in (with_one(np.inf), np.full_like(even, np.inf)):
        with pytest.raises(ValueError, match="flat field isn't finite in float32"):
            corrected(memory_type, stack, flat=flat)
    with pytest.raises(ValueError, match="flat field isn't above 0 everywhere"):
        corrected(memory_type, stack, flat=with_one(np.nan))
    for dark in (with_one(-np.inf), with_one(np.inf), with_one(np.nan)):
        with pytest.raises(ValueError, match="flat field less the dark frame"):
            corrected(memory_type, stack, flat=even, dark=dark)
    if memory_type != "jax":  # it has no float64
        with pytest.raises(ValueError, match="flat field isn't finite in float32"):
            corrected(memory_type, stack, flat=with_one(1e300, "float64"))


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("memory_type", ["numpy", "torch"])
def test_a_gain_that_vanishes_by_its_scaling_is_refused(memory_type: str) -> None:
    flat = np.full(SHAPE[1:], 1e38, np.float32)
    flat[3, 4] = 1e-20
    with pytest.raises(ValueError, match="has values so far below its mean that float32"):
        corrected(memory_type, np.ones(SHAPE, np.uint16), flat=flat)


@pytest.mark.parametrize("name", ["flat", "dark"])
def test_complex_frames_are_refused(name: str) -> None:
    frames = {"flat": np.full(SHAPE[1:], 7, np.float32), name: np.full(SHAPE[1:], 1 + 1j, np.complex64)}
    with pytest.raises(DtypeError, match=f"flat_field: {name} is complex64, and a frame has real values"):
        corrected("numpy", np.ones(SHAPE, np.uint16), **frames)


def test_other_dtypes_are_refused_with_the_way_out() -> None:
    with pytest.raises(DtypeError, match=r"flat_field takes .*not bool.*convert_dtype"):
        corrected("numpy", np.ones(SHAPE, bool), flat=np.ones(SHAPE[1:], np.uint16))


def test_numpy_takes_no_more_than_declared() -> None:
    shape = (29, 211, 307)
    stack, flat = np.ones(shape, np.uint16), np.ones(shape[1:], np.uint16)
    contract = STEP.implementation_for("numpy").contract
    workspace = contract.workspace_for(shape, "uint16")
    assert workspace is not None
    tracemalloc.start()
    try:
        result = STEP.implementation_for("numpy")(stack, flat=flat, dark=np.zeros_like(flat))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= result.nbytes + workspace
