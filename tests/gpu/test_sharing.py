"""Zero copies between libraries on a device, told by the pointers; and copies where a rule asks for them."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from memcore import DeviceError, convert_memory, device_of, move_to_device, plan_conversion
from memcore.registry import backend_of
from tests.cuda import cuda_libraries, on_cuda

PLACES = [pytest.param(0, marks=pytest.mark.gpu, id="gpu"), pytest.param("cpu", id="rehearsal")]
IMMUTABLE = ("jax", "tensorflow")
VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
Pointer = Callable[[Any], int]


def pointer(array: Any, library: str) -> int:
    """The address of the first element, by the library's own means."""
    if library == "torch":
        return int(array.data_ptr())
    if library == "cupy":
        return int(array.data.ptr)
    if library == "jax":
        return int(array.unsafe_buffer_pointer())
    # TensorFlow tells no pointers: another library looks at its memory.
    import torch

    return int(torch.utils.dlpack.from_dlpack(array.__dlpack__()).data_ptr())


@pytest.fixture(params=PLACES)
def libraries(request: pytest.FixtureRequest) -> tuple[Any, tuple[str, ...]]:
    """The place, and the libraries with arrays there."""
    if request.param == "cpu":
        pytest.importorskip("torch", reason="needs torch")
        pytest.importorskip("jax", reason="needs jax")
        return "cpu", ("torch", "jax")
    found = cuda_libraries("torch", "cupy", "jax", "tensorflow")
    if "torch" not in found:
        pytest.skip("needs torch on a CUDA device, to look at pointers")
    return 0, found


def pairs(libraries: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(source, target) for source in libraries for target in libraries if source != target]


def test_memory_is_shared_where_nobody_is_deceived(libraries: tuple[Any, tuple[str, ...]]) -> None:
    place, names = libraries
    for source, target in pairs(names):
        given = convert_memory(VALUES, "numpy", source, place, copy=True)
        result = convert_memory(given, source, target, place)
        shared = pointer(result, target) == pointer(given, source)
        alike = (source in IMMUTABLE) == (target in IMMUTABLE)
        assert shared == alike, f"{source} to {target}: shared is {shared}"
        plan = plan_conversion(given, target, place)
        assert (plan.route == "zero_copy") == alike
        np.testing.assert_array_equal(convert_memory(result, target, "numpy", "cpu"), VALUES)


def test_copy_false_shares_and_copy_true_does_not(libraries: tuple[Any, tuple[str, ...]]) -> None:
    place, names = libraries
    for source, target in pairs(names):
        given = convert_memory(VALUES, "numpy", source, place, copy=True)
        shared = convert_memory(given, source, target, place, copy=False)
        assert pointer(shared, target) == pointer(given, source), f"{source} to {target}"
        apart = convert_memory(given, source, target, place, copy=True)
        assert pointer(apart, target) != pointer(given, source), f"{source} to {target}"


def test_shared_memory_outlives_the_array_that_lent_it(libraries: tuple[Any, tuple[str, ...]]) -> None:
    place, names = libraries
    for source, target in pairs(names):
        given = convert_memory(VALUES, "numpy", source, place, copy=True)
        shared = convert_memory(given, source, target, place, copy=False)
        del given
        gc.collect()
        # What was freed would be taken by these.
        others = [
            convert_memory(np.full_like(VALUES, -1), "numpy", source, place, copy=True) for _ in range(8)
        ]
        np.testing.assert_array_equal(convert_memory(shared, target, "numpy", "cpu", copy=True), VALUES)
        del others


def test_a_copy_follows_nothing_that_is_written_afterwards(libraries: tuple[Any, tuple[str, ...]]) -> None:
    place, names = libraries
    for source, target in pairs(names):
        if source in IMMUTABLE:
            continue
        given = convert_memory(VALUES, "numpy", source, place, copy=True)
        apart = convert_memory(given, source, target, place, copy=True)
        given[...] = -1
        np.testing.assert_array_equal(convert_memory(apart, target, "numpy", "cpu", copy=True), VALUES)


def test_moving_stays_where_it_is_asked(libraries: tuple[Any, tuple[str, ...]]) -> None:
    place, names = libraries
    for name in names:
        array = convert_memory(VALUES, "numpy", name, place, copy=True)
        assert move_to_device(array, place) is array
        with pytest.raises(DeviceError, match="999"):
            move_to_device(array, 999)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch", "jax", "tensorflow"])
def test_arrays_move_to_host_memory_and_back(name: str) -> None:
    on_cuda(name)
    array = convert_memory(VALUES, "numpy", name, 0)
    host = move_to_device(array, "cpu")
    assert device_of(host) == "cpu"
    back = move_to_device(host, 0)
    assert (device_of(array), device_of(back)) == (0, 0)
    np.testing.assert_array_equal(convert_memory(back, name, "numpy", "cpu"), VALUES)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch", "cupy", "jax", "tensorflow"])
def test_arrays_move_to_another_gpu(name: str) -> None:
    on_cuda(name)
    gpus = [device.gpu_id for device in backend_of(name).devices() if device.kind == "gpu"]
    if len(gpus) < 2:
        pytest.skip("needs two CUDA devices")
    array = convert_memory(VALUES, "numpy", name, gpus[0])
    moved = move_to_device(array, gpus[1])
    assert (device_of(array), device_of(moved)) == (gpus[0], gpus[1])
    np.testing.assert_array_equal(convert_memory(moved, name, "numpy", "cpu"), VALUES)


@pytest.mark.gpu
def test_every_library_names_the_same_physical_device() -> None:
    names = cuda_libraries("torch", "cupy", "jax", "tensorflow")
    addresses = {name: backend_of(name).physical_id(0) for name in names}
    assert None not in addresses.values(), addresses
    assert len(set(addresses.values())) == 1, addresses
