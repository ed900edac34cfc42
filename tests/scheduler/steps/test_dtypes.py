"""One rule of dtypes for every step and framework, and an error where it can't be kept."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from memcore import DtypeError
from scheduler.steps.resolve import resolve_step

Run = Callable[..., NDArray[Any]]
AVERAGING: list[tuple[str, dict[str, Any]]] = [
    ("gaussian", {"sigma": 1.0}),
    ("richardson_lucy", {"sigma": 1.0, "iterations": 2}),
    ("rescale_intensity", {"in_range": [0, 100]}),
]
PICKING: list[tuple[str, dict[str, Any]]] = [("subtract_background", {"radius": 2}), ("max_projection", {})]
FLOAT32 = ("uint8", "int8", "uint16", "int16", "float32")
FLOAT64 = ("uint32", "int32", "float64")
REFUSED = ("bool", "uint64", "int64", "float16", "complex64")


@pytest.mark.parametrize("dtype", FLOAT32 + FLOAT64)
@pytest.mark.parametrize(("use", "keywords"), AVERAGING)
def test_averages_are_of_the_float_that_holds_the_input(
    run: Run, use: str, keywords: dict[str, Any], dtype: str
) -> None:
    stack = np.arange(2 * 5 * 6).reshape(2, 5, 6).astype(dtype)
    expected = np.float32 if dtype in FLOAT32 else np.float64
    for memory_type in ("numpy", "torch"):
        assert run(memory_type, use, stack, **keywords).dtype == expected
    for implementation in resolve_step(use, with_=keywords).step.implementations:
        form = implementation.contract.output_for(stack.shape, dtype, **keywords)
        assert form == (stack.shape, np.dtype(expected).name)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32", "float64"])
@pytest.mark.parametrize(("use", "keywords"), PICKING)
def test_picked_values_keep_their_dtype(run: Run, use: str, keywords: dict[str, Any], dtype: str) -> None:
    stack = np.arange(2 * 5 * 6).reshape(2, 5, 6).astype(dtype)
    for memory_type in ("numpy", "torch"):
        result = run(memory_type, use, stack, **keywords)
        contract = resolve_step(use, with_=keywords).step.implementation_for(memory_type).contract
        assert (result.shape, result.dtype.name) == contract.output_for(stack.shape, dtype, **keywords)
        assert result.dtype == dtype


@pytest.mark.parametrize("dtype", REFUSED)
@pytest.mark.parametrize(("use", "keywords"), AVERAGING + PICKING)
def test_other_dtypes_are_refused_with_the_way_out(
    run: Run, use: str, keywords: dict[str, Any], dtype: str
) -> None:
    stack = np.ones((2, 5, 6), dtype)
    for memory_type in ("numpy", "torch"):
        with pytest.raises(DtypeError, match=f"{use} takes .*not {dtype}.*convert_dtype"):
            run(memory_type, use, stack, **keywords)


@pytest.mark.parametrize("memory_type", ["numpy", "torch", "jax", "pyclesperanto"])
def test_a_difference_of_signed_integers_is_refused(run: Run, memory_type: str) -> None:
    stack = np.full((1, 5, 5), -30000, np.int16)
    stack[0, 2, 2] = 30000
    with pytest.raises(DtypeError, match="larger than it holds"):
        run(memory_type, "subtract_background", stack, radius=1)


@pytest.mark.parametrize(("use", "keywords"), AVERAGING[:2])
def test_pyclesperanto_has_no_double_precision(run: Run, use: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(DtypeError, match="float64, which pyclesperanto doesn't have"):
        run("pyclesperanto", use, np.ones((2, 5, 6), np.uint32), **keywords)


@pytest.mark.parametrize(("use", "keywords"), AVERAGING)
def test_jax_without_64_bits_has_no_double_precision(run: Run, use: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(DtypeError, match="jax_enable_x64"):
        run("jax", use, np.ones((2, 5, 6), np.uint32), **keywords)


EVERYWHERE = ["numpy", "torch", "tensorflow", "jax", "pyclesperanto"]


@pytest.mark.parametrize("memory_type", EVERYWHERE)
@pytest.mark.parametrize("largest", [2**24 + 1, 2**31 - 1, 2**32 - 1])
def test_large_integers_are_compared_exactly(run: Run, memory_type: str, largest: int) -> None:
    stack = np.array([[[largest - 1]], [[largest]], [[largest - 2]]], np.uint32)
    assert run(memory_type, "max_projection", stack).item() == largest
    if largest < 2**31:
        signed = stack.astype(np.int32)
        assert run(memory_type, "max_projection", signed).item() == largest
        assert run(memory_type, "max_projection", -signed).item() == 2 - largest


@pytest.mark.parametrize("memory_type", EVERYWHERE)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(each, (131, 5, 7)) for each in ("uint8", "int8", "uint16", "int16", "uint32", "int32")]
    # OpenCL's coordinates have as many numbers as there are sides above 1.
    + [(each, shape) for each in ("uint32", "int32") for shape in ((1, 5, 7), (131, 1, 1), (3, 1, 53))],
)
def test_a_projection_is_exact_over_the_whole_range(
    run: Run, memory_type: str, dtype: str, shape: tuple[int, int, int]
) -> None:
    limits = np.iinfo(dtype)
    stack = np.random.default_rng(2).integers(limits.min, limits.max, shape, dtype, endpoint=True)
    stack[:, 0, 0] = limits.min
    stack[-1, -1, -1] = limits.max
    np.testing.assert_array_equal(
        run(memory_type, "max_projection", stack), stack.max(axis=0, keepdims=True), strict=True
    )


@pytest.mark.parametrize("memory_type", EVERYWHERE)
@pytest.mark.parametrize("plane", [0, 1, 2])
def test_a_projection_of_nan_is_nan(run: Run, memory_type: str, plane: int) -> None:
    stack = np.array([[[1, -np.inf]], [[np.inf, -np.inf]], [[-2, -np.inf]]], np.float32)
    np.testing.assert_array_equal(run(memory_type, "max_projection", stack), [[[np.inf, -np.inf]]])
    stack[plane, 0, 0] = np.nan
    np.testing.assert_array_equal(run(memory_type, "max_projection", stack), [[[np.nan, -np.inf]]])


@pytest.mark.parametrize("memory_type", ["numpy", "torch", "jax", "pyclesperanto"])
@pytest.mark.parametrize("largest", [2**24 + 1, 2**31 - 1, 2**32 - 1])
def test_a_background_of_large_integers_is_subtracted_exactly(
    run: Run, memory_type: str, largest: int
) -> None:
    stack = np.full((2, 5, 7), largest - 3, np.uint32)
    stack[0, 2, 3] = largest
    stack[1, 1, 1] = largest - 4
    expected = np.zeros_like(stack)
    expected[0, 2, 3] = 3
    # The dark voxel darkens the opening only where no window without it reaches: in its corner.
    expected[1, :1, :2] = expected[1, :2, :1] = 1
    np.testing.assert_array_equal(run(memory_type, "subtract_background", stack, radius=1), expected)


@pytest.mark.parametrize(
    ("dtype", "shape", "radius"),
    [("uint16", (2, 61, 131), 50), ("uint32", (1, 37, 53), 3), ("uint32", (3, 1, 53), 1)]
    + [("uint32", (2, 61, 131), radius) for radius in (1, 20, 50)],
)
def test_an_opencl_background_is_exact_over_the_whole_range(
    run: Run, dtype: str, radius: int, shape: tuple[int, int, int]
) -> None:
    stack = np.random.default_rng(2).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    np.testing.assert_array_equal(
        run("pyclesperanto", "subtract_background", stack, radius=radius),
        run("numpy", "subtract_background", stack, radius=radius),
        strict=True,
    )


@pytest.mark.parametrize("memory_type", EVERYWHERE)
@pytest.mark.parametrize("value", [2**24 + 1, 2**31 - 1, 2**32 - 1])
def test_large_integers_are_converted_exactly(run: Run, memory_type: str, value: int) -> None:
    stack = np.array([[[value, 0]]], np.uint32)
    signed = run(memory_type, "convert_dtype", stack, dtype="int32", rule="saturate")
    np.testing.assert_array_equal(signed, [[[min(value, 2**31 - 1), 0]]])
    with pytest.raises(DtypeError, match=f"{value} at"):
        run(memory_type, "convert_dtype", stack, dtype="float32", rule="exact")
    # float32 rounds the value up to the power of two, which uint32 may not hold.
    rounded = run(memory_type, "convert_dtype", stack, dtype="float32", rule="saturate")
    back = run(memory_type, "convert_dtype", rounded, dtype="uint32", rule="saturate")
    np.testing.assert_array_equal(back, [[[min(int(np.float32(value)), 2**32 - 1), 0]]])


@pytest.mark.parametrize("memory_type", ["numpy", "torch", "jax", "pyclesperanto"])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 2, 3), (1, 4, 5)])
def test_a_deconvolution_refuses_nan(run: Run, memory_type: str, place: tuple[int, int, int]) -> None:
    stack = np.ones((2, 5, 6), np.float32)
    stack[place] = np.nan
    with pytest.raises(ValueError, match="the smallest voxel is nan"):
        run(memory_type, "richardson_lucy", stack, sigma=1.0)


@pytest.mark.parametrize(
    ("use", "keywords", "message"),
    [
        ("richardson_lucy", {"sigma": 1.0}, "zero or more; the smallest voxel is -1"),
        ("rescale_intensity", {"percentiles": [90, 10]}, "percentiles"),
        ("rescale_intensity", {"in_range": [3, 3]}, "in_range"),
        ("rescale_intensity", {"out_range": [0, float("inf")]}, "out_range"),
        ("gaussian", {"sigma": [1.0, 2.0]}, "one number or three"),
        ("gaussian", {"sigma": float("nan")}, "zero or more"),
        ("subtract_background", {"radius": 0}, "at least 1"),
        ("richardson_lucy", {"sigma": 1.0, "iterations": 0}, "iterations"),
        ("richardson_lucy", {"psf": [[[0.0]]]}, "not all zero"),
        ("richardson_lucy", {"psf": [[1.0]]}, r"\[Z, Y, X\]"),
    ],
)
def test_values_that_cannot_be_are_refused(
    run: Run, use: str, keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run("numpy", use, np.full((2, 5, 6), -1.0, np.float32), **keywords)
