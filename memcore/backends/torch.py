"""PyTorch: host and CUDA memory, mutable, no read-only flag."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from memcore.backend import Backend, numpy_dtype
from memcore.backends.cuda_address import pci_address
from memcore.errors import DeviceError
from memcore.host import aligned_empty, writable_alias
from memcore.info import DeviceInfo, MemoryHeld
from memcore.memory_type import Array, GpuId, MemoryType

CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
# CUDA's libraries take their handles and work areas from the driver, beside torch's allocator.
SIGNED_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
)


class TorchBackend(Backend):
    """Dense `torch.Tensor`; not subclasses (Parameter), sparse, quantized, nested, meta or fake tensors.

    Gradients stay within torch: a tensor that requires them is the same tensor, or moves between torch
    devices, but goes to no other library before `.detach()`. Lazy conjugation and negation are carried out by
    the copy.
    """

    memory_type: ClassVar[str] = MemoryType.TORCH
    noun: ClassVar[str] = "tensor"
    module: ClassVar[str] = "torch"
    install_hint: ClassVar[str] = "pip install 'stackyard[torch]'"
    device_memory: ClassVar[str | None] = "cuda"
    type_roots: ClassVar[tuple[str, ...]] = ("torch",)

    def is_array_type(self, cls: type) -> bool:
        return cls is getattr(sys.modules.get("torch"), "Tensor", None)

    def remedy_for_type(self, cls: type) -> str:
        if cls.__name__ in ("Parameter", "Buffer"):
            return "take its values with .detach()"
        if cls.__name__ == "FakeTensor":
            return "leave the fake tensor mode: it has no values"
        if cls.__name__ == "MaskedTensor":
            return "decide what masked values become with .to_tensor(value)"
        return "take a plain tensor with .as_subclass(torch.Tensor).detach() if the values are all it means"

    def refusal(self, array: Array) -> str | None:
        if array.is_quantized:
            return "quantized torch tensor: call .dequantize() first"
        if array.is_nested:
            return "nested torch tensor: call .to_padded_tensor(padding) first"
        if array.layout is not self.library.strided:
            return f"sparse torch tensor ({array.layout}): call .to_dense() first"
        if _is_transformed(array):
            return "torch tensor inside vmap or grad: convert outside of the transformed function"
        if not (array.is_cpu or array.is_cuda):
            return f"torch tensor on device {array.device}: call .cpu() first, or fill it if it is meta"
        if not array.data_ptr() and array.numel():
            # NumPy would make garbage of its null pointer, and torch itself crashes on it.
            return "torch tensor without memory (freed by resize_(0), or a ZeroTensor): allocate and fill it"
        return None

    def devices(self) -> tuple[DeviceInfo, ...]:
        return _devices()

    def validate_gpu_id(self, gpu_id: object) -> GpuId:
        if gpu_id == "cpu" and isinstance(gpu_id, str):
            return "cpu"
        return super().validate_gpu_id(gpu_id)

    def device_of(self, array: Array) -> GpuId:
        return "cpu" if array.is_cpu else int(array.get_device())

    def move(self, array: Array, gpu_id: GpuId) -> Array:
        return array.to(_device(gpu_id), copy=True)

    def synchronize(self, gpu_id: GpuId) -> None:
        if gpu_id != "cpu":
            self.library.cuda.synchronize(gpu_id)

    def dtype_of(self, array: Array) -> str:
        name = _NAMES.get(array.dtype)
        if name is None:
            name = _NAMES[array.dtype] = str(array.dtype).removeprefix("torch.")
        return name

    def refuse_to_leave(self, array: Array) -> str | None:
        if array.requires_grad:
            return "the tensor requires gradients, which no other library keeps; call .detach() first"
        return None

    def host_view(self, array: Array) -> NDArray[Any] | None:
        if not array.is_cpu or array.is_conj() or array.is_neg():
            return None
        plain = array.detach() if array.requires_grad else array
        if plain.dtype is self.library.bfloat16:
            view: NDArray[Any] = plain.view(self.library.int16).numpy().view(numpy_dtype("bfloat16"))
            return view
        view = plain.numpy()
        return view

    def to_host(self, array: Array) -> NDArray[Any]:
        plain = array.detach().resolve_conj().resolve_neg().cpu()
        view = self.host_view(plain)
        assert view is not None  # a strided tensor in host memory with its values resolved
        return view

    def lend_obstacle(self, view: NDArray[Any]) -> str | None:
        flags = view.flags
        if flags.carray:
            return None
        if not flags.aligned:
            return "its elements are not aligned"
        # A negative stride makes torch's DLPack import abort the process, and from_numpy raise.
        if view.size and any(stride < 0 or stride % view.itemsize for stride in view.strides):
            return "torch has no such strides"
        return None

    def lend(self, view: NDArray[Any], gpu_id: GpuId) -> Array:  # noqa: ARG002
        if view.dtype.kind != "V" and view.flags.writeable:
            return self.library.from_numpy(view)
        # bfloat16, which from_numpy doesn't know, crosses as what it weighs.
        bfloat16 = view.dtype.name == "bfloat16"
        plain = writable_alias(view.view(np.int16) if bfloat16 else view)
        lent = self.library.from_numpy(plain)
        return lent.view(self.library.bfloat16) if bfloat16 else lent

    def from_host(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        if gpu_id != "cpu" and self.lend_obstacle(view) is None and view.flags.c_contiguous:
            # It comes back when the source has been read.
            return self.lend(view, "cpu").to(_device(gpu_id))
        fresh = aligned_empty(view.shape, view.dtype)
        np.copyto(fresh, view, casting="no")
        lent = self.lend(fresh, "cpu")
        return lent if gpu_id == "cpu" else lent.to(_device(gpu_id))

    def export_obstacle(self, array: Array, *, packed: bool) -> str | None:
        # torch refuses to export a conjugate view, and exports a negative one without its sign.
        if array.is_conj() or array.is_neg():
            return "its values are lazy and the copy carries them out"
        if packed and not array.is_contiguous():
            return "it isn't C-contiguous"
        return None

    def import_device_array(self, array: Any, gpu_id: GpuId) -> Array:
        # from_dlpack hands the producer this device's current stream.
        with self.entered(gpu_id):
            return self.library.from_dlpack(array)

    def empty(self, shape: tuple[int, ...], dtype: str, gpu_id: GpuId) -> Array:
        if gpu_id == "cpu":
            return self.lend(aligned_empty(tuple(shape), numpy_dtype(dtype)), "cpu")
        return self.library.empty(tuple(shape), dtype=getattr(self.library, dtype), device=_device(gpu_id))

    def duplicate(self, array: Array) -> Array:
        return array.clone(memory_format=self.library.contiguous_format).resolve_conj().resolve_neg()

    def write(self, destination: Array, source: Array) -> None:
        destination.copy_(source)

    def write_host(self, destination: Array, source: NDArray[Any]) -> None:
        # From pageable memory copy_ returns when the source may be reused.
        obstacle = self.lend_obstacle(source)
        destination.copy_(self.lend(source, "cpu") if obstacle is None else self.from_host(source, "cpu"))

    def stack(self, slices: Sequence[Array], out: Array | None) -> Array:
        return self.library.stack(list(slices), out=out)

    def unstack(self, array: Array) -> list[Array]:
        return list(array.unbind(0))

    def memory_held(self, gpu_id: GpuId) -> MemoryHeld:
        if gpu_id == "cpu":
            return MemoryHeld(0, 0)
        stats = self.library.cuda.memory_stats(gpu_id)
        held = int(stats.get("reserved_bytes.all.current", 0))
        busy = int(stats.get("allocated_bytes.all.current", 0))
        # empty_cache can't give back the free part of a segment that is partly in use.
        split = int(stats.get("inactive_split_bytes.all.current", 0))
        return MemoryHeld(held, max(0, held - busy - split))

    def measure_peak(self, gpu_id: GpuId) -> Callable[[], int | None]:
        if gpu_id == "cpu":
            return super().measure_peak(gpu_id)
        cuda = self.library.cuda
        if cuda.is_initialized():  # before that there are no statistics to reset
            cuda.reset_peak_memory_stats(gpu_id)
        before = int(cuda.memory_allocated(gpu_id))
        return lambda: max(0, int(cuda.max_memory_allocated(gpu_id)) - before)

    def drain(self, gpu_id: GpuId) -> int:
        before = self.memory_held(gpu_id).held
        if gpu_id != "cpu":
            self.library.cuda.empty_cache()
        return before - self.memory_held(gpu_id).held

    def current_stream(self, gpu_id: GpuId) -> Any | None:
        return None if gpu_id == "cpu" else self.library.cuda.current_stream(gpu_id)

    def wait_for_stream(self, stream: Any, gpu_id: GpuId) -> None:
        self.library.cuda.current_stream(gpu_id).wait_stream(stream)

    def work_mark(self, streams: Sequence[Any], gpu_id: GpuId) -> Callable[[], bool]:  # noqa: ARG002
        events = [stream.record_event() for stream in streams]
        return lambda: all(event.query() for event in events)

    def pin(self, address: int, nbytes: int) -> None:
        self._check_cuda(self.library.cuda.cudart().cudaHostRegister(address, nbytes, 0), nbytes)

    def unpin(self, address: int) -> None:
        self._check_cuda(self.library.cuda.cudart().cudaHostUnregister(address), 0)

    def _check_cuda(self, status: Any, nbytes: int) -> None:
        code = int(status)
        if code:
            self._forget_error()
        if code == CUDA_OUT_OF_MEMORY:
            raise MemoryError(f"CUDA has no {nbytes} bytes of host memory to pin")
        if code:
            raise DeviceError(f"pinning host memory failed with CUDA error {code}")

    def _forget_error(self) -> None:
        """Launch a kernel, which reports the call that has failed, so that no step's kernel does."""
        with contextlib.suppress(RuntimeError):
            self.library.zeros(1, device="cuda").add_(1)

    def is_oom(self, error: BaseException) -> bool:
        torch = sys.modules.get("torch")
        if torch is None:
            return super().is_oom(error)
        if type(error) is torch.OutOfMemoryError:
            return True
        if type(error) is getattr(torch, "AcceleratorError", None):
            return getattr(error, "error_code", None) == CUDA_OUT_OF_MEMORY
        # The CPU allocator and CUDA's libraries have no types of their own: a RuntimeError that they sign.
        return (
            type(error) is RuntimeError and any(signed in str(error) for signed in SIGNED_OUT_OF_MEMORY)
        ) or super().is_oom(error)

    def entered(self, place: GpuId) -> Any:
        return super().entered(place) if place == "cpu" else self.library.cuda.device(place)

    def array_namespace(self, array: Array) -> Any | None:
        if array.is_cpu:
            return None
        import array_api_compat.torch as namespace

        return namespace


# Names of the few dtypes by torch's own objects, which take longer to print.
_NAMES: dict[Any, str] = {}


@functools.cache
def _devices() -> tuple[DeviceInfo, ...]:
    import torch

    places = [DeviceInfo("cpu", "cpu", "host memory")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            places.append(DeviceInfo(index, "gpu", properties.name, pci_address(index)))
    return tuple(places)


def _is_transformed(array: Array) -> bool:
    """True for the stand-ins that torch.func passes to the functions that it transforms."""
    functorch = getattr(sys.modules["torch"]._C, "_functorch", None)
    check = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return check is not None and bool(check(array))


def _device(gpu_id: GpuId) -> Any:
    import torch

    return torch.device("cpu") if gpu_id == "cpu" else torch.device("cuda", gpu_id)
