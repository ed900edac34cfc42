"""Cutting a stack into blocks that can be worked on one after another, each with its halo."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

Shape = tuple[int, int, int]
Region = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class Block:
    """One block: `read` is its region of the stack with the halo, `place` its own region without.

    `keep` is where `place` lies within what was read.
    """

    read: Region
    keep: Region
    place: Region

    @property
    def shape(self) -> Shape:
        """Shape of what is read."""
        z, y, x = (part.stop - part.start for part in self.read)
        return z, y, x


def cut(shape: Shape, axes: str, blocks: int, halo: Shape) -> tuple[Block, ...]:
    """Cut a stack into at least `blocks` blocks along `axes` ("z" or "zyx"), or as many as it has planes.

    The blocks' own regions cover the stack exactly once. A halo ends at the stack's edge, where a step sees
    what it would see in the whole.
    """
    counts = _counts(shape, axes, blocks, halo)
    ranges = [list(_ranges(size, count)) for size, count in zip(shape, counts, strict=True)]
    return tuple(_block(shape, halo, own) for own in product(*ranges))


def largest_block(shape: Shape, axes: str, blocks: int, halo: Shape) -> Shape:
    """The shape, halo included, that no block of the same `cut` exceeds along any axis."""
    counts = _counts(shape, axes, blocks, halo)
    z, y, x = (_extent(*each) for each in zip(shape, counts, halo, strict=True))
    return z, y, x


def _counts(shape: Shape, axes: str, blocks: int, halo: Shape) -> Shape:
    """Blocks along each axis: halve the axis that leaves the smallest block, until there are enough."""
    counts = [1, 1, 1]
    free = range(len(axes))
    while prod(counts) < blocks:
        choices = []
        for axis in free:
            if counts[axis] < shape[axis]:
                tried = [*counts]
                tried[axis] = min(2 * counts[axis], shape[axis])
                voxels = prod(_extent(*each) for each in zip(shape, tried, halo, strict=True))
                choices.append((voxels, axis, tried))
        if not choices:
            break
        counts = min(choices)[2]
    return counts[0], counts[1], counts[2]


def _extent(size: int, count: int, halo: int) -> int:
    return min(size, -(-size // count) + (2 * halo if count > 1 else 0))


def _ranges(size: int, count: int) -> Iterable[tuple[int, int]]:
    """`count` ranges that differ by one at most."""
    edges = [size * number // count for number in range(count + 1)]
    return pairwise(edges)


def _block(shape: Shape, halo: Shape, own: Iterable[tuple[int, int]]) -> Block:
    read, keep, place = [], [], []
    for size, reach, (start, stop) in zip(shape, halo, own, strict=True):
        first, last = max(0, start - reach), min(size, stop + reach)
        read.append(slice(first, last))
        keep.append(slice(start - first, stop - first))
        place.append(slice(start, stop))
    return Block(_region(read), _region(keep), _region(place))


def _region(parts: list[slice]) -> Region:
    return parts[0], parts[1], parts[2]
