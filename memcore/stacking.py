"""2-D slices to one [Z, Y, X] stack and back: one destination, filled once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from memcore.backend import Backend, nbytes_of, numpy_dtype
from memcore.conversion import convert_memory
from memcore.errors import DtypeError, MemcoreError, OutOfDeviceMemoryError, StackError
from memcore.host import aligned_empty
from memcore.info import place_text
from memcore.memory_type import Array, GpuId
from memcore.registry import backend_for, backend_of
from memcore.routes import deliver_host_array

if TYPE_CHECKING:
    from numpy.typing import NDArray


def stack_slices(
    slices: Iterable[Array] | Array, memory_type: str, gpu_id: object, *, out: Array | None = None
) -> Array:
    """2-D slices of any mix of memory types to one `[Z, Y, X]` array of `memory_type`, dtype unchanged.

    The values are copied once into one destination, which is then lent or transferred whole; slices that are
    on the target device already are stacked there. The result never shares memory with the slices.

    Parameters
    ----------
    slices : a sequence or an iterator of plain 2-D arrays with equal shape and dtype, or one 3-D array, taken
        as the sequence of its planes
    memory_type, gpu_id : where the stack is to live; NumPy ignores `gpu_id`
    out : a [Z, Y, X] array of that type, device and dtype to fill and return, which no slice is a view of;
        not for libraries of immutable arrays

    Raises
    ------
    StackError
        No slices, a slice that isn't 2-D, unequal shapes or dtypes (by index), or an `out` that doesn't fit.
    UnknownMemoryTypeError
        A slice is no plain array.
    DtypeError
        The target can't hold the dtype exactly.
    DeviceError
        The target has no such device.
    """
    target = backend_of(memory_type)
    place = target.validate_gpu_id(gpu_id)
    planes = _as_list(slices)
    if not planes:
        raise StackError("no slices to stack")
    plain = _all_plain(planes)
    sources = _checked(planes, plain)
    first = sources[0]
    shape, dtype = (len(planes), *first.shape_of(planes[0])), first.dtype_of(planes[0])
    if not plain:
        for index, (plane, source) in enumerate(zip(planes, sources, strict=True)):
            loss = None if source is target else source.refuse_to_leave(plane)
            if loss is not None:
                raise StackError(f"slice {index}: {loss}")
    refusal = target.dtype_refusal(dtype)
    if refusal is not None:
        raise DtypeError(f"can't stack {dtype} slices: {refusal}")
    refusal = target.shape_refusal(shape)
    if refusal is not None:
        raise StackError(refusal)
    if out is not None:
        _check_out(out, target, place, shape, dtype)
    try:
        return _fill(planes, sources, target, place, shape, dtype, out, plain)
    except MemcoreError:
        raise
    except Exception as error:  # any library may fail with any type: the user gets ours, chained
        what = f"a {target.memory_type} stack {shape} of {dtype} {place_text(place)}"
        if target.is_oom(error):
            where = f"{target.memory_type} {place_text(place)}"
            text = f"no room for {what}: {error}"
            raise OutOfDeviceMemoryError(text, device=where, requested=nbytes_of(shape, dtype)) from error
        raise StackError(f"no {what}: {type(error).__name__}: {error}") from error


def unstack_slices(
    array: Array, memory_type: str, gpu_id: object, validate_slices: bool = True
) -> list[Array]:
    """Split a `[Z, Y, X]` stack into Z slices of `[Y, X]`, dtype unchanged.

    The stack is converted whole, with one transfer at most. Slices may be views of `array`: keep it
    unchanged, or pass copies on.

    Parameters
    ----------
    array : a plain 3-D array of any memory type
    memory_type, gpu_id : where the slices are to live; NumPy ignores `gpu_id`
    validate_slices : check that each result is 2-D and of the type asked for; the input is always checked

    Raises
    ------
    StackError
        `array` is not 3-D.
    MemoryConversionError
        The conversion can't be done exactly.
    """
    source = backend_for(array)
    shape = source.shape_of(array)
    if len(shape) != 3:
        raise StackError(f"a stack is [Z, Y, X]; this {source.memory_type} {source.noun} has shape {shape}")
    target = backend_of(memory_type)
    stack = convert_memory(array, source.memory_type, memory_type, gpu_id)
    slices = target.unstack(stack)
    if validate_slices:
        dtype = source.dtype_of(array)
        for index, plane in enumerate(slices):
            if backend_for(plane) is not target or target.shape_of(plane) != shape[1:]:
                raise StackError(f"slice {index} came out as {target.shape_of(plane)}, not as {shape[1:]}")
            if target.dtype_of(plane) != dtype:
                raise DtypeError(f"slice {index} came out as {target.dtype_of(plane)}, not as {dtype}")
    return slices


def _checked(planes: Sequence[Array], plain: bool) -> list[Backend]:
    """The backend of each slice; the slices are 2-D and equal in shape and dtype."""
    source = backend_for(planes[0])
    first_shape, first_dtype = source.shape_of(planes[0]), source.dtype_of(planes[0])
    if plain and len(first_shape) == 2:
        return [source] * len(planes)
    sources = []
    for index, plane in enumerate(planes):
        source = backend_for(plane)
        shape, dtype = source.shape_of(plane), source.dtype_of(plane)
        if len(shape) != 2:
            raise StackError(f"slice {index} has shape {shape}: a slice is 2-D, [Y, X]")
        if shape != first_shape:
            raise StackError(f"slice {index} has shape {shape}, but slice 0 has {first_shape}")
        if dtype != first_dtype:
            raise StackError(
                f"slice {index} has dtype {dtype}, but slice 0 has {first_dtype}; "
                "give them one dtype with convert_dtype(array, dtype, rule)"
            )
        sources.append(source)
    return sources


def _all_plain(planes: Sequence[Array]) -> bool:
    """True if all are NumPy arrays of one shape and dtype, which a list comprehension tells fastest."""
    first = planes[0]
    if type(first) is not np.ndarray:
        return False
    shape, dtype = first.shape, first.dtype
    return all([type(p) is np.ndarray and p.shape == shape and p.dtype == dtype for p in planes])  # noqa: C419


def _as_list(slices: Iterable[Array] | Array) -> list[Array]:
    if isinstance(slices, list | tuple):
        return list(slices)
    if hasattr(slices, "shape") and hasattr(slices, "dtype"):
        source = backend_for(slices)
        shape = source.shape_of(slices)
        if len(shape) != 3:
            raise StackError(f"one array is stacked only if it is [Z, Y, X]; this one has shape {shape}")
        return source.unstack(slices)
    if isinstance(slices, str | bytes | dict) or not isinstance(slices, Iterable):
        raise StackError(
            f"slices are an iterable of 2-D arrays or one 3-D array, not {type(slices).__name__}"
        )
    return list(slices)


def _check_out(out: Array, target: Backend, place: GpuId, shape: tuple[int, ...], dtype: str) -> None:
    found = backend_for(out)
    if found is not target:
        raise StackError(f"out is a {found.memory_type} {found.noun}, not a {target.memory_type} one")
    if target.immutable:
        raise StackError(f"{target.memory_type} {target.noun}s can't be written to: leave out=None")
    if target.device_of(out) != place:
        raise StackError(f"out is {place_text(target.device_of(out))}, not {place_text(place)}")
    target.check_same_form(out, shape, dtype)


def _fill(
    planes: Sequence[Array],
    sources: Sequence[Backend],
    target: Backend,
    place: GpuId,
    shape: tuple[int, ...],
    dtype: str,
    out: Array | None,
    plain: bool,
) -> Array:
    source = sources[0]
    together = sources.count(source) == len(sources)
    on_device = not source.in_host_memory(source.device_of(planes[0]))
    if together and on_device and len({source.device_of(plane) for plane in planes}) == 1:
        # One stack where they are, and one transfer if they are to be elsewhere.
        if source is target and source.device_of(planes[0]) == place:
            return target.stack(planes, out)
        gathered = source.stack(planes, None)
        if out is None:
            return convert_memory(gathered, source.memory_type, target.memory_type, place)
        target.write_host(out, source.to_host(gathered))
        return out
    destination = None if out is None else target.host_view(out)
    host = aligned_empty(shape, numpy_dtype(dtype)) if destination is None else destination
    if destination is not None:
        if not destination.flags.writeable:
            raise StackError("out is read-only")
        if any(not step and length > 1 for step, length in zip(destination.strides, shape, strict=True)):
            raise StackError("out repeats its memory (broadcast or expanded): stack into an array of its own")
        _refuse_overlap(planes, sources, destination, plain)
    _fill_host(host, planes, sources, plain)
    if out is None:
        return deliver_host_array(host, target, place)
    if destination is None:
        target.write_host(out, host)
    return out


def _fill_host(host: NDArray[Any], planes: Sequence[Array], sources: Sequence[Backend], plain: bool) -> None:
    if plain and host.flags.c_contiguous:
        # One call for all planes: rows under rows are planes after planes.
        count, height, width = host.shape
        np.concatenate(planes, out=host.reshape(count * height, width), casting="no")
        return
    for z, (plane, source) in enumerate(zip(planes, sources, strict=True)):
        host[z] = source.to_host(plane)


def _refuse_overlap(
    planes: Sequence[Array], sources: Sequence[Backend], out: NDArray[Any], plain: bool
) -> None:
    """Filling plane by plane would overwrite slices that are views of `out` before they are read."""
    if plain and not any([np.may_share_memory(plane, out) for plane in planes]):  # noqa: C419  the faster way
        return
    for index, (plane, source) in enumerate(zip(planes, sources, strict=True)):
        view = source.host_view(plane)
        if view is not None and np.may_share_memory(view, out):
            raise StackError(f"slice {index} shares memory with out: stack into another array")
