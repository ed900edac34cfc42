"""Slices to a stack and back: one destination filled once, and nothing coerced on the way."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from memcore import (
    DeviceError,
    MemcoreError,
    StackError,
    UnknownMemoryTypeError,
    aligned_empty,
    convert_memory,
    device_of,
    memory_type_of,
    stack_slices,
    unstack_slices,
)
from memcore.registry import backend_of

torch = pytest.importorskip("torch", reason="needs torch")
jax = pytest.importorskip("jax", reason="needs jax")
tf = pytest.importorskip("tensorflow", reason="needs tensorflow")
cle = pytest.importorskip("pyclesperanto", reason="needs pyclesperanto")

TYPES = ("numpy", "torch", "tensorflow", "jax", "pyclesperanto")


def place(name: str) -> Any:
    return 0 if name == "pyclesperanto" else "cpu"


def volume(dtype: str = "uint16") -> np.ndarray:
    return np.arange(2 * 3 * 5).reshape(2, 3, 5).astype(dtype)


def planes(name: str) -> list[Any]:
    return [convert_memory(plane.copy(), "numpy", name, place(name)) for plane in volume()]


def values(array: Any) -> np.ndarray:
    return backend_of(memory_type_of(array)).to_host(array)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(TYPES, TYPES)), ids="->".join)
def test_every_type_stacks_into_every_type_and_back(source: str, target: str) -> None:
    stack = stack_slices(planes(source), target, place(target))
    assert memory_type_of(stack) == target
    assert device_of(stack) == place(target)
    np.testing.assert_array_equal(values(stack), volume())
    slices = unstack_slices(stack, source, place(source))
    assert [memory_type_of(plane) for plane in slices] == [source] * 2
    for found, plane in zip(slices, volume(), strict=True):
        np.testing.assert_array_equal(values(found), plane)


@pytest.mark.parametrize("target", TYPES)
def test_slices_of_different_types_make_one_stack(target: str) -> None:
    mixed = [planes(name)[index % 2] for index, name in enumerate(TYPES)]
    stack = stack_slices(mixed, target, place(target))
    expected = np.stack([volume()[index % 2] for index in range(len(TYPES))])
    np.testing.assert_array_equal(values(stack), expected)


@pytest.mark.parametrize(
    "kind", [list, tuple, iter, lambda s: (x for x in s)], ids=["list", "tuple", "iter", "gen"]
)
def test_any_iterable_of_slices_will_do(kind: Any) -> None:
    np.testing.assert_array_equal(stack_slices(kind(list(volume())), "numpy", 0), volume())


@pytest.mark.parametrize("source", TYPES)
def test_a_3d_array_is_taken_as_its_planes_and_copied(source: str) -> None:
    whole = convert_memory(volume(), "numpy", source, place(source))
    stack = stack_slices(whole, "numpy", 0)
    np.testing.assert_array_equal(stack, volume())
    view = backend_of(source).host_view(whole)
    assert view is None or not np.shares_memory(stack, view)


@pytest.mark.parametrize("target", ["numpy", "torch", "jax", "tensorflow"])
def test_a_stack_never_shares_memory_with_its_slices(target: str) -> None:
    one = aligned_empty((4, 16), np.float32)
    one[...] = 1
    stack = stack_slices([one], target, "cpu")
    assert not np.shares_memory(one, backend_of(target).host_view(stack))


@pytest.mark.parametrize("target", ["torch", "jax", "tensorflow"])
def test_the_filled_destination_is_lent_not_copied(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of(target)
    lent: list[int] = []
    lend = backend.lend
    monkeypatch.setattr(backend, "lend", lambda view, where: (lent.append(view.nbytes), lend(view, where))[1])
    monkeypatch.setattr(backend, "from_host", lambda *_: pytest.fail("a second copy"))
    stack = stack_slices(list(volume()), target, "cpu")
    assert lent == [60]
    np.testing.assert_array_equal(backend.to_host(stack), volume())


def test_a_device_gets_one_transfer_not_one_for_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of("pyclesperanto")
    sent: list[tuple[int, ...]] = []
    send = backend.from_host
    monkeypatch.setattr(backend, "from_host", lambda view, at: (sent.append(view.shape), send(view, at))[1])
    stack_slices(list(volume()), "pyclesperanto", 0)
    stack_slices(planes("torch"), "pyclesperanto", 0)
    assert sent == [(2, 3, 5), (2, 3, 5)]


def test_slices_on_a_device_come_to_the_host_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = planes("pyclesperanto")
    backend = backend_of("pyclesperanto")
    fetched: list[tuple[int, ...]] = []
    fetch = backend.to_host
    monkeypatch.setattr(backend, "to_host", lambda array: (fetched.append(array.shape), fetch(array))[1])
    np.testing.assert_array_equal(stack_slices(slices, "numpy", 0), volume())
    assert fetched == [(2, 3, 5)]


def test_unstacking_converts_the_whole_stack_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stack_slices(list(volume()), "pyclesperanto", 0)
    backend = backend_of("pyclesperanto")
    fetched: list[tuple[int, ...]] = []
    fetch = backend.to_host
    monkeypatch.setattr(backend, "to_host", lambda array: (fetched.append(array.shape), fetch(array))[1])
    unstack_slices(stack, "numpy", 0)
    assert fetched == [(2, 3, 5)]


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 1, 1), (2, 1, 5), (2, 3, 1)])
@pytest.mark.parametrize("name", TYPES)
def test_a_slice_of_one_pixel_is_a_slice(name: str, shape: tuple[int, ...]) -> None:
    whole = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    slices = unstack_slices(convert_memory(whole, "numpy", name, place(name)), name, place(name))
    for found, plane in zip(slices, whole, strict=True):
        np.testing.assert_array_equal(values(found), plane, strict=True)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_unstacked_slices_are_views_where_there_are_views(name: str) -> None:
    stack = stack_slices(list(volume()), name, "cpu")
    slices = unstack_slices(stack, name, "cpu")
    for plane in slices:
        assert np.shares_memory(values(plane), values(stack))


@pytest.mark.parametrize("name", ["numpy", "torch", "pyclesperanto"])
def test_a_reused_destination_is_filled_and_returned(name: str) -> None:
    out = backend_of(name).empty((2, 3, 5), "uint16", place(name))
    for source in TYPES:
        assert stack_slices(planes(source), name, place(name), out=out) is out
        np.testing.assert_array_equal(values(out), volume())
        stack_slices([np.zeros((3, 5), np.uint16)] * 2, name, place(name), out=out)


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        (np.empty((2, 3, 4), np.uint16), "nothing is broadcast"),
        (np.empty((2, 3, 5), np.int16), "convert_dtype"),
        (np.empty((3, 2, 3, 5), np.uint16)[0], None),
        (torch.empty(2, 3, 5, dtype=torch.uint16), "out is a torch tensor"),
    ],
    ids=["shape", "dtype", "a view", "type"],
)
def test_a_destination_that_does_not_fit_is_refused(out: Any, problem: str | None) -> None:
    if problem is None:
        assert stack_slices(list(volume()), "numpy", 0, out=out) is out
        return
    with pytest.raises(MemcoreError, match=problem):
        stack_slices(list(volume()), "numpy", 0, out=out)


def test_a_read_only_destination_is_refused() -> None:
    out = np.zeros((2, 3, 5), np.uint16)
    out.flags.writeable = False
    with pytest.raises(StackError, match="read-only"):
        stack_slices(list(volume()), "numpy", 0, out=out)


@pytest.mark.parametrize("target", ["numpy", "torch"])
def test_a_destination_whose_planes_are_one_memory_is_refused(target: str) -> None:
    plane = aligned_empty((4, 5), np.uint16)
    repeated = np.lib.stride_tricks.as_strided(plane, (3, 4, 5), (0, 10, 2))
    out = convert_memory(repeated, "numpy", target, "cpu", copy=False)
    with pytest.raises(StackError, match="repeats its memory"):
        stack_slices([np.full((4, 5), z, np.uint16) for z in range(3)], target, "cpu", out=out)


def test_a_destination_that_its_own_slices_are_views_of_is_refused() -> None:
    out = volume()
    with pytest.raises(StackError, match="slice 0 shares memory with out"):
        stack_slices([out[1], out[0]], "numpy", 0, out=out)
    np.testing.assert_array_equal(out, volume())


@pytest.mark.parametrize("target", ["jax", "tensorflow"])
def test_immutable_arrays_are_no_destination(target: str) -> None:
    out = stack_slices(list(volume()), target, "cpu")
    with pytest.raises(StackError, match="leave out=None"):
        stack_slices(list(volume()), target, "cpu", out=out)


@pytest.mark.parametrize(
    ("slices", "error", "text"),
    [
        ([], StackError, "no slices"),
        (iter(()), StackError, "no slices"),
        ([np.ones(3)], StackError, r"slice 0 has shape \(3,\)"),
        ([np.ones((3, 3)), np.ones((1, 3, 3))], StackError, r"slice 1 has shape \(1, 3, 3\)"),
        ([np.ones((3, 3)), np.ones((3, 4))], StackError, r"slice 1 .*\(3, 4\), but slice 0 has \(3, 3\)"),
        (
            [np.ones((3, 3)), np.ones((3, 3), "f4")],
            StackError,
            "slice 1 has dtype float32, but slice 0 has float64",
        ),
        ([np.ones((3, 3)), [[1.0] * 3] * 3], UnknownMemoryTypeError, "list"),
        ([np.ones((3, 3)), np.ma.masked_all((3, 3))], UnknownMemoryTypeError, "filled"),
        (np.ones((3, 3)), StackError, r"\[Z, Y, X\]"),
        (np.ones((1, 2, 3, 4)), StackError, r"\[Z, Y, X\]"),
        ({"a": np.ones((3, 3))}, StackError, "dict"),
        ("abc", StackError, "str"),
        (7, StackError, "int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_stack_is_refused_by_index_and_value(slices: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        stack_slices(slices, "numpy", 0)


def test_a_bad_device_is_refused_before_anything_is_copied() -> None:
    with pytest.raises(DeviceError, match="3"):
        stack_slices(list(volume()), "torch", 3)
    with pytest.raises(DeviceError, match="99"):
        stack_slices(list(volume()), "pyclesperanto", 99)


def test_foreign_byte_order_stacks_on_numpy_as_it_is() -> None:
    swapped = list(volume().astype(">u2"))
    stack = stack_slices(swapped, "numpy", 0)
    assert stack.dtype.str == ">u2"
    np.testing.assert_array_equal(stack, volume())


@pytest.mark.parametrize("target", ["torch", "jax", "tensorflow"])
def test_bfloat16_slices_stack_exactly(target: str) -> None:
    import ml_dtypes

    brain = volume().astype(ml_dtypes.bfloat16)
    stack = stack_slices(list(brain), target, "cpu")
    assert values(stack).dtype == brain.dtype
    assert values(stack).tobytes() == brain.tobytes()


@pytest.mark.parametrize("array", [np.ones((3, 3)), np.ones((1, 1, 3, 3)), np.ones(())])
def test_only_a_3d_array_is_unstacked(array: np.ndarray) -> None:
    for validate in (True, False):
        with pytest.raises(StackError, match=r"\[Z, Y, X\]"):
            unstack_slices(array, "numpy", 0, validate_slices=validate)


def test_results_are_checked_unless_that_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of("numpy")
    monkeypatch.setattr(backend, "unstack", lambda array: [array])
    with pytest.raises(StackError, match="slice 0 came out as"):
        unstack_slices(volume(), "numpy", 0)
    assert len(unstack_slices(volume(), "numpy", 0, validate_slices=False)) == 1


def test_an_empty_stack_unstacks_to_no_slices() -> None:
    assert unstack_slices(np.empty((0, 3, 5), np.uint8), "torch", "cpu") == []
