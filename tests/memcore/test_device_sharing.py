"""What device memory that isn't as it looks goes through: torch's host tensors, treated as a device's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from memcore.backend import Backend
from memcore.routes import Route, choose_way

torch = pytest.importorskip("torch", reason="needs torch")

from memcore.backends.torch import TorchBackend  # noqa: E402  after the check that torch is there


class OnDevice:
    """Mixed into a backend: its host arrays count as memory of device 0, at one address for all."""

    def device_of(self, array: Any) -> int:
        return 0

    def in_host_memory(self, place: Any) -> bool:
        return False

    def physical_id(self, place: Any) -> str:
        return "0000:01:00"

    def synchronize(self, gpu_id: Any) -> None:
        pass


class TorchOnDevice(OnDevice, TorchBackend):
    """Notes on which device it is while it exports."""

    def __init__(self) -> None:
        super().__init__()
        self.entered_on: list[Any] = []
        self.exported_on: list[Any] = []

    @contextmanager
    def entered(self, place: Any) -> Any:
        self.entered_on.append(place)
        yield
        self.entered_on.pop()

    def export_device_array(self, array: Any) -> Any:
        self.exported_on = list(self.entered_on)
        return array

    def import_device_array(self, array: Any, gpu_id: Any) -> Any:
        return torch.from_dlpack(array)


def jax_on_device() -> Backend:
    jax = pytest.importorskip("jax", reason="needs jax")
    from memcore.backends.jax import JaxBackend

    class JaxOnDevice(OnDevice, JaxBackend):
        def import_device_array(self, array: Any, gpu_id: Any) -> Any:
            return jax.numpy.from_dlpack(array)

        def duplicate(self, array: Any) -> Any:
            return jax.numpy.array(array, copy=True)

    return JaxOnDevice()


def tensorflow_on_device() -> Backend:
    tensorflow = pytest.importorskip("tensorflow", reason="needs tensorflow")
    from memcore.backends.tensorflow import TensorflowBackend

    class TensorflowOnDevice(OnDevice, TensorflowBackend):
        def duplicate(self, array: Any) -> Any:
            return tensorflow.identity(array)

    return TensorflowOnDevice()


def converted(tensor: Any, target: Backend, copy: bool | None = None) -> tuple[Route, int, Any]:
    source = TorchOnDevice()
    way, subject, _ = choose_way(tensor, source, target, 0, copy)
    return way.route, way.copies, way.perform(subject, source, target, 0)


# torch exports a negative view without its sign, and refuses to export a conjugate one
LAZY = [
    lambda: torch.complex(torch.ones(2, 3), torch.full((2, 3), 5.0)).conj().imag,
    lambda: torch.complex(torch.ones(2, 3), torch.full((2, 3), 5.0)).conj(),
]


@pytest.mark.parametrize("make", LAZY, ids=["negative", "conjugate"])
def test_lazy_values_are_carried_out_before_another_library_sees_them(make: Any) -> None:
    tensor = make()
    assert tensor.is_neg() or tensor.is_conj()
    route, copies, result = converted(tensor, TorchOnDevice())
    assert (route, copies) == (Route.DEVICE_COPY, 2)
    np.testing.assert_array_equal(result.numpy(), tensor.resolve_conj().resolve_neg().numpy())


@pytest.mark.parametrize("target", [jax_on_device, tensorflow_on_device])
@pytest.mark.parametrize("copy", [None, True])
def test_libraries_of_compact_arrays_get_strided_memory_packed(target: Any, copy: bool | None) -> None:
    for tensor in (torch.arange(48.0).reshape(6, 8)[::2, ::2], torch.arange(12.0).reshape(3, 4).T):
        route, copies, result = converted(tensor, target(), copy)
        assert (route, copies) == (Route.DEVICE_COPY, 2)
        np.testing.assert_array_equal(np.asarray(result), tensor.numpy())


def test_a_library_of_views_gets_strided_memory_as_it_is() -> None:
    tensor = torch.arange(48.0).reshape(6, 8)[::2, ::2]
    route, _, result = converted(tensor, TorchOnDevice())
    assert route is Route.ZERO_COPY
    assert result.data_ptr() == tensor.data_ptr()
    assert result.stride() == tensor.stride()


@pytest.mark.parametrize("target", [jax_on_device, tensorflow_on_device])
def test_copy_false_says_that_strided_memory_needs_a_copy(target: Any) -> None:
    way, _, reason = choose_way(torch.ones(6, 8)[::2], TorchOnDevice(), target(), 0, False)
    assert (way.copies, reason) == (2, "it isn't C-contiguous")


def test_memory_is_exported_with_its_own_device_current() -> None:
    # torch refuses a tensor of another device than the current one.
    source = TorchOnDevice()
    tensor = torch.ones(2, 3)
    way, subject, _ = choose_way(tensor, source, TorchOnDevice(), 0, None)
    way.perform(subject, source, TorchOnDevice(), 0)
    assert source.exported_on == [0]
