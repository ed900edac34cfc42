"""Blocks cover a stack exactly once, and none is larger than announced."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.blocks import cut, largest_block

SIDES = st.integers(1, 9)
SHAPES = st.tuples(SIDES, SIDES, SIDES)
HALOS = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
AXES = st.sampled_from(["z", "zyx"])


@given(SHAPES, AXES, st.integers(1, 40), HALOS)
def test_every_voxel_is_in_one_block_and_sees_its_neighbours(shape, axes, blocks, halo):
    voxels = np.arange(np.prod(shape)).reshape(shape)
    result = np.full(shape, -1)
    for block in cut(shape, axes, blocks, halo):
        assert (result[block.place] == -1).all()
        result[block.place] = voxels[block.read][block.keep]
        for read, place, reach, size in zip(block.read, block.place, halo, shape, strict=True):
            assert read.start == max(0, place.start - reach)
            assert read.stop == min(size, place.stop + reach)
    np.testing.assert_array_equal(result, voxels)


@given(SHAPES, AXES, st.integers(1, 40), HALOS)
def test_no_block_exceeds_the_largest(shape, axes, blocks, halo):
    limit = largest_block(shape, axes, blocks, halo)
    assert all(
        side <= bound
        for b in cut(shape, axes, blocks, halo)
        for side, bound in zip(b.shape, limit, strict=True)
    )


@given(SHAPES, AXES, st.integers(1, 40))
def test_there_are_as_many_blocks_as_asked_or_as_the_axes_allow(shape, axes, blocks):
    found = len(cut(shape, axes, blocks, (0, 0, 0)))
    most = shape[0] if axes == "z" else int(np.prod(shape))
    assert found >= min(blocks, most)


def test_along_z_only_planes_are_divided():
    blocks = cut((7, 5, 3), "z", 3, (1, 0, 0))
    assert [(block.place[0].start, block.place[0].stop) for block in blocks] == [
        (0, 1),
        (1, 3),
        (3, 5),
        (5, 7),
    ]
    assert all(block.place[1:] == (slice(0, 5), slice(0, 3)) for block in blocks)


@pytest.mark.parametrize(("halo", "expected"), [((3, 0, 0), (8, 64, 128)), ((0, 9, 9), (4, 128, 128))])
def test_the_axis_with_the_smaller_halo_is_cut_first(halo, expected):
    assert largest_block((8, 128, 128), "zyx", 2, halo) == expected
