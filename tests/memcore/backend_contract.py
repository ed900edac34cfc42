"""What every backend must do: subclass `BackendContract` and say how arrays are made and read.

A backend from elsewhere passes the same suite:

    class TestMine(BackendContract):
        backend = MyBackend()      # registered with register_backend
        place = 0                  # a gpu_id that it has

        def make(self, values): ...
        def read(self, array): ...
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from memcore import (
    DeviceError,
    DtypeError,
    StackError,
    convert_dtype,
    convert_memory,
    device_of,
    memory_type_of,
    move_to_device,
    plan_conversion,
    stack_slices,
    unstack_slices,
)
from memcore.backend import Backend
from memcore.host import aligned_empty
from memcore.memory_type import GpuId

# Z, Y and X differ, so that no swap of axes goes unseen.
SHAPE = (2, 3, 5)


def numbers(dtype: str = "uint16", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Distinct values, aligned as a lent buffer must be."""
    values = aligned_empty(shape, dtype)
    values[...] = np.arange(values.size).reshape(shape) % 97
    return values


class BackendContract:
    backend: ClassVar[Backend]
    place: ClassVar[GpuId]
    # Another place of the same library, where the machine has one.
    other_place: ClassVar[GpuId | None] = None
    # On a device, but for some dtypes, which the library has in host memory only (int32 of TensorFlow).
    keeps_some_on_host: ClassVar[bool] = False

    def make(self, values: np.ndarray) -> Any:
        """An array of the library with these values, at `place`, by the library's own means."""
        raise NotImplementedError

    def read(self, array: Any) -> np.ndarray:
        """The values of an array, by the library's own means."""
        raise NotImplementedError

    def assert_same(self, array: Any, values: np.ndarray) -> None:
        found = self.read(array)
        assert found.dtype == values.dtype
        assert found.shape == values.shape
        np.testing.assert_array_equal(found, values)

    def uploaded(self, values: np.ndarray) -> Any:
        """The values at `place`; None if the library says that it keeps the dtype in host memory."""
        try:
            return self.backend.from_host(values, self.place)
        except BufferError as error:
            if self.keeps_some_on_host and f"keeps {values.dtype.name} tensors in host memory" in str(error):
                return None
            raise

    # Detection and description

    def test_an_array_is_detected_and_described(self) -> None:
        array = self.make(numbers())
        assert memory_type_of(array) == self.backend.memory_type
        info = self.backend.describe(array)
        assert (info.memory_type, info.shape, info.dtype) == (self.backend.memory_type, SHAPE, "uint16")
        assert info.device == device_of(array) == self.place
        assert info.nbytes == 60

    def test_every_dtype_that_it_claims_survives_a_round_trip(self) -> None:
        refused = []
        for dtype in sorted(self.backend.dtypes - {"bfloat16"}):
            if self.backend.dtype_refusal(dtype) is not None:
                refused.append(dtype)
                continue
            values = numbers(dtype) if dtype != "bool" else numbers() % 2 == 0
            array = self.uploaded(values)
            if array is None:
                refused.append(dtype)
                continue
            assert self.backend.dtype_of(array) == dtype
            self.assert_same(array, values)
            back = convert_memory(array, self.backend.memory_type, "numpy", "cpu")
            assert back.dtype == values.dtype
            np.testing.assert_array_equal(back, values)
        assert "uint16" not in refused
        assert "float32" not in refused

    # Devices

    def test_it_lists_the_place_it_is_tested_on(self) -> None:
        assert self.place in [device.gpu_id for device in self.backend.devices()]

    @pytest.mark.parametrize("gpu_id", [None, True, False, -1, 999, "gpu", 0.0, "0"])
    def test_a_device_that_is_not_there_is_refused(self, gpu_id: object) -> None:
        with pytest.raises(DeviceError, match=r"999|gpu_id must be"):
            self.backend.validate_gpu_id(gpu_id)

    def test_host_memory_is_a_place_only_where_arrays_live_there(self) -> None:
        if self.backend.host_memory:
            assert self.backend.in_host_memory(self.backend.validate_gpu_id("cpu"))
        else:
            with pytest.raises(DeviceError, match="host memory"):
                self.backend.validate_gpu_id("cpu")

    def test_a_move_keeps_the_values_and_lands_where_asked(self) -> None:
        array = self.make(numbers())
        if self.other_place is None:
            with pytest.raises(DeviceError, match="999"):
                move_to_device(array, 999)
            return
        moved = move_to_device(array, self.other_place)
        assert device_of(moved) == self.other_place
        assert device_of(array) == self.place
        self.assert_same(moved, numbers())

    def test_synchronize_returns(self) -> None:
        array = self.make(numbers())
        self.backend.synchronize(self.place)
        self.assert_same(array, numbers())

    # Exchange with host memory

    def test_from_host_keeps_nothing_of_its_source(self) -> None:
        values = numbers()
        array = self.backend.from_host(values, self.place)
        values[...] = 0
        self.assert_same(array, numbers())

    def test_from_host_takes_any_strides(self) -> None:
        values = numbers(shape=(4, 3, 10))[::-2, :, ::-2]
        self.assert_same(self.backend.from_host(values, self.place), values.copy())

    def test_to_host_gives_the_values(self) -> None:
        host = self.backend.to_host(self.make(numbers()))
        assert type(host) is np.ndarray
        np.testing.assert_array_equal(host, numbers())

    def test_what_it_borrows_it_shares(self) -> None:
        values = numbers()
        obstacle = self.backend.lend_obstacle(values)
        if not self.backend.host_memory:
            assert obstacle is not None
            return
        assert obstacle is None
        place = self.place if self.backend.in_host_memory(self.place) else "cpu"
        array = self.backend.lend(values, place)
        values[1, 2, 3] = 60_000
        assert self.read(array)[1, 2, 3] == 60_000

    def test_a_view_of_an_immutable_array_is_read_only(self) -> None:
        array = self.make(numbers())
        view = self.backend.host_view(array)
        assert (view is None) == (not self.backend.in_host_memory(self.place))
        if view is not None:
            assert view.flags.writeable == (not self.backend.immutable)

    # Allocation and copies

    def test_empty_has_the_form_asked_for(self) -> None:
        array = self.backend.empty(SHAPE, "float32", self.place)
        assert self.backend.describe(array).shape == SHAPE
        assert self.backend.dtype_of(array) == "float32"
        assert device_of(array) == self.place

    def test_a_duplicate_shares_nothing(self) -> None:
        array = self.make(numbers())
        twin = self.backend.duplicate(array)
        assert device_of(twin) == self.place
        if not self.backend.immutable:
            self.backend.write_host(array, np.zeros_like(numbers()))
        self.assert_same(twin, numbers())
        first, second = self.backend.host_view(array), self.backend.host_view(twin)
        assert first is None or not np.shares_memory(first, second)

    def test_copy_into_overwrites_only_what_fits(self) -> None:
        destination, source = self.backend.empty(SHAPE, "uint16", self.place), self.make(numbers())
        if self.backend.immutable:
            with pytest.raises(StackError, match="immutable"):
                self.backend.copy_into(destination, source)
            return
        self.backend.copy_into(destination, source)
        self.assert_same(destination, numbers())
        with pytest.raises(StackError, match="nothing is broadcast"):
            self.backend.copy_into(destination, self.make(numbers(shape=(1, 3, 5))))
        with pytest.raises(DtypeError, match="convert_dtype"):
            self.backend.copy_into(destination, self.make(numbers("float32")))

    def test_a_reused_destination_is_filled_with_host_memory(self) -> None:
        array = self.backend.empty(SHAPE, "uint16", self.place)
        source = numbers()
        if self.backend.immutable:
            with pytest.raises(StackError, match="leave out=None"):
                stack_slices(list(source), self.backend.memory_type, self.place, out=array)
            return
        assert stack_slices(list(source), self.backend.memory_type, self.place, out=array) is array
        source[...] = 0
        self.assert_same(array, numbers())

    @pytest.mark.parametrize("dtype", ["int32", "uint32"])
    def test_integers_beyond_float32_survive_every_copy(self, dtype: str) -> None:
        if self.backend.dtype_refusal(dtype) is not None:
            pytest.skip(f"{self.backend.memory_type} has no {dtype} here")
        limits = np.iinfo(dtype)
        values = np.array([2**24 + 1, 2**31 - 1, limits.max, limits.max - 2, limits.min, 5], dtype)
        values = np.resize(values, SHAPE[::-1])  # 5 planes: each begins with another value
        array = self.uploaded(values)
        if array is None:
            pytest.skip(f"{self.backend.memory_type} keeps {dtype} in host memory")
        self.assert_same(self.backend.duplicate(array), values)
        slices = self.backend.unstack(array)
        for found, plane in zip(slices, values, strict=True):
            self.assert_same(found, plane)
        self.assert_same(self.backend.stack(slices, None), values)
        if not self.backend.immutable:
            out = self.backend.empty(values.shape, dtype, self.place)
            self.backend.copy_into(out, array)
            self.assert_same(out, values)

    # Through the public functions

    def test_it_stacks_and_unstacks(self) -> None:
        planes = [self.make(np.ascontiguousarray(plane)) for plane in numbers()]
        stack = stack_slices(planes, self.backend.memory_type, self.place)
        self.assert_same(stack, numbers())
        slices = unstack_slices(stack, self.backend.memory_type, self.place)
        assert len(slices) == 2
        for found, plane in zip(slices, numbers(), strict=True):
            self.assert_same(found, plane)

    def test_it_stacks_numpy_slices(self) -> None:
        stack = stack_slices(list(numbers()), self.backend.memory_type, self.place)
        assert device_of(stack) == self.place
        self.assert_same(stack, numbers())

    def test_it_converts_both_ways(self) -> None:
        name = self.backend.memory_type
        array = convert_memory(numbers(), "numpy", name, self.place)
        self.assert_same(array, numbers())
        back = convert_memory(array, name, "numpy", "cpu", copy=True)
        np.testing.assert_array_equal(back, numbers())
        assert plan_conversion(array, name, self.place).route == "identity"
        assert convert_memory(array, name, name, self.place) is array

    def test_dtype_rules_give_the_same_as_on_numpy(self) -> None:
        wide = np.array([[[0, 1, 255, 256, 65535]]], "uint16")
        real = np.array([[[0.0, 0.5, 0.25, 1.0, 2.5]]], "float32")
        for values, dtype, rule in [
            (wide, "uint8", "saturate"),
            (wide, "uint8", "rescale"),
            (wide, "float32", "exact"),
            (wide, "float32", "rescale"),
            (real, "uint8", "saturate"),
            (real[..., :4], "uint16", "rescale"),
        ]:
            found = convert_dtype(self.make(values), dtype, rule)  # type: ignore[arg-type]
            assert device_of(found) == self.place
            self.assert_same(found, convert_dtype(values, dtype, rule))  # type: ignore[arg-type]

    # Memory

    def test_reclaimable_memory_is_part_of_what_is_held(self) -> None:
        kept = self.make(numbers())
        held = self.backend.memory_held(self.place)
        assert 0 <= held.reclaimable <= held.held
        assert self.backend.drain(self.place) >= 0
        self.assert_same(kept, numbers())

    def test_a_peak_counts_what_was_made_meanwhile_or_is_unknown(self) -> None:
        before = self.make(numbers())
        ended = self.backend.measure_peak(self.place)
        made = [self.make(numbers()) for _ in range(2)]
        del made
        peak = ended()
        assert peak is None or peak >= 120
        self.assert_same(before, numbers())

    def test_only_running_out_of_memory_counts_as_that(self) -> None:
        assert self.backend.is_oom(MemoryError())
        assert not self.backend.is_oom(RuntimeError("out of memory"))
        assert not self.backend.is_oom(ValueError("RESOURCE_EXHAUSTED"))
