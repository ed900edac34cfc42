"""Conversion between memory types: exactly the values asked for, by the cheapest safe route, or an error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NoReturn

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
from memcore.routes import Route, Way, choose_way


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

    Parameters
    ----------
    data : plain array of `source_type`; the declaration is checked
    target_type : memory type of the result
    gpu_id : device index, or "cpu" for host memory of torch, TensorFlow and JAX; NumPy ignores it
    copy : True never shares memory with `data`; False never copies; None shares where that is possible and
        safe: a mutable buffer isn't lent to a library of immutable arrays, nor a read-only one to a library
        without that flag
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


def _decide(
    data: Array, source: Backend, target: Backend, gpu_id: object, copy: bool | None, allow_host: bool
) -> tuple[Way, Array, GpuId, str]:
    if copy is not None:
        copy = bool(copy)  # np.True_ and 1 are asked for as True is
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
    try:
        way, subject, reason = choose_way(data, source, target, place, copy)
    except MemcoreError:
        raise
    except Exception as error:  # looking at an array may fail too, inside a transformed function for one
        raise _translated(error, data, source, target, place) from error
    if way.copies and copy is False:
        _fail(data, source, target, place, f"it needs a copy ({reason}); pass copy=None to allow one")
    if way.through_host and not allow_host:
        _fail(data, source, target, place, "would copy device memory to the host; pass allow_host=True")
    return way, subject, place, reason


def _perform(data: Array, source: Backend, target: Backend, place: GpuId, way: Way, subject: Array) -> Array:
    try:
        return way.perform(subject, source, target, place)
    except MemcoreError:
        raise
    except Exception as error:  # any library may fail with any type: the user gets ours, chained
        raise _translated(error, data, source, target, place) from error


def _counted(data: Array, source: Backend, target: Backend, place: GpuId, way: Way, subject: Array) -> Array:
    start = time.perf_counter()
    result = _perform(data, source, target, place, way, subject)
    seconds = time.perf_counter() - start
    nbytes = way.copies * nbytes_of(source.shape_of(data), source.dtype_of(data))
    conversion_counters.record(source.memory_type, target.memory_type, way.route, nbytes, seconds)
    return result


def _translated(
    error: Exception, data: Array, source: Backend, target: Backend, place: GpuId
) -> MemcoreError:
    """memcore's error for a library's own."""
    if target.is_oom(error) or source.is_oom(error):
        nbytes = nbytes_of(source.shape_of(data), source.dtype_of(data))
        where = f"{target.memory_type} {place_text(place)}"
        text = f"no room for {nbytes} bytes of {where}: {error}"
        return OutOfDeviceMemoryError(text, device=where, requested=nbytes)
    reason = f"{type(error).__name__}: {error}"
    return _conversion_error(data, source, target, place, reason, MemoryConversionError)


def _fail(
    data: Array,
    source: Backend,
    target: Backend,
    gpu_id: object,
    reason: str,
    kind: type[MemoryConversionError] = MemoryConversionError,
    cause: BaseException | None = None,
) -> NoReturn:
    raise _conversion_error(data, source, target, gpu_id, reason, kind) from cause


def _conversion_error(
    data: Array,
    source: Backend,
    target: Backend,
    gpu_id: object,
    reason: str,
    kind: type[MemoryConversionError],
) -> MemoryConversionError:
    where = "in host memory" if gpu_id == "cpu" else f"on device {gpu_id!r}"
    return kind(
        f"Failed to convert {source.memory_type} {source.noun} to {target.memory_type} {target.noun}",
        " ".join(reason.split()),
        str(source.describe(data)),
        f"{target.memory_type} {target.noun} {where}",
    )
