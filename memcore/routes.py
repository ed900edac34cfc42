"""The ways from one array to another, and which of them is the cheapest that keeps the aliasing rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from memcore.backend import Backend
from memcore.info import place_text
from memcore.memory_type import Array, GpuId
from memcore.sharing import may_share

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Route(StrEnum):
    """How a conversion gets its result."""

    IDENTITY = "identity"
    ZERO_COPY = "zero_copy"
    DEVICE_COPY = "device_copy"
    HOST_ROUND_TRIP = "host_round_trip"


def choose_way(
    data: Array, source: Backend, target: Backend, place: GpuId, copy: bool | None
) -> tuple[Way, Array, str]:
    """The cheapest way that keeps the aliasing rules, what to do it with, and why it isn't a cheaper one."""
    if source is target:
        way, reason = _choose_within(data, source, place, copy)
        return way, data, reason
    if target.in_host_memory(place):
        view = source.host_view(data)
        if view is not None:
            way, reason = _choose_on_host(view, source, target, copy)
            return way, view, reason
        if source.in_host_memory(source.device_of(data)):
            return _UPLOAD, data, "its values are lazy and the copy carries them out"
        if target.immutable:
            return _DOWNLOAD_AND_COPY, data, "device memory is read into the host, then aligned"
        if source.immutable and not target.keeps_read_only:
            # JAX keeps the host copy of its array, and gives the same one to everybody who asks.
            return _DOWNLOAD_AND_COPY, data, f"{target.memory_type} would write to the host copy it shares"
        return _DOWNLOAD, data, "device memory is read into the host"
    origin = source.device_of(data)
    if source.in_host_memory(origin):
        return _UPLOAD, data, "host memory is written to the device"
    obstacle = source.export_obstacle(data, packed=not target.imports_strides)
    way, reason = _choose_between_devices(source, target, origin, place, copy, obstacle)
    return way, data, reason


def _choose_on_host(
    view: NDArray[Any], source: Backend, target: Backend, copy: bool | None
) -> tuple[Way, str]:
    obstacle = target.lend_obstacle(view)
    if obstacle is not None:
        return _HOST_COPY, obstacle
    if copy is None:
        unsafe = may_share(view, source, target)
        return (_LEND, "shares host memory") if unsafe is None else (_HOST_COPY, unsafe)
    if copy:
        return _HOST_COPY, "copy=True never shares memory"
    return _LEND, "shared because copy=False asks for it"


def _choose_within(data: Array, source: Backend, place: GpuId, copy: bool | None) -> tuple[Way, str]:
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
    source: Backend,
    target: Backend,
    origin: GpuId,
    place: GpuId,
    copy: bool | None,
    obstacle: str | None = None,
) -> tuple[Way, str]:
    if not source.shares_with(target, "gpu"):
        return _ROUND_TRIP, f"{source.memory_type} and {target.memory_type} share no device memory"
    here, there = source.physical_id(origin), target.physical_id(place)
    if here is None or there is None:
        return _ROUND_TRIP, "the libraries don't tell whether their devices are the same one"
    if here != there:
        if source.physical_id(place) == there:
            alike = source.immutable == target.immutable and obstacle is None
            return (_MOVE_BORROW if alike else _MOVE_BORROW_COPY), f"it is {place_text(origin)}"
        return _ROUND_TRIP, "the libraries number these devices differently"
    if obstacle is not None:
        return _PACK_BORROW_COPY, obstacle
    if copy is True:
        return _BORROW_COPY, "copy=True never shares memory"
    if copy is None and target.immutable and not source.immutable:
        return _BORROW_COPY, f"{target.memory_type} takes shared memory to be immutable, and this isn't"
    if copy is None and source.immutable and not target.immutable:
        return _BORROW_COPY, f"{target.memory_type} would write to immutable memory"
    return _BORROW, "shares device memory"


def deliver_host_array(fresh: NDArray[Any], target: Backend, place: GpuId) -> Array:
    """An array of `target` from host memory that memcore has just filled and nobody else can see.

    Lent without a copy where the target lives in host memory, else one transfer.
    """
    if target.in_host_memory(place) and target.lend_obstacle(fresh) is None:
        return target.lend(fresh, place)
    return target.from_host(fresh, place)


@dataclass(frozen=True, slots=True)
class Way:
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
    origin = source.device_of(data)
    if not target.imports_in_stream_order:
        source.synchronize(origin)
    # torch exports only what is on the current device.
    with source.entered(origin):
        return target.import_device_array(source.export_device_array(data), place)


def _borrow_and_copy(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:
    twin = target.duplicate(_borrow(data, source, target, place))
    # The copy runs on the target's stream; on its own stream the source may be written to or freed meanwhile.
    target.synchronize(place)
    return twin


def _pack_and_copy(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:
    # Copied where it is first, which gives up strides and lazy values.
    return _borrow_and_copy(source.duplicate(data), source, target, place)


def _move_and_borrow(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:
    return _borrow(source.move(data, place), source, target, place)


def _move_and_copy(data: Array, source: Backend, target: Backend, place: GpuId) -> Array:
    return _pack_and_copy(source.move(data, place), source, target, place)


_IDENTITY = Way(Route.IDENTITY, 0, _keep)
_DUPLICATE = Way(Route.DEVICE_COPY, 1, _duplicate)
_LEND = Way(Route.ZERO_COPY, 0, _lend)
_HOST_COPY = Way(Route.DEVICE_COPY, 1, _copy)
_UPLOAD = Way(Route.DEVICE_COPY, 1, _upload)
_MOVE = Way(Route.DEVICE_COPY, 1, _move)
_BORROW = Way(Route.ZERO_COPY, 0, _borrow)
_BORROW_COPY = Way(Route.DEVICE_COPY, 1, _borrow_and_copy)
_PACK_BORROW_COPY = Way(Route.DEVICE_COPY, 2, _pack_and_copy)
_MOVE_BORROW = Way(Route.DEVICE_COPY, 1, _move_and_borrow)
_MOVE_BORROW_COPY = Way(Route.DEVICE_COPY, 3, _move_and_copy)
_DOWNLOAD = Way(Route.HOST_ROUND_TRIP, 1, _download, through_host=True)
_DOWNLOAD_AND_COPY = Way(Route.HOST_ROUND_TRIP, 2, _upload, through_host=True)
_ROUND_TRIP = Way(Route.HOST_ROUND_TRIP, 2, _upload, through_host=True)
