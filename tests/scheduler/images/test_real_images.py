"""Microscopy images that nobody here made: those that scikit-image's wheel carries."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from scheduler.images.outputs import output_path, verify_stack, write_stack
from scheduler.images.sources import StackSource, find_stacks, read_stack

data = pytest.importorskip("skimage.data", reason="needs scikit-image")
CARRIED = Path(data.__file__).parent


def read(source: StackSource) -> np.ndarray:
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    return out


def cut(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Strips of one size, from top to bottom, as the planes of a stack."""
    tops = range(0, image.shape[0] - height + 1, height)
    return np.stack([image[top : top + height, :width] for top in tops])


@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"tile": (16, 16), "compression": "zlib"}])
@pytest.mark.parametrize(("name", "window"), [("cell", (60, 500)), ("microaneurysms", (17, 100))])
def test_a_grey_image_cut_into_slices(tmp_path, name, window, options):
    stack = cut(getattr(data, name)(), *window)
    assert len(stack) > 5
    for z, plane in enumerate(stack):
        tifffile.imwrite(tmp_path / f"{name}_z{z}.tif", plane, **options)
    (source,) = find_stacks(tmp_path, "{name}_z{z}.tif")
    np.testing.assert_array_equal(read(source), stack)


def test_an_rgb_image_cut_into_slices_gives_a_stack_for_each_colour(tmp_path):
    stack = cut(data.immunohistochemistry(), 64, 512)
    for z, plane in enumerate(stack):
        tifffile.imwrite(tmp_path / f"ihc_z{z}.tif", plane, photometric="rgb")
    sources = find_stacks(tmp_path, "{name}_z{z}.tif")
    assert [source.name for source in sources] == [f"name-ihc_sample-{sample}" for sample in range(3)]
    for sample, source in enumerate(sources):
        np.testing.assert_array_equal(read(source), stack[..., sample])
    (green,) = find_stacks(tmp_path, "{name}_z{z}.tif", select={"sample": 1})
    assert green == sources[1]


def test_a_multi_page_tiff():
    (source,) = find_stacks(CARRIED, "{name}.tif", select={"name": "multipage"})
    assert (source.shape, source.dtype) == ((2, 15, 10), "uint8")
    np.testing.assert_array_equal(read(source), tifffile.imread(CARRIED / "multipage.tif"))


def test_a_multi_page_rgb_tiff():
    sources = find_stacks(CARRIED, "{name}.tif", select={"name": "multipage_rgb"})
    expected = tifffile.imread(CARRIED / "multipage_rgb.tif")
    assert [source.shape for source in sources] == [(2, 10, 10)] * 3
    for sample, source in enumerate(sources):
        np.testing.assert_array_equal(read(source), expected[:, sample])


@pytest.mark.parametrize("format", ["tiff", "ome-tiff"])
def test_from_slices_to_an_output_and_in_again(tmp_path, format):
    stack = cut(data.cell(), 60, 500)
    for z, plane in enumerate(stack):
        tifffile.imwrite(
            tmp_path / f"cell_z{z:02d}.tif", plane, imagej=True, resolution=(2.0, 2.0),
            metadata={"unit": "um", "spacing": 0.75},
        )  # fmt: skip
    (source,) = find_stacks(tmp_path, "{name}_z{z}.tif")
    path = output_path(tmp_path / "out", "{name}", dict(source.fields), format)
    write_stack(path, read(source), format=format, physical_size_um=source.physical_size_um)
    assert verify_stack(path, source.shape, source.dtype)
    (again,) = find_stacks(tmp_path / "out", path.name)
    assert (again.shape, again.dtype, again.physical_size_um) == (stack.shape, "uint8", (0.75, 0.5, 0.5))
    np.testing.assert_array_equal(read(again), stack)
