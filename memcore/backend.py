"""What memcore and the pools ask of an array library.

A backend is one small subclass in one file, registered with `register_backend`. Methods speak of the
library's own arrays; a `gpu_id` has been through `validate_gpu_id`. Nothing here imports the library before
`library` is read.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from memcore.errors import BackendUnavailableError, DeviceError, DtypeError, StackError
from memcore.info import ITEM_SIZES, ArrayInfo, DeviceInfo, MemoryHeld, item_size
from memcore.memory_type import Array, GpuId

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Backend(ABC):
    """One array library: detection, devices, exchange, allocation and memory.

    Subclasses set the class attributes and fill in the abstract methods; the others have a default that is
    right for a library in host memory with its own index syntax.
    """

    memory_type: ClassVar[str]
    # What the library calls its arrays, in messages.
    noun: ClassVar[str] = "array"
    # The module to import, and what installs it.
    module: ClassVar[str]
    install_hint: ClassVar[str]
    # First parts of `type(array).__module__`; detection asks a backend only about types from these.
    type_roots: ClassVar[tuple[str, ...]]
    # Arrays that nobody may write to once they exist.
    immutable: ClassVar[bool] = False
    # Views of read-only memory stay read-only.
    keeps_read_only: ClassVar[bool] = False
    # Arrays can live where NumPy can look at them.
    host_memory: ClassVar[bool] = True
    # Kinds of device that arrays can be computed on.
    device_kinds: ClassVar[tuple[Literal["cpu", "gpu"], ...]] = ("cpu", "gpu")
    # The device memory that the library shares through DLPack, if any.
    device_memory: ClassVar[str | None] = None
    # Importing device memory makes the library's current stream wait for the producer's work.
    imports_in_stream_order: ClassVar[bool] = True
    # Device memory of others may have any strides.
    imports_strides: ClassVar[bool] = True
    # dtypes that the library holds exactly, by name.
    dtypes: ClassVar[frozenset[str]] = frozenset(ITEM_SIZES)

    _known_devices: tuple[DeviceInfo, ...] | None = None

    def __init__(self) -> None:
        self._library: ModuleType | None = None

    # The library

    @property
    def library(self) -> Any:
        """The imported module. Raises BackendUnavailableError with the way to install it."""
        if self._library is None:
            self.before_import()
            try:
                self._library = importlib.import_module(self.module)
            except Exception as error:
                raise BackendUnavailableError(
                    f"{self.memory_type} can't be used: importing {self.module} failed "
                    f"({type(error).__name__}: {error}); install it with: {self.install_hint}"
                ) from error
        return self._library

    def before_import(self) -> None:  # noqa: B027  a hook that most libraries don't need
        """Refuse an import that would harm the process."""

    def installed(self) -> bool:
        """True if the module can be found, without importing it."""
        return self.module in sys.modules or importlib.util.find_spec(self.module) is not None

    def version(self) -> str:
        return str(getattr(self.library, "__version__", "unknown"))

    # Detection: none of these imports anything

    @abstractmethod
    def is_array_type(self, cls: type) -> bool:
        """True if `cls`, from one of `type_roots`, is exactly the library's plain array type."""

    def accepts_subclass(self, cls: type) -> bool:  # noqa: ARG002
        """True for a subclass of the array type that means no more than the array does."""
        return False

    def remedy_for_type(self, cls: type) -> str:
        """What to do with an object of the library that isn't a plain array."""
        return f"convert it to a plain {self.memory_type} {self.noun} first (it is {cls.__qualname__})"

    def refusal(self, array: Array) -> str | None:  # noqa: ARG002
        """Why this object isn't a plain array after all (sparse, deleted, …) and the remedy, else None."""
        return None

    # Devices

    @abstractmethod
    def devices(self) -> tuple[DeviceInfo, ...]:
        """Every place where arrays of this library can live in this process."""

    def known_devices(self) -> tuple[DeviceInfo, ...]:
        """`devices()`, asked once: they don't change in a process that has used the library."""
        if self._known_devices is None:
            self._known_devices = self.devices()
        return self._known_devices

    def validate_gpu_id(self, gpu_id: object) -> GpuId:
        """The place that `gpu_id` names. Raises DeviceError if there is no such place."""
        known = [device.gpu_id for device in self.known_devices()]
        if (type(gpu_id) is int or gpu_id == "cpu") and gpu_id in known:
            return gpu_id
        raise DeviceError(device_problem(self.memory_type, gpu_id, known))

    @abstractmethod
    def device_of(self, array: Array) -> GpuId:
        """Where the array lives."""

    def in_host_memory(self, place: GpuId) -> bool:
        """True if NumPy can look at arrays at that place without a copy."""
        return self.host_memory and place == "cpu"

    def shares_with(self, other: Backend, kind: str) -> bool:
        """True if both libraries can see the same memory on devices of that kind."""
        if kind == "cpu":
            return self.host_memory and other.host_memory
        return self.device_memory is not None and self.device_memory == other.device_memory

    def physical_id(self, place: GpuId) -> str | None:
        """PCI address or UUID of the device, as every library that shares memory on it tells it."""
        return next((d.physical_id for d in self.known_devices() if d.gpu_id == place), None)

    def can_move(self, origin: GpuId, place: GpuId) -> bool:  # noqa: ARG002
        """True if `move` copies between these places without passing through a host array."""
        return True

    def move(self, array: Array, gpu_id: GpuId) -> Array:
        """The array on another device of the same library."""
        return self.from_host(self.to_host(array), gpu_id)

    def synchronize(self, gpu_id: GpuId) -> None:  # noqa: B027
        """Wait until all work submitted to the device is done."""

    # Description

    def shape_of(self, array: Array) -> tuple[int, ...]:
        return tuple(array.shape)

    @abstractmethod
    def dtype_of(self, array: Array) -> str:
        """The NumPy name of the dtype, or its code if the byte order is foreign."""

    def describe(self, array: Array) -> ArrayInfo:
        return ArrayInfo(self.memory_type, self.shape_of(array), self.dtype_of(array), self.device_of(array))

    def refuse_to_leave(self, array: Array) -> str | None:  # noqa: ARG002
        """What would be lost if the array went to another library, and the remedy, else None."""
        return None

    def dtype_refusal(self, dtype: str) -> str | None:
        """Why arrays of that dtype can't be held exactly, and the remedy, else None."""
        if dtype in self.dtypes:
            return None
        if dtype[:1] in "<>":
            return (
                f"{self.memory_type} has no {dtype} (foreign byte order); convert it with "
                "array.astype(array.dtype.newbyteorder('=')) first"
            )
        return f"{self.memory_type} can't hold {dtype} exactly; {self.dtype_remedy(dtype)}"

    def dtype_remedy(self, dtype: str) -> str:  # noqa: ARG002
        return "choose a dtype with convert_dtype(array, dtype, rule) first"

    def shape_refusal(self, shape: tuple[int, ...]) -> str | None:  # noqa: ARG002
        """Why arrays of that shape can't exist here, and the remedy, else None."""
        return None

    # Exchange with host memory

    @abstractmethod
    def host_view(self, array: Array) -> NDArray[Any] | None:
        """The array's own memory as NumPy sees it, read-only if immutable; None if that can't be."""

    @abstractmethod
    def to_host(self, array: Array) -> NDArray[Any]:
        """The values in host memory: a view where `host_view` gives one, else a new array."""

    @abstractmethod
    def lend_obstacle(self, view: NDArray[Any]) -> str | None:
        """Why the library can't use this host memory in place, else None."""

    @abstractmethod
    def lend(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        """An array over the memory of `view`, which has no obstacle. The caller answers for aliasing."""

    @abstractmethod
    def from_host(self, view: NDArray[Any], gpu_id: GpuId) -> Array:
        """A new array with memory of its own, ready on the current stream; `view` may be reused at once."""

    def export_obstacle(self, array: Array, *, packed: bool) -> str | None:  # noqa: ARG002
        """Why another library can't look at the array's device memory as it is, else None.

        `packed`: it looks at C-contiguous memory only.
        """
        return None

    def export_device_array(self, array: Array) -> Any:
        """The array with a `__dlpack__` that orders the consumer's stream after the array's own work."""
        return array

    def import_device_array(self, array: Any, gpu_id: GpuId) -> Array:
        """A zero-copy view of another library's device array, through DLPack."""
        raise NotImplementedError(f"{self.memory_type} shares no device memory")

    # Allocation and copies

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: str, gpu_id: GpuId) -> Array:
        """A new array, values undefined (zero where the library has nothing else)."""

    @abstractmethod
    def duplicate(self, array: Array) -> Array:
        """A copy on the same device that shares no memory."""

    def copy_into(self, destination: Array, source: Array) -> None:
        """Overwrite `destination` with `source`: same library, shape and dtype."""
        if self.immutable:
            raise StackError(f"{self.memory_type} arrays are immutable: make a new one instead")
        self.check_same_form(destination, self.shape_of(source), self.dtype_of(source))
        self.write(destination, source)

    def write(self, destination: Array, source: Array) -> None:
        """Copy between arrays of this library whose forms have been compared."""
        destination[...] = source

    def write_host(self, destination: Array, source: NDArray[Any]) -> None:
        """Copy from host memory, forms having been compared; when it returns the source may be reused."""
        self.write(destination, self.from_host(source, self.device_of(destination)))

    def stack(self, slices: Sequence[Array], out: Array | None) -> Array:
        """Slices that share shape, dtype and device to one [Z, Y, X] array on that device."""
        first = slices[0]
        if out is None:
            shape = (len(slices), *self.shape_of(first))
            out = self.empty(shape, self.dtype_of(first), self.device_of(first))
        for z, plane in enumerate(slices):
            out[z] = plane
        return out

    def unstack(self, array: Array) -> list[Array]:
        """The planes of a [Z, Y, X] array, as views where the library has views."""
        return [array[z] for z in range(self.shape_of(array)[0])]

    # Memory

    def memory_held(self, gpu_id: GpuId) -> MemoryHeld:  # noqa: ARG002
        """What the library's allocator holds on the device."""
        return MemoryHeld(0, 0)

    def measure_peak(self, gpu_id: GpuId) -> Callable[[], int | None]:  # noqa: ARG002
        """Begin to measure the most bytes that arrays take on the device beyond those there now.

        The function that is returned ends it, in the same thread, and gives the bytes; None where the library
        can't say. Two measurements of a device at one time count each other's arrays, and may spoil each
        other.
        """
        return lambda: None

    def drain(self, gpu_id: GpuId) -> int:  # noqa: ARG002
        """Give back what the library's allocator holds unused; the bytes given back."""
        return 0

    def delete(self, array: Array) -> bool:  # noqa: ARG002
        """Free an immutable array's memory now, whoever refers to it; False where the library can't."""
        return False

    def is_deleted(self, array: Array) -> bool:  # noqa: ARG002
        """True if the array's memory was deleted, or donated to a function."""
        return False

    # Order of work on a device, for memory that is lent again

    def current_stream(self, gpu_id: GpuId) -> Any | None:  # noqa: ARG002
        """Where work on the device goes now; None where all of it is done in the order of its submission."""
        return None

    def wait_for_stream(self, stream: Any, gpu_id: GpuId) -> None:  # noqa: B027
        """Let the current stream wait for what was submitted to another so far."""

    def work_mark(self, streams: Sequence[Any], gpu_id: GpuId) -> Callable[[], bool]:  # noqa: ARG002
        """A function that says whether what was submitted to these streams until now is done."""
        return lambda: True

    def pin(self, address: int, nbytes: int) -> None:  # noqa: ARG002
        """Lock whole pages of host memory, so that the device copies to and from them on its own."""
        raise DeviceError(f"{self.memory_type} has no pinned host memory here")

    def unpin(self, address: int) -> None:  # noqa: ARG002
        """Undo `pin`."""
        raise DeviceError(f"{self.memory_type} has no pinned host memory here")

    def is_oom(self, error: BaseException) -> bool:
        """True if the error says that memory ran out, by its exact type and code."""
        return isinstance(error, MemoryError)  # NumPy raises a subclass of its own

    def entered(self, place: GpuId) -> AbstractContextManager[Any]:  # noqa: ARG002
        """A context in which the library's functions work on that device."""
        return nullcontext()

    def array_namespace(self, array: Array) -> Any | None:  # noqa: ARG002
        """The array API namespace for arithmetic in device memory, or None to compute on the host."""
        return None

    # Checks

    def check_same_form(self, array: Array, shape: tuple[int, ...], dtype: str) -> None:
        """Raise StackError or DtypeError unless `array` has exactly this shape and dtype."""
        if self.shape_of(array) != tuple(shape):
            raise StackError(f"shape {self.shape_of(array)} can't take {tuple(shape)}: nothing is broadcast")
        if self.dtype_of(array) != dtype:
            raise DtypeError(
                f"a {self.dtype_of(array)} array can't take {dtype} values; use convert_dtype first"
            )


def device_problem(memory_type: str, gpu_id: object, known: Sequence[GpuId]) -> str:
    """One line on why `gpu_id` is no device of this memory type, with those that are."""
    indices = [place for place in known if place != "cpu"]
    choices = [span_text(indices)] if indices else []
    if "cpu" in known:
        choices.append("'cpu' for host memory")
    offer = f"{memory_type} takes " + " or ".join(choices) if choices else f"{memory_type} has no device here"
    if type(gpu_id) is int and gpu_id >= 0:
        have = f"only {span_text(indices)} available" if indices else "no such device here"
        return f"GPU device {gpu_id} not available ({have}); {offer}"
    if gpu_id == "cpu" and isinstance(gpu_id, str):
        return f"{memory_type} arrays don't live in host memory; {offer}"
    return f"gpu_id must be a device index or 'cpu', not {gpu_id!r}; {offer}"


def span_text(indices: Sequence[GpuId]) -> str:
    """Indices in short: "0", "0-1", "0, 2"."""
    numbers = sorted(index for index in indices if isinstance(index, int))
    if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name; bfloat16 comes from ml_dtypes, which JAX and TensorFlow bring."""
    import numpy as np

    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise DtypeError("NumPy has bfloat16 only with: pip install ml_dtypes") from error
    brain: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return brain


# `dtype.name` is computed anew each time, in Python.
DTYPE_NAMES: dict[np.dtype[Any], str] = {}


def numpy_dtype_name(dtype: np.dtype[Any]) -> str:
    """The name that memcore knows the dtype by; its code if the byte order is foreign."""
    name = DTYPE_NAMES.get(dtype)
    if name is None:
        name = dtype.name if dtype.isnative else dtype.str
        if name in ITEM_SIZES:
            DTYPE_NAMES[dtype] = name
    return name


def nbytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a C-contiguous array."""
    size = item_size(dtype)
    for length in shape:
        size *= length
    return size
