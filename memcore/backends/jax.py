"""JAX: host and accelerator memory, immutable, 64-bit types only if enabled."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from memcore.backend import Backend, numpy_dtype, numpy_dtype_name
from memcore.backends.cuda_address import pci_address
from memcore.errors import BackendUnavailableError
from memcore.host import ALIGNMENT, address_of, aligned_empty
from memcore.info import DeviceInfo, MemoryHeld
from memcore.memory_type import Array, GpuId, MemoryType

WIDE = frozenset({"int64", "uint64", "float64", "complex128"})


class JaxBackend(Backend):
    """Concrete `jax.Array` on one device. Tracers, typed PRNG keys, deleted and sharded arrays are refused.

    Where no accelerator exists and several CPU devices are configured, `gpu_id` n is the CPU device n, and
    "cpu" is the first of them; with one CPU device only "cpu" names it.
    """

    memory_type: ClassVar[str] = MemoryType.JAX
    module: ClassVar[str] = "jax"
    install_hint: ClassVar[str] = "pip install 'stackyard[jax]'"
    device_memory: ClassVar[str | None] = "cuda"
    type_roots: ClassVar[tuple[str, ...]] = ("jax", "jaxlib")
    immutable: ClassVar[bool] = True
    imports_strides: ClassVar[bool] = False
    keeps_read_only: ClassVar[bool] = True

    def is_array_type(self, cls: type) -> bool:
        jax = sys.modules.get("jax")
        # Tracers and typed keys pass isinstance(x, jax.Array); only the one concrete class is an array.
        return jax is not None and cls.__name__ == "ArrayImpl" and issubclass(cls, jax.Array)

    def remedy_for_type(self, cls: type) -> str:
        if "Tracer" in cls.__name__:
            return "it has no values inside jit, grad or vmap: convert outside of the traced function"
        if cls.__name__ == "PRNGKeyArray":
            return "take its words with jax.random.key_data(key)"
        return "make it a dense concrete array first, for example with .todense()"

    def refusal(self, array: Array) -> str | None:
        if array.is_deleted():
            return "deleted jax array (donated to a jit function?): keep the result instead"
        if len(array.sharding.device_set) != 1:
            return (
                "jax array sharded over several devices: gather it with jax.device_put(array, device) first"
            )
        return None

    def devices(self) -> tuple[DeviceInfo, ...]:
        accelerators = self._accelerators()
        if accelerators:
            found = [
                DeviceInfo(self._ordinal(d), "gpu", d.device_kind, pci_address(self._ordinal(d)))
                for d in accelerators
            ]
        else:
            cpus = self.library.devices("cpu")
            found = [DeviceInfo(d.id, "cpu", f"logical CPU {d.id}") for d in cpus] if len(cpus) > 1 else []
        return (DeviceInfo("cpu", "cpu", "host memory"), *found)

    def validate_gpu_id(self, gpu_id: object) -> GpuId:
        place = super().validate_gpu_id(gpu_id)
        # Where logical CPUs are configured, host memory is the first of them: one place has one name.
        return 0 if place == "cpu" and self._has_logical_cpus() else place

    def device_of(self, array: Array) -> GpuId:
        (device,) = array.sharding.device_set
        if device.platform != "cpu":
            return self._ordinal(device)
        return int(device.id) if self._has_logical_cpus() else "cpu"

    def in_host_memory(self, place: GpuId) -> bool:
        return place == "cpu" or not self._accelerators()

    def move(self, array: Array, gpu_id: GpuId) -> Array:
        return self.library.device_put(array, self._device(gpu_id))

    def synchronize(self, gpu_id: GpuId) -> None:
        device = self._device(gpu_id)
        for array in self.library.live_arrays(device.platform):
            if not array.is_deleted() and device in array.sharding.device_set:
                # What failed or was deleted is over too: the error is for whoever reads the result.
                with contextlib.suppress(RuntimeError):
                    array.block_until_ready()

    def dtype_of(self, array: Array) -> str:
        return numpy_dtype_name(array.dtype)

    def dtype_refusal(self, dtype: str) -> str | None:
        if dtype in WIDE and not _wide_types_enabled():
            return (
                f"jax would narrow {dtype} to 32 bits; set jax.config.update('jax_enable_x64', True), "
                "or choose a dtype with convert_dtype(array, dtype, rule) first"
            )
        return super().dtype_refusal(dtype)

    def host_view(self, array: Array) -> NDArray[Any] | None:
        (device,) = array.sharding.device_set
        return np.asarray(array) if device.platform == "cpu" else None

    def to_host(self, array: Array) -> NDArray[Any]:
        return np.asarray(array)

    def lend_obstacle(self, view: NDArray[Any]) -> str | None:
        if not view.flags.c_contiguous or not view.flags.aligned:
            return "jax shares only C-contiguous memory"
        if view.size and address_of(view) % ALIGNMENT:
            return f"jax shares only memory that starts at a multiple of {ALIGNMENT} bytes"
        return None

    def lend(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        lent = self.library.device_put(view, self._device(gpu_id))
        if view.size and lent.unsafe_buffer_pointer() != address_of(view):
            raise BufferError("jax copied aligned C-contiguous memory instead of sharing it")
        return lent

    def from_host(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        # device_put may alias its argument on the CPU and reads it later on an accelerator, whatever
        # may_alias says (jax#37830): only memory that nobody else holds goes in.
        fresh = aligned_empty(view.shape, view.dtype)
        np.copyto(fresh, view, casting="no")
        return self.library.device_put(fresh, self._device(gpu_id))

    def import_device_array(self, array: Any, gpu_id: GpuId) -> Array:
        return self.library.numpy.from_dlpack(array, device=self._device(gpu_id))

    def empty(self, shape: tuple[int, ...], dtype: str, gpu_id: GpuId) -> Array:
        # jnp.empty is zeros: an immutable array with undefined values would be of no use.
        return self.library.numpy.empty(tuple(shape), numpy_dtype(dtype), device=self._device(gpu_id))

    def duplicate(self, array: Array) -> Array:
        view = self.host_view(array)
        if view is not None:
            return self.from_host(view, self.device_of(array))
        return self.library.numpy.array(array, copy=True)

    def stack(self, slices: Sequence[Array], out: Array | None) -> Array:  # noqa: ARG002  immutable
        # One jnp.stack copies once; .at[z].set() outside jit copies the whole stack for each slice.
        return self.library.numpy.stack(list(slices))

    def unstack(self, array: Array) -> list[Array]:
        return list(array)

    def memory_held(self, gpu_id: GpuId) -> MemoryHeld:
        stats = self._device(gpu_id).memory_stats() or {}
        # The BFC arena never shrinks, so nothing of it is reclaimable.
        return MemoryHeld(int(stats.get("pool_bytes", stats.get("bytes_in_use", 0))), 0)

    def measure_peak(self, gpu_id: GpuId) -> Callable[[], int | None]:
        device = self._device(gpu_id)
        before = device.memory_stats()

        def ended() -> int | None:
            after = device.memory_stats()
            if before is None or after is None:
                return None
            if after.get("num_allocs") == before.get("num_allocs", -1):
                return 0
            # XLA's high-water mark can't be reset: under an earlier one of the process nothing is seen.
            raised = after["peak_bytes_in_use"] > before["peak_bytes_in_use"]
            return int(after["peak_bytes_in_use"] - before["bytes_in_use"]) if raised else None

        return ended

    def delete(self, array: Array) -> bool:
        array.delete()
        return True

    def is_deleted(self, array: Array) -> bool:
        return bool(array.is_deleted())

    def is_oom(self, error: BaseException) -> bool:
        jax = sys.modules.get("jax")
        # XLA's status code is the first word of the text.
        if jax is not None and type(error) is jax.errors.JaxRuntimeError:
            return str(error).startswith("RESOURCE_EXHAUSTED")
        return super().is_oom(error)

    def array_namespace(self, array: Array) -> Any | None:
        on_host = self.in_host_memory(self.device_of(array))
        return None if on_host or not _wide_types_enabled() else self.library.numpy

    def _has_logical_cpus(self) -> bool:
        return len(self.library.devices("cpu")) > 1 and not self._accelerators()

    def _accelerators(self) -> list[Any]:
        try:
            devices = self.library.local_devices()
        except RuntimeError as error:  # a CUDA plugin that finds no driver, or one too old for it
            raise BackendUnavailableError(f"jax can't be used: {error}") from error
        return [d for d in devices if d.platform != "cpu"]

    def _device(self, gpu_id: GpuId) -> Any:
        if gpu_id == "cpu":
            return self.library.devices("cpu")[0]
        accelerators = self._accelerators()
        if not accelerators:
            return next(d for d in self.library.devices("cpu") if d.id == gpu_id)
        return next(d for d in accelerators if self._ordinal(d) == gpu_id)

    def _ordinal(self, device: Any) -> int:
        # The CUDA ordinal under CUDA_VISIBLE_DEVICES; `id` counts over all processes of a distributed job.
        ordinal = getattr(device, "local_hardware_id", None)
        return int(device.id if ordinal is None else ordinal)


def _wide_types_enabled() -> bool:
    """The x64 switch as JAX has it, or as its environment variable will set it when JAX is imported."""
    jax = sys.modules.get("jax")
    if jax is not None:
        return bool(jax.config.jax_enable_x64)
    return os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "t", "yes", "y", "on")
