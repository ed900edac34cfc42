"""Conversion between memory types: exactly the values asked for, by the cheapest safe route, or an error."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn

from memcore.backend import Backend, nbytes_of
from memcore.counters import conversion_counters
from memcore.errors import (
    ConversionDeviceError,
    ConversionDtypeError,
    DeviceError,
    MemcoreError,
    MemoryConversionError,
    OutOfDeviceMemoryError,
)
from memcore.info import place_text
from memcore.memory_type import Array, GpuId
from memcore.registry import backend_for, backend_of
from memcore.sharing import may_share

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Route(StrEnum):
    """How a conversion gets its result."""

    IDENTITY = "identity"
    ZERO_COPY = "zero_copy"
    DEVICE_COPY = "device_copy"
    HOST_ROUND_TRIP = "host_round_trip"


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What a conversion will do.

    `route` is identity (the same array), zero_copy (a view of its memory), device_copy (one copy from where
    it is to where it is to be) or host_round_trip (device memory is read into host memory on the way). `hops`
    are the places in order; `bytes_copied` is the total over them; `reason` says why no cheaper route serves.
    """

    route: Route
    hops: tuple[str, ...]
    bytes_copied: int
    reason: str


def convert_memory(
    data: Array,
    source_type: str,
    target_type: str,
    gpu_id: object,
    *,
    copy: bool | None = None,
    allow_host: bool = True,
) -> Array:
    """The same values as an array of another memory type or on another device.

    Shape, dtype, byte order and values are those of `data`. The result is ready for the target's current
    stream.

    Parameters ---------- data : plain array of `source_type`; the declaration is checked target_type : memory
    type of the result gpu_id : device index, or "cpu" for host memory of torch, TensorFlow and JAX; NumPy
    ignores it copy : True never shares memory with `data`; False never copies; None shares where that is
    possible and safe: a mutable
        buffer isn't lent to a library of immutable arrays, nor a read-only one to a library without that flag
    allow_host : False refuses to bring device memory to the host

    Raises
    ------
    UnknownMemoryTypeError
        `data` is no plain array (masked, traced, sparse, …), or a memory type is unknown.
    MemoryConversionError
        The conversion can't be done as asked; also a DeviceError or DtypeError where the device or the dtype
        is why.
    BackendUnavailableError
        The target library can't be used here.
    OutOfDeviceMemoryError
        The target has no room.
    """
    source = backend_of(source_type)
    target = backend_of(target_type)
    found = backend_for(data)
    if found is not source:
        _fail(
            data,
            found,
            target,
            gpu_id,
            f"declared as {source.memory_type}, but it is a {found.memory_type} {found.noun}; "
            f"pass source_type={str(found.memory_type)!r}",
        )
    way, subject, place, _reason = _decide(data, source, target, gpu_id, copy, allow_host)
    if conversion_counters.enabled:
        return _counted(data, source, target, place, way, subject)
    return _perform(data, source, target, place, way, subject)


def plan_conversion(
    data: Array, target_type: str, gpu_id: object, *, copy: bool | None = None, allow_host: bool = True
) -> ConversionPlan:
    """The plan that `convert_memory` would carry out with the same arguments; raises what it would raise."""
    source = backend_for(data)
    target = backend_of(target_type)
    way, _subject, place, reason = _decide(data, source, target, gpu_id, copy, allow_host)
    origin = f"{source.memory_type} {place_text(source.device_of(data))}"
    goal = f"{target.memory_type} {place_text(place)}"
    if way.route is Route.IDENTITY:
        hops: tuple[str, ...] = (origin,)
    elif way.through_host and not target.in_host_memory(place):
        hops = (origin, "host memory", goal)
    else:
        hops = (origin, goal)
    nbytes = nbytes_of(source.shape_of(data), source.dtype_of(data))
    return ConversionPlan(way.route, hops, way.copies * nbytes, reason)


def deliver_host_array(fresh: NDArray[Any], target: Backend, place: GpuId) -> Array:
    """An array of `target` from host memory that memcore has just filled and nobody else can see.

    Lent without a copy where the target lives in host memory, else one transfer.
    """
    if target.in_host_memory(place) and target.lend_obstacle(fresh) is None:
        return target.lend(fresh, place)
    return target.from_host(fresh, place)


@dataclass(frozen=True, slots=True)
class _Way:
    """How one array becomes another; it copies `copies` times the array's bytes."""

    route: Route
    copies: int
    perform: Callable[[Array, Backend, Backend, GpuId], Array]
    through_host: bool = False


def _keep(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:  # noqa: ARG001
    return data


def _duplicate(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:  # noqa: ARG001
    return source.duplicate(data)


def _lend(view: Array, source: Backend, target: Backend, place: GpuId) -> Array:  # noqa: ARG001
    return target.lend(view, place)


def _copy(view: Array, source: Backend, target: Backend, place: GpuId) -> Array:  # noqa: ARG001
    return target.from_host(view, place)


def _upload(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:
    return target.from_host(source.to_host(data), place)


def _download(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:
    return deliver_host_array(source.to_host(data), target, place)


def _move(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:  # noqa: ARG001
    return target.move(data, place)


def _borrow(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:
    if not target.imports_in_stream_order:
        source.synchronize(source.device_of(data))
    return target.import_device_array(source.export_device_array(data), place)


def _borrow_and_copy(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:
    return target.duplicate(_borrow(data, source, target, place))


def _move_and_borrow(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:
    return _borrow(source.move(data, place), source, target, place)


_IDENTITY = _Way(Route.IDENTITY, 0, _keep)
_DUPLICATE = _Way(Route.DEVICE_COPY, 1, _duplicate)
_LEND = _Way(Route.ZERO_COPY, 0, _lend)
_HOST_COPY = _Way(Route.DEVICE_COPY, 1, _copy)
_UPLOAD = _Way(Route.DEVICE_COPY, 1, _upload)
_MOVE = _Way(Route.DEVICE_COPY, 1, _move)
_BORROW = _Way(Route.ZERO_COPY, 0, _borrow)
_BORROW_COPY = _Way(Route.DEVICE_COPY, 1, _borrow_and_copy)
_MOVE_BORROW = _Way(Route.DEVICE_COPY, 1, _move_and_borrow)
_DOWNLOAD = _Way(Route.HOST_ROUND_TRIP, 1, _download, through_host=True)
_DOWNLOAD_AND_COPY = _Way(Route.HOST_ROUND_TRIP, 2, _upload, through_host=True)
_ROUND_TRIP = _Way(Route.HOST_ROUND_TRIP, 2, _upload, through_host=True)


def _decide(
    data: Array, source: Backend, target: Backend, gpu_id: object, copy: bool | None, allow_host: bool
) -> tuple[_Way, Array, GpuId, str]:
    try:
        place = target.validate_gpu_id(gpu_id)
    except DeviceError as error:
        _fail(data, source, target, gpu_id, str(error), ConversionDeviceError, error)
    if source is not target:
        refusal = target.dtype_refusal(source.dtype_of(data))
        if refusal is not None:
            _fail(data, source, target, place, refusal, ConversionDtypeError)
        refusal = target.shape_refusal(source.shape_of(data)) or source.refuse_to_leave(data)
        if refusal is not None:
            _fail(data, source, target, place, refusal)
    way, subject, reason = _choose(data, source, target, place, copy)
    if way.copies and copy is False:
        _fail(data, source, target, place, f"it needs a copy ({reason}); pass copy=None to allow one")
    if way.through_host and not allow_host:
        _fail(data, source, target, place, "would copy device memory to the host; pass allow_host=True")
    return way, subject, place, reason


def _choose(
    data: Array, source: Backend, target: Backend, place: GpuId, copy: bool | None
) -> tuple[_Way, Array, str]:
    """The cheapest way that keeps the aliasing rules, what to do it with, and why it isn't a cheaper one."""
    if source is target:
        way, reason = _choose_within(data, source, place, copy)
        return way, data, reason
    origin = source.device_of(data)
    if target.in_host_memory(place):
        view = source.host_view(data)
        if view is not None:
            way, reason = _choose_on_host(view, source, target, copy)
            return way, view, reason
        if source.in_host_memory(origin):
            return _UPLOAD, data, "its values are lazy and the copy carries them out"
        if target.immutable:
            return _DOWNLOAD_AND_COPY, data, "device memory is read into the host, then aligned"
        return _DOWNLOAD, data, "device memory is read into the host"
    if source.in_host_memory(origin):
        return _UPLOAD, data, "host memory is written to the device"
    way, reason = _choose_between_devices(source, target, origin, place, copy)
    return way, data, reason


def _choose_on_host(
    view: NDArray[Any], source: Backend, target: Backend, copy: bool | None
) -> tuple[_Way, str]:
    obstacle = target.lend_obstacle(view)
    if obstacle is not None:
        return _HOST_COPY, obstacle
    if copy is None:
        unsafe = may_share(view, source, target)
        return (_LEND, "shares host memory") if unsafe is None else (_HOST_COPY, unsafe)
    if copy:
        return _HOST_COPY, "copy=True never shares memory"
    return _LEND, "shared because copy=False asks for it"


def _choose_within(data: Array, source: Backend, place: GpuId, copy: bool | None) -> tuple[_Way, str]:
    origin = source.device_of(data)
    if origin == place:
        return (
            (_DUPLICATE, "copy=True never shares memory")
            if copy is True
            else (_IDENTITY, "it is there already")
        )
    if source.in_host_memory(origin) and source.in_host_memory(place) and copy is True:
        # Moves between logical devices of one memory may share it.
        return _UPLOAD, f"it is {place_text(origin)}"
    if source.can_move(origin, place):
        return _MOVE, f"it is {place_text(origin)}"
    return _ROUND_TRIP, f"{source.memory_type} can't copy between these devices"


def _choose_between_devices(
    source: Backend, target: Backend, origin: GpuId, place: GpuId, copy: bool | None
) -> tuple[_Way, str]:
    if not source.shares_with(target, "gpu"):
        return _ROUND_TRIP, f"{source.memory_type} and {target.memory_type} share no device memory"
    here, there = source.physical_id(origin), target.physical_id(place)
    if here is None or there is None:
        return _ROUND_TRIP, "the libraries don't tell whether their devices are the same one"
    if here != there:
        if source.physical_id(place) == there:
            return _MOVE_BORROW, f"it is {place_text(origin)}"
        return _ROUND_TRIP, "the libraries number these devices differently"
    if copy is True:
        return _BORROW_COPY, "copy=True never shares memory"
    if copy is None and target.immutable and not source.immutable:
        return _BORROW_COPY, f"{target.memory_type} takes shared memory to be immutable, and this isn't"
    if copy is None and source.immutable and not target.immutable:
        return _BORROW_COPY, f"{target.memory_type} would write to immutable memory"
    return _BORROW, "shares device memory"


def _perform(data: Array, source: Backend, target: Backend, place: GpuId, way: _Way, subject: Array) -> Array:
    try:
        return way.perform(subject, source, target, place)
    except MemcoreError:
        raise
    except Exception as error:  # any library may fail with any type: the user gets ours, chained
        if target.is_oom(error) or source.is_oom(error):
            nbytes = nbytes_of(source.shape_of(data), source.dtype_of(data))
            where = f"{target.memory_type} {place_text(place)}"
            raise OutOfDeviceMemoryError(
                f"no room for {nbytes} bytes of {target.memory_type} {place_text(place)}: {error}",
                device=where,
                requested=nbytes,
            ) from error
        _fail(data, source, target, place, f"{type(error).__name__}: {error}", MemoryConversionError, error)


def _counted(data: Array, source: Backend, target: Backend, place: GpuId, way: _Way, subject: Array) -> Array:
    start = time.perf_counter()
    result = _perform(data, source, target, place, way, subject)
    seconds = time.perf_counter() - start
    nbytes = way.copies * nbytes_of(source.shape_of(data), source.dtype_of(data))
    conversion_counters.record(source.memory_type, target.memory_type, way.route, nbytes, seconds)
    return result


def _fail(
    data: Array,
    source: Backend,
    target: Backend,
    gpu_id: object,
    reason: str,
    kind: type[MemoryConversionError] = MemoryConversionError,
    cause: BaseException | None = None,
) -> NoReturn:
    where = "in host memory" if gpu_id == "cpu" else f"on device {gpu_id!r}"
    raise kind(
        f"Failed to convert {source.memory_type} {source.noun} to {target.memory_type} {target.noun}",
        " ".join(reason.split()),
        str(source.describe(data)),
        f"{target.memory_type} {target.noun} {where}",
    ) from cause
