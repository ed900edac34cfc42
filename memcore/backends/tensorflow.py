"""TensorFlow: eager tensors in host or GPU memory, immutable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from memcore.backend import Backend
from memcore.host import ALIGNMENT, address_of, aligned_empty, writable_alias
from memcore.info import DeviceInfo, MemoryHeld
from memcore.memory_type import Array, GpuId, MemoryType


class _Finished:
    """A tensor whose work is done: its `__dlpack__` would refuse the stream that consumers name."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack__(self, **wishes: Any) -> Any:
        return self._tensor.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


class TensorflowBackend(Backend):
    """`tf.Tensor` with values. Symbolic, ragged, sparse and Keras tensors and Variables are refused.

    Where no GPU exists and several logical CPUs are configured, `gpu_id` n is the logical CPU n, and "cpu" is
    the first of them; with one CPU only "cpu" names it.
    """

    memory_type: ClassVar[str] = MemoryType.TENSORFLOW
    noun: ClassVar[str] = "tensor"
    module: ClassVar[str] = "tensorflow"
    install_hint: ClassVar[str] = "pip install 'stackyard[tensorflow]'"
    device_memory: ClassVar[str | None] = "cuda"
    type_roots: ClassVar[tuple[str, ...]] = ("tensorflow", "keras")
    immutable: ClassVar[bool] = True
    imports_in_stream_order: ClassVar[bool] = False
    imports_strides: ClassVar[bool] = False
    keeps_read_only: ClassVar[bool] = True

    def is_array_type(self, cls: type) -> bool:
        tensorflow = sys.modules.get("tensorflow")
        return tensorflow is not None and cls.__name__ == "EagerTensor" and issubclass(cls, tensorflow.Tensor)

    def remedy_for_type(self, cls: type) -> str:
        remedies = {
            "RaggedTensor": "call .to_tensor(default_value) first",
            "SparseTensor": "call tf.sparse.to_dense(tensor) first",
            "SymbolicTensor": "it has no values inside tf.function: convert outside of the traced function",
            "KerasTensor": "it has no values: call the model on data first",
            "IndexedSlices": "call tf.convert_to_tensor(slices) first",
        }
        if cls.__name__.endswith("Variable"):
            return "read its value with .value() or tf.convert_to_tensor(variable)"
        return remedies.get(cls.__name__, "make it a dense eager tensor first, with tf.convert_to_tensor")

    def refusal(self, array: Array) -> str | None:
        dtype = array.dtype
        if dtype.is_quantized:
            return f"quantized tensorflow tensor ({dtype.name}): call tf.quantization.dequantize first"
        if dtype.name in ("string", "variant", "resource"):
            return f"tensorflow tensor of {dtype.name}, which isn't numbers: make it numbers first"
        return None

    def devices(self) -> tuple[DeviceInfo, ...]:
        gpus = self.library.config.list_logical_devices("GPU")
        if gpus:
            found = [DeviceInfo(i, "gpu", d.name, self._address(i)) for i, d in enumerate(gpus)]
        else:
            cpus = self.library.config.list_logical_devices("CPU")
            found = [DeviceInfo(i, "cpu", d.name) for i, d in enumerate(cpus)] if len(cpus) > 1 else []
        return (DeviceInfo("cpu", "cpu", "host memory"), *found)

    def validate_gpu_id(self, gpu_id: object) -> GpuId:
        place = super().validate_gpu_id(gpu_id)
        # Where logical CPUs are configured, host memory is the first of them: one place has one name.
        return 0 if place == "cpu" and self._has_logical_cpus() else place

    def device_of(self, array: Array) -> GpuId:
        # `device` is where the tensor was asked to be; int32 tensors "on" a GPU are kept in host memory.
        _, _, name = array.backing_device.partition("/device:")
        kind, _, index = name.partition(":")
        if kind == "GPU":
            return int(index)
        return int(index) if self._has_logical_cpus() else "cpu"

    def in_host_memory(self, place: GpuId) -> bool:
        return place == "cpu" or not self._has_gpus()

    def move(self, array: Array, gpu_id: GpuId) -> Array:
        with self._on(gpu_id):
            moved = self.library.identity(array)
        if not self.in_host_memory(gpu_id) and "/device:GPU:" not in moved.backing_device:
            raise BufferError(
                f"tensorflow keeps {self.dtype_of(array)} tensors in host memory, on whatever device; "
                "choose another dtype with convert_dtype(array, dtype, rule) first"
            )
        return moved

    def synchronize(self, gpu_id: GpuId) -> None:  # noqa: ARG002  waits for every device
        if self._has_gpus():
            self.library.test.experimental.sync_devices()

    def shape_of(self, array: Array) -> tuple[int, ...]:
        return tuple(array.shape.as_list())

    def dtype_of(self, array: Array) -> str:
        return str(array.dtype.name)

    def host_view(self, array: Array) -> NDArray[Any] | None:
        # `__array__` gives a read-only alias of the tensor's buffer; `numpy()` would copy.
        return self.to_host(array) if "/device:CPU:" in array.backing_device else None

    def to_host(self, array: Array) -> NDArray[Any]:
        # A bfloat16 scalar's `__array__` gives no array.
        return np.asarray(array) if array.shape.rank else np.asarray(array.numpy())

    def lend_obstacle(self, view: NDArray[Any]) -> str | None:
        if not view.flags.c_contiguous or not view.flags.aligned:
            return "tensorflow shares only C-contiguous memory"
        # The import itself takes any address, but the first kernel on it aborts the process ("Check failed:
        # IsAligned()").
        if view.size and address_of(view) % ALIGNMENT:
            return f"tensorflow shares only memory that starts at a multiple of {ALIGNMENT} bytes"
        return None

    def lend(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        tensorflow = self.library
        if not view.size:
            with self._on(gpu_id):
                return tensorflow.constant(view)
        bfloat16 = view.dtype.name == "bfloat16"
        plain = writable_alias(view.view(np.int16) if bfloat16 else view)
        lent = tensorflow.experimental.dlpack.from_dlpack(plain.__dlpack__())
        if bfloat16:
            # NumPy can't export bfloat16; a bitcast shares the buffer.
            lent = tensorflow.bitcast(lent, tensorflow.bfloat16)
        if gpu_id not in ("cpu", 0):
            lent = self.move(lent, gpu_id)
        return lent

    def from_host(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        fresh = aligned_empty(view.shape, view.dtype)
        np.copyto(fresh, view, casting="no")
        if self.in_host_memory(gpu_id):
            return self.lend(fresh, gpu_id)
        return self.move(self.library.constant(fresh), gpu_id)

    def export_device_array(self, array: Array) -> Any:
        self.synchronize(self.device_of(array))
        return _Finished(array)

    def import_device_array(self, array: Any, gpu_id: GpuId) -> Array:  # noqa: ARG002  DLPack keeps the device
        return self.library.experimental.dlpack.from_dlpack(array.__dlpack__())

    def empty(self, shape: tuple[int, ...], dtype: str, gpu_id: GpuId) -> Array:
        with self._on(gpu_id):
            made = self.library.zeros(tuple(shape), self.library.as_dtype(dtype))
        return self._kept_on(made, gpu_id)

    def duplicate(self, array: Array) -> Array:
        view = self.host_view(array)
        if view is not None:
            return self.from_host(view, self.device_of(array))
        place = self.device_of(array)
        with self._on(place):
            copied = self.library.raw_ops.DeepCopy(x=array)
        return self._kept_on(copied, place)

    def stack(self, slices: Sequence[Array], out: Array | None) -> Array:  # noqa: ARG002  immutable
        place = self.device_of(slices[0])
        with self._on(place):
            stacked = self.library.stack(list(slices))
        return self._kept_on(stacked, place)

    def unstack(self, array: Array) -> list[Array]:
        place = self.device_of(array)
        with self._on(place):
            planes = self.library.unstack(array)
        return [self._kept_on(plane, place) for plane in planes]

    def memory_held(self, gpu_id: GpuId) -> MemoryHeld:
        if self.in_host_memory(gpu_id):
            return MemoryHeld(0, 0)
        # The BFC arena never shrinks; what TensorFlow tells is what is in use.
        return MemoryHeld(
            int(self.library.config.experimental.get_memory_info(f"GPU:{gpu_id}")["current"]), 0
        )

    def measure_peak(self, gpu_id: GpuId) -> Callable[[], int | None]:
        if self.in_host_memory(gpu_id):
            return super().measure_peak(gpu_id)
        counters, device = self.library.config.experimental, f"GPU:{gpu_id}"
        counters.reset_memory_stats(device)
        before = int(counters.get_memory_info(device)["current"])
        return lambda: max(0, int(counters.get_memory_info(device)["peak"]) - before)

    def is_oom(self, error: BaseException) -> bool:
        tensorflow = sys.modules.get("tensorflow")
        if tensorflow is not None and type(error) is tensorflow.errors.ResourceExhaustedError:
            return True
        return super().is_oom(error)

    def _has_logical_cpus(self) -> bool:
        return len(self.library.config.list_logical_devices("CPU")) > 1 and not self._has_gpus()

    def _has_gpus(self) -> bool:
        return bool(self.library.config.list_logical_devices("GPU"))

    def _kept_on(self, tensor: Any, gpu_id: GpuId) -> Any:
        """The result of an operation on a device: without a kernel for its dtype there it is on the CPU."""
        return tensor if self.device_of(tensor) == gpu_id else self.move(tensor, gpu_id)

    def _on(self, gpu_id: GpuId) -> Any:
        kind = "CPU" if self.in_host_memory(gpu_id) else "GPU"
        return self.library.device(f"/device:{kind}:{0 if gpu_id == 'cpu' else gpu_id}")

    def _address(self, index: int) -> str | None:
        """PCI address of a logical GPU, from the description that TensorFlow gives of it."""
        from tensorflow.python.client import device_lib

        for device in device_lib.list_local_devices():
            if device.name == f"/device:GPU:{index}":
                _, _, address = device.physical_device_desc.partition("pci bus id: ")
                return address.partition(",")[0].strip().lower().partition(".")[0] or None
        return None
