"""How the planes of one image in a file are ordered, and which stacks that gives."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scheduler.images.errors import ImageError
from scheduler.images.stack import PhysicalSize, PlaneRef, StackSource

# the axes inside a file that can be stacked along, and all fields that files give by themselves
STACKABLE = ("z", "channel", "time")
FILE_FIELDS = ("z", "channel", "time", "sample", "image", "well", "site")
_FIELD_OF_AXIS = {"Z": "z", "C": "channel", "T": "time"}


@dataclass(frozen=True, slots=True)
class Layout:
    """One image: `planes` in C order over `axes` with `sizes`.

    Each plane is `plane_shape` (Y, X) of `samples`. An image with a `problem` has no planes:
    it is there, and can't be read.
    """

    axes: str
    sizes: tuple[int, ...]
    planes: tuple[PlaneRef, ...]
    plane_shape: tuple[int, int]
    samples: int
    dtype: str
    physical_size_um: PhysicalSize | None = None
    channel_names: tuple[str | None, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    problem: str = ""


def broken_layout(fields: tuple[tuple[str, str], ...], problem: str) -> Layout:
    """An image that is there and can't be read."""
    return Layout("", (), (), (1, 1), 1, "uint8", fields=fields, problem=problem)


def stacks_of(layouts: list[Layout], stack_along: str, path: str) -> list[StackSource]:
    """One StackSource for each combination of the axes other than `stack_along`.

    Axes longer than 1 become fields with the position as value: `channel`, `time`, `sample` (of RGB). They
    come after the fields of the image itself: `image` in a file of several, `well` and `site` in a plate.
    A stack along `channel` has no channel's name, and only one along `z` has the distance of z planes.
    """
    return [source for layout in layouts for source in _stacks(layout, stack_along, path)]


def _stacks(layout: Layout, stack_along: str, path: str) -> Iterator[StackSource]:
    if layout.problem:
        yield broken(layout.fields, (PlaneRef(path),), layout.problem)
        return
    names = _axis_names(layout, stack_along, path)
    grid = np.arange(math.prod(layout.sizes)).reshape(layout.sizes)
    if stack_along in names:
        grid = np.moveaxis(grid, names.index(stack_along), -1)
        names.append(names.pop(names.index(stack_along)))
    else:
        grid = grid[..., np.newaxis]
        names.append("")
    for position in np.ndindex(grid.shape[:-1]):
        fields = [
            (name, str(index))
            for name, index, length in zip(names, position, grid.shape, strict=False)
            if length > 1
        ]
        at = dict(zip(names, position, strict=False))
        channel = int(at.get("channel", 0))
        named = stack_along != "channel" and channel < len(layout.channel_names)
        planes = tuple(layout.planes[int(plane)] for plane in grid[position])
        whole = StackSource(
            fields=layout.fields + tuple(fields),
            planes=planes,
            shape=(len(planes), *layout.plane_shape),
            dtype=layout.dtype,
            physical_size_um=_size_along(stack_along, layout.physical_size_um),
            channel_name=(layout.channel_names[channel] or None) if named else None,
        )
        yield from _samples(whole, layout.samples)


def broken(fields: tuple[tuple[str, str], ...], planes: tuple[PlaneRef, ...], problem: str) -> StackSource:
    """A stack that is there and can't be read; its shape is a place holder."""
    return StackSource(fields, planes, (len(planes), 1, 1), "uint8", problem=problem)


def _size_along(stack_along: str, size: PhysicalSize | None) -> PhysicalSize | None:
    return size if size is None or stack_along == "z" else (None, *size[1:])


def _axis_names(layout: Layout, stack_along: str, path: str) -> list[str]:
    # pages that are only one after another, with no axis named, are what is stacked
    names = [_FIELD_OF_AXIS.get(axis, stack_along) for axis in layout.axes]
    if len(set(names)) < len(names):
        raise ImageError(f"{path}: can't tell what its axes {layout.axes} of sizes {layout.sizes} mean")
    return names


def _samples(whole: StackSource, samples: int) -> Iterator[StackSource]:
    if samples == 1:
        yield whole
        return
    for sample in range(samples):
        yield StackSource(
            fields=(*whole.fields, ("sample", str(sample))),
            planes=tuple(PlaneRef(ref.path, ref.page, sample, ref.offset) for ref in whole.planes),
            shape=whole.shape,
            dtype=whole.dtype,
            physical_size_um=whole.physical_size_um,
            channel_name=whole.channel_name,
        )
