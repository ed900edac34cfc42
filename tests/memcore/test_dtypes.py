"""The dtype rules: values by hand, one result on every library, and errors that name the value."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcore import DtypeError, convert_dtype, convert_memory, device_of, memory_type_of
from memcore.dtype_rules import RULES, applies_on_device
from memcore.registry import backend_of

torch = pytest.importorskip("torch", reason="needs torch")
jax = pytest.importorskip("jax", reason="needs jax")
tf = pytest.importorskip("tensorflow", reason="needs tensorflow")
cle = pytest.importorskip("pyclesperanto", reason="needs pyclesperanto")

INTEGERS = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
NAN, INF = math.nan, math.inf
F32 = 3.4028234663852886e38  # the greatest float32


def of(dtype: str, *values: Any) -> np.ndarray:
    import ml_dtypes

    with np.errstate(invalid="ignore"):
        return np.array(values).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize(
    ("source", "values", "target", "rule", "expected"),
    [
        ("uint16", [0, 255], "uint8", "exact", [0, 255]),
        ("float64", [0.0, -3.0, 255.0], "int16", "exact", [0, -3, 255]),
        ("float64", [0.5, NAN, -INF], "float32", "exact", [0.5, NAN, -INF]),
        ("int64", [2**53, -(2**53)], "float64", "exact", [2.0**53, -(2.0**53)]),
        ("complex128", [3 + 0j], "float32", "exact", [3.0]),
        ("float32", [2.5], "complex64", "exact", [2.5 + 0j]),
        ("uint8", [0, 1], "bool", "exact", [False, True]),
        ("float64", [0.5, 1.5, 2.5, -0.5, 300.7, -7.0], "uint8", "saturate", [0, 2, 2, 0, 255, 0]),
        ("float64", [INF, -INF], "int16", "saturate", [32767, -32768]),
        ("float64", [2.0**63, -(2.0**63) * 1.5, 2.0**62], "int64", "saturate", [2**63 - 1, -(2**63), 2**62]),
        ("float64", [2.0**64, 2.0**63], "uint64", "saturate", [2**64 - 1, 2**63]),
        ("int32", [-1, 70000], "uint16", "saturate", [0, 65535]),
        ("uint64", [2**64 - 1], "int64", "saturate", [2**63 - 1]),
        ("float64", [1e300, -1e300, INF, NAN], "float32", "saturate", [F32, -F32, INF, NAN]),
        ("uint32", [70000], "float16", "saturate", [65504.0]),
        ("float32", [0.2, 7.0], "bool", "saturate", [False, True]),
        ("uint8", [0, 1, 255], "uint16", "rescale", [0, 257, 65535]),
        ("uint16", [0, 128, 129, 65535], "uint8", "rescale", [0, 0, 1, 255]),
        ("uint8", [0, 128, 255], "int8", "rescale", [-128, 0, 127]),
        ("int16", [-32768, 0, 32767], "uint16", "rescale", [0, 32768, 65535]),
        ("uint8", [0, 255], "uint64", "rescale", [0, 2**64 - 1]),
        ("int64", [-(2**63), 2**63 - 1], "uint8", "rescale", [0, 255]),
        ("float32", [0.0, 0.5, 1.0], "uint8", "rescale", [0, 128, 255]),
        ("float64", [0.0, 1.0], "int16", "rescale", [-32768, 32767]),
        ("uint8", [0, 51, 255], "float32", "rescale", [0.0, 0.2, 1.0]),
        ("bool", [False, True], "uint16", "rescale", [0, 65535]),
    ],
)  # fmt: skip
def test_values(source: str, values: list[Any], target: str, rule: Any, expected: list[Any]) -> None:
    result = convert_dtype(np.array(values, source), target, rule)
    wanted = np.array(expected, target)
    assert result.dtype == wanted.dtype
    np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize(
    ("source", "values", "target", "rule", "named"),
    [
        ("uint16", [0, 256], "uint8", "exact", r"256 at \(1,\).*saturate"),
        ("int8", [-1], "uint64", "exact", "-1"),
        ("float64", [0.5], "int32", "exact", "0.5"),
        ("float64", [NAN], "int32", "exact", "nan"),
        ("float64", [0.1], "float32", "exact", "0.1"),
        ("float64", [2.0**63], "int64", "exact", "9.22"),
        ("int64", [2**53 + 1], "float64", "exact", "9007199254740993"),
        ("int64", [2**63 - 1], "float64", "exact", "9223372036854775807"),
        ("uint64", [2**64 - 1], "float32", "exact", "18446744073709551615"),
        ("complex64", [1 + 1j], "float64", "exact", "1j"),
        ("uint8", [2], "bool", "exact", "2"),
        ("float32", [1.0, NAN], "uint8", "saturate", r"nan at \(1,\).*replace NaN"),
        ("float32", [1.5], "uint8", "rescale", "1.5.*0 to 1"),
        ("float32", [-0.1], "uint8", "rescale", "0 to 1"),
        ("float32", [NAN], "uint8", "rescale", "nan"),
        ("complex64", [1.0], "float32", "rescale", "complex"),
    ],
)
def test_what_a_rule_cannot_keep_is_named(
    source: str, values: list[Any], target: str, rule: Any, named: str
) -> None:
    with pytest.raises(DtypeError, match=named):
        convert_dtype(np.array(values, source), target, rule)


def test_the_index_of_a_bad_value_is_right_in_a_large_stack() -> None:
    stack = np.zeros((40, 100, 130), np.float32)
    stack[33, 7, 11] = 300
    with pytest.raises(DtypeError, match=r"300.0 at \(33, 7, 11\)"):
        convert_dtype(stack, "uint8", "exact")


@given(
    st.sampled_from(INTEGERS[1:]),
    st.sampled_from(INTEGERS[1:]),
    st.lists(st.fractions(0, 1), min_size=1, max_size=8),
)
def test_integer_rescaling_is_the_nearest_integer_of_the_exact_map(
    source: str, target: str, parts: list[Fraction]
) -> None:
    info, out = np.iinfo(source), np.iinfo(target)
    span, out_span = int(info.max) - int(info.min), int(out.max) - int(out.min)
    values = [int(info.min) + round(part * span) for part in parts]
    found = convert_dtype(np.array(values, source), target, "rescale")
    exact = [round(Fraction(v - int(info.min), span) * out_span) + int(out.min) for v in values]
    assert [int(v) for v in found] == exact


@given(st.lists(st.floats(width=64), min_size=1, max_size=8), st.sampled_from(INTEGERS[1:]))
def test_saturating_is_round_and_clip(values: list[float], target: str) -> None:
    array = np.array(values)
    info = np.iinfo(target)
    if np.isnan(array).any():
        with pytest.raises(DtypeError, match="NaN"):
            convert_dtype(array, target, "saturate")
        return
    found = [int(v) for v in convert_dtype(array, target, "saturate")]
    whole = [int(info.max) if v == INF else int(info.min) if v == -INF else round(v) for v in values]
    assert found == [min(max(v, int(info.min)), int(info.max)) for v in whole]


@given(st.lists(st.floats(width=64), min_size=1, max_size=8), st.sampled_from(INTEGERS + FLOATS))
def test_exact_is_reversible_or_refused(values: list[float], target: str) -> None:
    array = np.array(values)
    try:
        there = convert_dtype(array, target, "exact")
    except DtypeError:
        back = array.astype(np.float64)
        with np.errstate(all="ignore"):
            lossy = of(target, *values).astype(np.float64)
        assert not np.array_equal(back, lossy, equal_nan=target in FLOATS) or np.abs(back).max() >= 2.0**63
        return
    np.testing.assert_array_equal(there.astype(np.float64), array)


SAMPLES = {
    **{name: [0, 1] if name == "bool" else [0, 1, 100, np.iinfo(name).max] for name in INTEGERS},
    **{name: [0.0, 0.25, 0.5, 1.0, 2.5, 300.0] for name in FLOATS},
}


def outcome(array: Any, target: str, rule: Any) -> Any:
    """The converted array, or the text of the refusal."""
    try:
        return convert_dtype(array, target, rule)
    except DtypeError as error:
        return str(error)


@pytest.mark.parametrize("library", ["torch", "tensorflow", "jax", "pyclesperanto"])
def test_every_library_gets_the_result_of_numpy(library: str) -> None:
    backend = backend_of(library)
    place = 0 if library == "pyclesperanto" else "cpu"
    compared = 0
    for source, target, rule in itertools.product(SAMPLES, SAMPLES, RULES):
        if backend.dtype_refusal(source) or backend.dtype_refusal(target):
            continue
        values = of(source, *SAMPLES[source]).reshape(1, 1, -1)
        if rule == "rescale" and source in FLOATS:
            values = values[..., :4]
        array = convert_memory(values, "numpy", library, place)
        expected, found = outcome(values, target, rule), outcome(array, target, rule)
        if isinstance(expected, str):
            assert found == expected
            continue
        assert memory_type_of(found) == library
        assert device_of(found) == place
        host = backend.to_host(found)
        assert host.dtype == expected.dtype
        assert host.tobytes() == expected.tobytes(), (source, target, rule)
        compared += 1
    assert compared > 60


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_the_arithmetic_for_device_memory_agrees_with_numpy(library: str) -> None:
    # What runs on a CUDA device, run here in host memory through the same namespaces.
    import array_api_compat.torch

    compared = 0
    with jax.enable_x64(True), np.errstate(all="ignore"):
        for source, target, rule in itertools.product(SAMPLES, SAMPLES, RULES):
            if not applies_on_device(rule, source, target):
                continue
            values = of(source, *SAMPLES[source])
            if rule == "rescale" and source in FLOATS:
                values = values[:4]
            xp = array_api_compat.torch if library == "torch" else jax.numpy
            array = torch.from_numpy(values.copy()) if library == "torch" else jax.numpy.asarray(values)
            found, bad = RULES[rule](xp, array, source, target)
            expected, worse = RULES[rule](np, values, source, target)
            wrong = np.zeros(values.shape, bool) if worse is None else worse
            np.testing.assert_array_equal(wrong, False if bad is None else np.asarray(bad))
            np.testing.assert_array_equal(np.asarray(found)[~wrong], expected[~wrong])
            assert np.asarray(found).dtype == expected.dtype, (source, target, rule)
            compared += 1
    assert compared > 100


def test_the_same_dtype_is_the_same_array() -> None:
    array = np.arange(3, dtype=np.uint8)
    for rule in ("exact", "saturate", "rescale"):
        assert convert_dtype(array, "uint8", rule) is array  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dtype", ["float32", np.float32, np.dtype("f4"), "f4", torch.float32, tf.float32, jax.numpy.float32]
)
def test_a_dtype_may_be_named_as_any_library_does(dtype: Any) -> None:
    assert convert_dtype(np.arange(3, dtype=np.uint8), dtype, "exact").dtype == np.float32


@pytest.mark.parametrize("dtype", ["float8", "U5", "complex256", None, object, 7])
def test_an_unknown_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(DtypeError, match="no dtype"):
        convert_dtype(np.arange(3, dtype=np.uint8), dtype, "exact")


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(DtypeError, match="exact, saturate, rescale"):
        convert_dtype(np.arange(3), "uint8", "stretch")  # type: ignore[arg-type]


def test_a_dtype_that_the_library_cannot_hold_is_refused() -> None:
    array = convert_memory(np.ones((1, 2, 3), np.uint8), "numpy", "pyclesperanto", 0)
    with pytest.raises(DtypeError, match="float64"):
        convert_dtype(array, "float64", "exact")
    with pytest.raises(DtypeError, match="jax_enable_x64"):
        convert_dtype(jax.numpy.ones((1, 2, 3)), "float64", "exact")


def test_gradients_are_not_dropped() -> None:
    with pytest.raises(DtypeError, match="detach"):
        convert_dtype(torch.ones(3, requires_grad=True), "float64", "exact")


def test_a_foreign_byte_order_has_no_rule() -> None:
    with pytest.raises(DtypeError, match=">u2"):
        convert_dtype(np.arange(3, dtype=">u2"), "uint8", "saturate")
