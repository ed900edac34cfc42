"""Routes and aliasing: what is shared, copied or refused, and that the plan says so beforehand."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcore import (
    BackendUnavailableError,
    DtypeError,
    HostBlock,
    HostBuffer,
    MemoryConversionError,
    OutOfDeviceMemoryError,
    UnknownMemoryTypeError,
    aligned_empty,
    conversion_counters,
    convert_memory,
    memory_type_of,
    plan_conversion,
)
from memcore.backend import Backend
from memcore.registry import backend_of
from memcore.routes import Route, _choose_between_devices

torch = pytest.importorskip("torch", reason="needs torch")
jax = pytest.importorskip("jax", reason="needs jax")
tf = pytest.importorskip("tensorflow", reason="needs tensorflow")
cle = pytest.importorskip("pyclesperanto", reason="needs pyclesperanto")

PLACES: dict[str, Any] = dict.fromkeys(("numpy", "torch", "tensorflow", "jax"), "cpu") | {"pyclesperanto": 0}
SHAPE = (3, 4, 5)
NBYTES = 120


def ramp() -> np.ndarray:
    """Aligned, writable, C-contiguous: what every library in host memory could share."""
    array = aligned_empty(SHAPE, np.uint16)
    array[...] = np.arange(60).reshape(SHAPE)
    return array


def converted(target: str) -> Any:
    return convert_memory(ramp(), "numpy", target, PLACES[target])


def frozen() -> np.ndarray:
    buffer = HostBuffer(HostBlock(NBYTES), frozen=True)
    view = buffer.array(SHAPE, np.uint16)
    writable = HostBuffer(buffer.block).array(SHAPE, np.uint16)
    writable[...] = ramp()
    return view


# Source, target -> route with copy=None, bytes copied, for arrays in aligned C order.
ROUTES = {
    ("numpy", "torch"): (Route.ZERO_COPY, 0),
    ("numpy", "tensorflow"): (Route.DEVICE_COPY, NBYTES),
    ("numpy", "jax"): (Route.DEVICE_COPY, NBYTES),
    ("numpy", "pyclesperanto"): (Route.DEVICE_COPY, NBYTES),
    ("torch", "numpy"): (Route.ZERO_COPY, 0),
    ("torch", "tensorflow"): (Route.DEVICE_COPY, NBYTES),
    ("torch", "jax"): (Route.DEVICE_COPY, NBYTES),
    ("torch", "pyclesperanto"): (Route.DEVICE_COPY, NBYTES),
    ("tensorflow", "numpy"): (Route.ZERO_COPY, 0),
    ("tensorflow", "torch"): (Route.DEVICE_COPY, NBYTES),
    ("tensorflow", "jax"): (Route.ZERO_COPY, 0),
    ("tensorflow", "pyclesperanto"): (Route.DEVICE_COPY, NBYTES),
    ("jax", "numpy"): (Route.ZERO_COPY, 0),
    ("jax", "torch"): (Route.DEVICE_COPY, NBYTES),
    ("jax", "tensorflow"): (Route.ZERO_COPY, 0),
    ("jax", "pyclesperanto"): (Route.DEVICE_COPY, NBYTES),
    ("pyclesperanto", "numpy"): (Route.HOST_ROUND_TRIP, NBYTES),
    ("pyclesperanto", "torch"): (Route.HOST_ROUND_TRIP, NBYTES),
    ("pyclesperanto", "tensorflow"): (Route.HOST_ROUND_TRIP, 2 * NBYTES),
    ("pyclesperanto", "jax"): (Route.HOST_ROUND_TRIP, 2 * NBYTES),
}


@pytest.mark.parametrize(("source", "target"), ROUTES, ids="->".join)
def test_the_plan_names_the_route_and_its_bytes(source: str, target: str) -> None:
    array = converted(source)
    plan = plan_conversion(array, target, PLACES[target])
    assert (plan.route, plan.bytes_copied) == ROUTES[source, target]
    assert plan.hops[0].startswith(source)
    assert plan.hops[-1].startswith(target)
    assert plan.reason
    result = convert_memory(array, source, target, PLACES[target])
    assert memory_type_of(result) == target
    back = convert_memory(result, target, "numpy", "cpu")
    np.testing.assert_array_equal(back, ramp())


@pytest.mark.parametrize("name", PLACES)
def test_an_array_that_is_there_already_is_itself(name: str) -> None:
    array = converted(name)
    plan = plan_conversion(array, name, PLACES[name])
    assert (plan.route, plan.bytes_copied, len(plan.hops)) == (Route.IDENTITY, 0, 1)
    assert convert_memory(array, name, name, PLACES[name]) is array


@pytest.mark.parametrize("name", PLACES)
def test_copy_true_never_shares_with_itself(name: str) -> None:
    array = converted(name)
    twin = convert_memory(array, name, name, PLACES[name], copy=True)
    assert twin is not array
    views = [backend_of(name).host_view(a) for a in (array, twin)]
    assert views[0] is None or not np.shares_memory(*views)
    np.testing.assert_array_equal(backend_of(name).to_host(twin), ramp())


@pytest.mark.parametrize("wish", [np.True_, 1])
def test_copy_is_any_truth_value(wish: Any) -> None:
    values = ramp()
    assert not np.shares_memory(values, convert_memory(values, "numpy", "numpy", 0, copy=wish))
    with pytest.raises(MemoryConversionError, match="needs a copy"):
        convert_memory(values[::-1], "numpy", "torch", "cpu", copy=np.False_)  # type: ignore[arg-type]


def test_the_host_copy_that_jax_keeps_of_a_device_array_is_not_lent_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = backend_of("jax")
    array = convert_memory(ramp(), "numpy", "jax", "cpu")
    # As on a GPU: NumPy can't look at it, and np.asarray gives the copy that the array keeps.
    monkeypatch.setattr(type(backend), "host_view", lambda self, array: None)
    monkeypatch.setattr(type(backend), "in_host_memory", lambda self, place: False)
    assert plan_conversion(array, "torch", "cpu").bytes_copied == 2 * NBYTES
    convert_memory(array, "jax", "torch", "cpu").fill_(0)
    np.testing.assert_array_equal(np.asarray(array), ramp())


@pytest.mark.parametrize("target", ["torch", "tensorflow", "jax"])
def test_copy_true_never_shares_host_memory(target: str) -> None:
    for source in (ramp(), frozen()):
        result = convert_memory(source, "numpy", target, "cpu", copy=True)
        assert not np.shares_memory(source, backend_of(target).host_view(result))


@pytest.mark.parametrize("target", ["torch", "tensorflow", "jax"])
def test_copy_false_shares_what_it_is_told_to(target: str) -> None:
    source = ramp()
    result = convert_memory(source, "numpy", target, "cpu", copy=False)
    assert np.shares_memory(source, backend_of(target).host_view(result))
    read_only = ramp()
    read_only.flags.writeable = False
    result = convert_memory(read_only, "numpy", target, "cpu", copy=False)
    assert np.shares_memory(read_only, backend_of(target).host_view(result))


def test_a_mutable_buffer_is_not_lent_to_a_library_of_immutable_arrays() -> None:
    for target in ("tensorflow", "jax"):
        source = ramp()
        result = convert_memory(source, "numpy", target, "cpu")
        source[...] = 0
        np.testing.assert_array_equal(backend_of(target).to_host(result), ramp())


def test_a_read_only_view_of_a_writable_array_is_not_lent_to_them_either() -> None:
    source = ramp()
    view = source.view()
    view.flags.writeable = False
    result = convert_memory(view, "numpy", "jax", "cpu")
    source[...] = 0
    np.testing.assert_array_equal(np.asarray(result), ramp())


def test_a_read_only_array_is_not_lent_to_torch() -> None:
    source = ramp()
    source.flags.writeable = False
    convert_memory(source, "numpy", "torch", "cpu").zero_()
    np.testing.assert_array_equal(source, ramp())


def test_an_immutable_array_is_not_lent_to_torch_but_is_to_numpy_read_only() -> None:
    for name in ("jax", "tensorflow"):
        array = converted(name)
        convert_memory(array, name, "torch", "cpu").zero_()
        np.testing.assert_array_equal(backend_of(name).to_host(array), ramp())
        view = convert_memory(array, name, "numpy", "cpu")
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True


@pytest.mark.parametrize("target", ["tensorflow", "jax"])
def test_a_frozen_buffer_is_lent_without_a_copy(target: str) -> None:
    source = frozen()
    assert plan_conversion(source, target, "cpu").route == Route.ZERO_COPY
    result = convert_memory(source, "numpy", target, "cpu")
    assert np.shares_memory(source, backend_of(target).host_view(result))


def test_a_numpy_view_of_a_jax_array_goes_back_without_a_copy() -> None:
    view = convert_memory(converted("jax"), "jax", "numpy", "cpu")
    assert plan_conversion(view, "tensorflow", "cpu").route == Route.ZERO_COPY


def test_copy_false_refuses_what_needs_a_copy() -> None:
    unaligned = aligned_empty((61,), np.uint16)[1:].reshape(SHAPE)
    for source, target in [(unaligned, "jax"), (unaligned, "tensorflow"), (ramp()[::-1], "torch")]:
        with pytest.raises(MemoryConversionError, match="pass copy=None"):
            convert_memory(source, "numpy", target, "cpu", copy=False)
    with pytest.raises(MemoryConversionError, match="pass copy=None"):
        convert_memory(ramp(), "numpy", "pyclesperanto", 0, copy=False)


@pytest.mark.parametrize("target", ["numpy", "torch", "jax", "tensorflow"])
def test_allow_host_false_refuses_to_read_device_memory(target: str) -> None:
    array = converted("pyclesperanto")
    with pytest.raises(MemoryConversionError, match="allow_host=True"):
        convert_memory(array, "pyclesperanto", target, "cpu", allow_host=False)
    with pytest.raises(MemoryConversionError, match="allow_host=True"):
        plan_conversion(array, target, "cpu", allow_host=False)
    assert convert_memory(array, "pyclesperanto", "pyclesperanto", 0, allow_host=False) is array
    host = convert_memory(ramp(), "numpy", "pyclesperanto", 0, allow_host=False)
    assert memory_type_of(host) == "pyclesperanto"


def test_the_declared_source_is_checked_not_believed() -> None:
    with pytest.raises(MemoryConversionError, match="pass source_type='numpy'"):
        convert_memory(ramp(), "torch", "jax", "cpu")


def test_an_unknown_memory_type_is_named() -> None:
    with pytest.raises(UnknownMemoryTypeError, match="mxnet"):
        convert_memory(ramp(), "numpy", "mxnet", 0)


def test_a_library_that_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(backend_of("cupy"), "_library", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'stackyard\[cupy-cuda13\]'"):
        convert_memory(ramp(), "numpy", "cupy", 0)


def test_a_memory_map_is_shared_with_torch_and_its_file_changes(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "stack.raw", np.uint16, "w+", shape=SHAPE)
    mapped[...] = ramp()
    tensor = convert_memory(mapped, "numpy", "torch", "cpu")
    tensor[0, 0, 0] = 999
    assert mapped[0, 0, 0] == 999
    read_only = np.memmap(tmp_path / "stack.raw", np.uint16, "r", shape=SHAPE)
    result = convert_memory(read_only, "numpy", "jax", "cpu")
    np.testing.assert_array_equal(np.asarray(result), mapped)


def test_references_are_not_copied_as_values() -> None:
    things = np.array([{"a": 1}, None], object)
    assert convert_memory(things, "numpy", "numpy", 0) is things
    with pytest.raises(DtypeError, match="references"):
        convert_memory(things, "numpy", "numpy", 0, copy=True)
    with pytest.raises(DtypeError, match="references"):
        aligned_empty((2,), [("x", "f4"), ("thing", "O")])
    with pytest.raises(MemoryConversionError, match="choose a dtype"):
        convert_memory(things, "numpy", "torch", "cpu")


def test_records_keep_their_fields_within_numpy_and_go_nowhere_else() -> None:
    records = np.zeros(3, [("x", "f4"), ("y", "u2")])
    twin = convert_memory(records, "numpy", "numpy", 0, copy=True)
    assert twin.dtype == records.dtype
    with pytest.raises(MemoryConversionError, match="choose a dtype"):
        convert_memory(records, "numpy", "jax", "cpu")


def test_a_result_outlives_the_array_it_shares_memory_with() -> None:
    tensor = convert_memory(ramp(), "numpy", "torch", "cpu")
    np.testing.assert_array_equal(tensor.numpy(), ramp())
    shared = convert_memory(frozen(), "numpy", "jax", "cpu")
    np.testing.assert_array_equal(np.asarray(shared), ramp())


class Exhausted(Exception):
    """What a pretended library raises when it has no room."""


def test_running_out_of_memory_has_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of("pyclesperanto")

    def full(*asked: Any) -> Any:
        raise Exhausted("no room")

    monkeypatch.setattr(backend, "from_host", full)
    with pytest.raises(MemoryConversionError, match="Exhausted: no room"):
        convert_memory(ramp(), "numpy", "pyclesperanto", 0)
    monkeypatch.setattr(backend, "is_oom", lambda error: type(error) is Exhausted)
    with pytest.raises(OutOfDeviceMemoryError, match="120 bytes") as caught:
        convert_memory(ramp(), "numpy", "pyclesperanto", 0)
    assert caught.value.requested == NBYTES
    assert type(caught.value.__cause__) is Exhausted


def test_opencl_out_of_memory_is_known_by_its_code() -> None:
    backend = backend_of("pyclesperanto")
    with pytest.raises(RuntimeError) as caught:
        cle.create((64, 1 << 14, 1 << 14), dtype=np.float32)
    assert backend.is_oom(caught.value)


def test_torch_out_of_host_memory_is_known_by_its_allocator() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 46)
    assert backend_of("torch").is_oom(caught.value)
    assert not backend_of("torch").is_oom(RuntimeError("CUDA error: an illegal memory access"))


def test_xla_out_of_memory_is_known_by_its_status() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.numpy.ones(1 << 42).block_until_ready()
    assert backend_of("jax").is_oom(caught.value)
    assert not backend_of("jax").is_oom(jax.errors.JaxRuntimeError("INVALID_ARGUMENT: out of memory"))


def test_tensorflow_out_of_memory_is_known_by_its_type() -> None:
    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
    assert backend_of("tensorflow").is_oom(error)
    assert not backend_of("tensorflow").is_oom(tf.errors.InternalError(None, None, "OOM"))


def test_counters_are_off_until_asked_and_count_every_thread() -> None:
    conversion_counters.reset()
    source = ramp()
    convert_memory(source, "numpy", "torch", "cpu")
    assert conversion_counters.snapshot() == {}
    conversion_counters.enable()
    try:
        threads = [
            threading.Thread(target=convert_memory, args=(source, "numpy", "jax", "cpu")) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        conversion_counters.disable()
    count = conversion_counters.snapshot()["numpy", "jax", "device_copy"]
    assert (count.conversions, count.bytes_copied) == (8, 8 * NBYTES)
    assert count.seconds > 0
    conversion_counters.reset()


class Pretended(Backend):
    """A library in CUDA memory, as far as the choice of a route asks."""

    host_memory = False
    device_memory = "cuda"

    def __init__(self, name: str, addresses: dict[Any, str | None], immutable: bool = False) -> None:
        self.memory_type = name  # type: ignore[misc]
        self.addresses = addresses
        self.immutable = immutable  # type: ignore[misc]

    def physical_id(self, place: Any) -> str | None:
        return self.addresses.get(place)


Pretended.__abstractmethods__ = frozenset()
ONE, TWO = "0000:01:00", "0000:02:00"


@pytest.mark.parametrize(
    ("source", "target", "copy", "route", "through_host"),
    [
        (Pretended("a", {0: ONE}), Pretended("b", {0: ONE}), None, Route.ZERO_COPY, False),
        (Pretended("a", {0: ONE}), Pretended("b", {0: ONE}), True, Route.DEVICE_COPY, False),
        (Pretended("a", {0: ONE}), Pretended("b", {0: ONE}, True), None, Route.DEVICE_COPY, False),
        (Pretended("a", {0: ONE}), Pretended("b", {0: ONE}, True), False, Route.ZERO_COPY, False),
        (Pretended("a", {0: ONE}, True), Pretended("b", {0: ONE}), None, Route.DEVICE_COPY, False),
        (Pretended("a", {0: ONE}, True), Pretended("b", {0: ONE}, True), None, Route.ZERO_COPY, False),
        # The same number names another physical device: never share, never trust the number.
        (Pretended("a", {0: ONE}), Pretended("b", {0: TWO}), None, Route.HOST_ROUND_TRIP, True),
        (Pretended("a", {0: ONE}), Pretended("b", {0: None}), None, Route.HOST_ROUND_TRIP, True),
    ],
)
def test_device_memory_is_shared_only_on_one_physical_device(
    source: Backend, target: Backend, copy: bool | None, route: Route, through_host: bool
) -> None:
    way, reason = _choose_between_devices(source, target, 0, 0, copy)
    assert (way.route, way.through_host) == (route, through_host)
    assert reason


class Recording(Pretended):
    """Notes what the exchange of device memory does, in order."""

    imports_in_stream_order = True

    def __init__(self, name: str, notes: list[str]) -> None:
        super().__init__(name, {0: ONE})
        self.notes = notes

    def device_of(self, array: Any) -> Any:
        return 0

    def synchronize(self, gpu_id: Any) -> None:
        self.notes.append(f"{self.memory_type} waits for {gpu_id}")

    def duplicate(self, array: Any) -> Any:
        self.notes.append(f"{self.memory_type} copies")
        return array

    def export_device_array(self, array: Any) -> Any:
        self.notes.append(f"{self.memory_type} exports")
        return array

    def import_device_array(self, array: Any, gpu_id: Any) -> Any:
        self.notes.append(f"{self.memory_type} imports on {gpu_id}")
        return array


def test_a_library_without_streams_gets_finished_memory() -> None:
    notes: list[str] = []
    source, target = Recording("a", notes), Recording("b", notes)
    way, _ = _choose_between_devices(source, target, 0, 0, None)
    way.perform(object(), source, target, 0)
    assert notes == ["a exports", "b imports on 0"]
    notes.clear()
    target.imports_in_stream_order = False  # type: ignore[misc]
    way.perform(object(), source, target, 0)
    assert notes == ["a waits for 0", "a exports", "b imports on 0"]


def test_a_copy_of_borrowed_memory_is_done_before_the_owner_may_write_again() -> None:
    notes: list[str] = []
    source, target = Recording("a", notes), Recording("b", notes)
    way, _ = _choose_between_devices(source, target, 0, 0, True)
    way.perform(object(), source, target, 0)
    assert notes == ["a exports", "b imports on 0", "b copies", "b waits for 0"]


def test_tensorflow_memory_goes_to_consumers_that_name_a_stream() -> None:
    # tf.Tensor.__dlpack__ refuses any stream, and every CUDA consumer names its own.
    tensor = converted("tensorflow")
    exported = backend_of("tensorflow").export_device_array(tensor)
    capsule = exported.__dlpack__(stream=1, max_version=(1, 0))
    np.testing.assert_array_equal(torch.utils.dlpack.from_dlpack(capsule).numpy(), ramp())
    assert exported.__dlpack_device__() == (1, 0)


def test_tensorflow_results_that_fell_back_to_the_cpu_return_to_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # DeepCopy and others have GPU kernels for few dtypes; soft placement runs them on the CPU instead.
    backend = backend_of("tensorflow")
    planes = [tf.ones((2, 3), tf.uint16), tf.ones((2, 3), tf.uint16)]
    here = {id(plane) for plane in planes}
    moved: list[Any] = []
    monkeypatch.setattr(type(backend), "device_of", lambda self, t: 0 if id(t) in here else "cpu")
    monkeypatch.setattr(type(backend), "host_view", lambda self, t: None)
    monkeypatch.setattr(type(backend), "move", lambda self, t, place: moved.append((t.shape, place)))
    backend.empty((4,), "uint16", 0)
    backend.duplicate(planes[0])
    backend.stack(planes, None)
    backend.unstack(planes[0])
    assert moved == [((4,), 0), ((2, 3), 0), ((2, 2, 3), 0), ((3,), 0), ((3,), 0)]


def test_another_device_of_both_libraries_is_one_move_away() -> None:
    both = {0: ONE, 1: TWO}
    way, _ = _choose_between_devices(Pretended("a", both), Pretended("b", both), 0, 1, None)
    assert (way.route, way.copies, way.through_host) == (Route.DEVICE_COPY, 1, False)
