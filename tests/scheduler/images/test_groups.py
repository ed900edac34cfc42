"""Several named stacks in one job, and arrays from files."""

import numpy as np
import pytest
import tifffile

from scheduler.images.arrays import read_array
from scheduler.images.errors import ImageError, InputError
from scheduler.images.groups import group_stacks
from scheduler.images.sources import StackSource, find_stacks, read_stack

PATTERN = "{well}_s{site}_z{z}_c{channel}.tif"
TWO_CHANNELS = {"image": {"channel": 1}, "nuclei": {"channel": 2}}


def test_two_channels_in_one_job(plate):
    folder, stacks = plate
    groups = group_stacks(find_stacks(folder, PATTERN), TWO_CHANNELS)
    assert [group.name for group in groups] == ["well-A01_site-1", "well-B02_site-1"]
    for group in groups:
        assert [name for name, _ in group.stacks] == ["image", "nuclei"]
        for name, channel in (("image", 1), ("nuclei", 2)):
            out = np.empty(group[name].shape, group[name].dtype)
            read_stack(group[name], out)
            np.testing.assert_array_equal(out, stacks[f"{group.name}_channel-{channel}"])


def test_channels_inside_a_file(tmp_path, pixels):
    data = pixels((2, 3, 8, 6))
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", metadata={"axes": "CZYX"})
    (tmp_path / "b.tif").write_bytes(b"damaged")
    sources = find_stacks(tmp_path, "{name}.tif")
    good, damaged = group_stacks(sources, {"image": {"channel": 0}, "nuclei": {"channel": 1}})
    assert good["nuclei"].fields == (("name", "a"), ("channel", "1"))
    assert damaged.fields == (("name", "b"),)
    with pytest.raises(ImageError, match=r"b.tif: not a readable TIFF"):
        read_stack(damaged["image"], np.empty((1, 1, 1), "uint8"))


def test_a_damaged_file_fails_the_groups_that_it_belongs_to_alone(tmp_path, pixels):
    for name in "ab":
        for channel in (1, 2):
            data = pixels((3, 2, 8, 6))
            path = tmp_path / f"{name}_c{channel}.tif"
            tifffile.imwrite(path, data, photometric="minisblack", metadata={"axes": "TZYX"})
    (tmp_path / "b_c2.tif").write_bytes(b"damaged")
    groups = group_stacks(find_stacks(tmp_path, "{name}_c{channel}.tif"), TWO_CHANNELS)
    names = [f"name-{name}_time-{time}" for name in "ab" for time in range(3)]
    assert [group.name for group in groups] == names
    for group in groups:
        damaged = group.name.startswith("name-b")
        assert not group["image"].problem
        assert ("b_c2.tif" in group["nuclei"].problem) == damaged

    (tmp_path / "b_c1.tif").write_bytes(b"damaged")
    *whole, damaged = group_stacks(find_stacks(tmp_path, "{name}_c{channel}.tif"), TWO_CHANNELS)
    assert not any(stack.problem for group in whole for _, stack in group.stacks)
    assert damaged.name == "name-b"
    assert all(stack.problem for _, stack in damaged.stacks)


def test_a_group_without_one_of_its_stacks_is_named(plate):
    folder, _ = plate
    for path in folder.glob("B02*_c2.tif"):
        path.unlink()
    with pytest.raises(
        InputError,
        match=r"each name needs one stack: well B02 site 1 has 0 stacks for 'nuclei' \(\{'channel': 2\}\)",
    ):
        group_stacks(find_stacks(folder, PATTERN), TWO_CHANNELS)


def test_an_ambiguous_selection_is_named(plate):
    folder, _ = plate
    with pytest.raises(
        InputError, match=r"well A01 site 1 has 2 stacks for 'image'.*; well B02 site 1 has 2"
    ):
        group_stacks(find_stacks(folder, PATTERN), {"image": {"channel": ["1", "2"]}})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "name at least one stack"),
        ({"image": {"chanel": 1}}, "image: select: there is no field 'chanel'; did you mean 'channel'"),
        ({"image": {"channel": 3}}, "image: select: no channel is 3; there are 2: 1, 2"),
    ],
)
def test_unusable_inputs(plate, inputs, message):
    folder, _ = plate
    with pytest.raises(InputError, match=message):
        group_stacks(find_stacks(folder, PATTERN), inputs)


def test_one_stack_a_job_when_nothing_is_selected_by(plate):
    folder, stacks = plate
    groups = group_stacks(find_stacks(folder, PATTERN), {"image": {}})
    assert [group.name for group in groups] == list(stacks)


def test_nothing_readable():
    with pytest.raises(InputError, match="no stack that can be read"):
        group_stacks([StackSource((), (), (1, 1, 1), "uint8", problem="x")], TWO_CHANNELS)


@pytest.mark.parametrize("dtype", ["float32", "uint16", ">f8"])
def test_an_array_from_npy(tmp_path, pixels, dtype):
    field = pixels((4, 5), "float64").astype(dtype)
    np.save(tmp_path / "flat.npy", field)
    found = read_array(tmp_path / "flat.npy")
    assert found.dtype.isnative
    assert found.flags.writeable
    np.testing.assert_array_equal(found, field)


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 5), (4, 5)), ((3, 4, 5), (3, 4, 5)), ((1, 4, 5), (4, 5))]
)
def test_an_array_from_tiff(tmp_path, pixels, shape, expected):
    data = pixels(shape, "float32")
    path = tmp_path / "flat {1}.tif"
    tifffile.imwrite(path, data, photometric="minisblack")
    found = read_array(path)
    assert (found.shape, found.dtype) == (expected, np.float32)
    np.testing.assert_array_equal(found, data.reshape(expected))


def test_arrays_that_cant_be_had(tmp_path, pixels):
    with pytest.raises(ImageError, match=r"nothing.tif: there is no such file"):
        read_array(tmp_path / "nothing.tif")
    with pytest.raises(ImageError, match=r"nothing.npy: not a readable .npy file: .*No such file"):
        read_array(tmp_path / "nothing.npy")
    tifffile.imwrite(tmp_path / "rgb.tif", pixels((4, 5, 3), "uint8"), photometric="rgb")
    with pytest.raises(ImageError, match="holds 3 images where one is wanted: sample-0, sample-1, sample-2"):
        read_array(tmp_path / "rgb.tif")
    (tmp_path / "bad.tif").write_bytes(b"x")
    with pytest.raises(ImageError, match="not a readable TIFF"):
        read_array(tmp_path / "bad.tif")
    np.save(tmp_path / "four.npy", np.zeros((2, 2, 2, 2)))
    with pytest.raises(ImageError, match=r"of numbers is wanted, not float64 \(2, 2, 2, 2\)"):
        read_array(tmp_path / "four.npy")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    with pytest.raises(ImageError, match="of numbers is wanted, not <U1"):
        read_array(tmp_path / "text.npy")


def test_a_pickle_in_an_npy_isnt_run(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"evil.npy: not a readable .npy file: .*(objects|pickle)"):
        read_array(tmp_path / "evil.npy")


def test_an_npy_that_claims_more_than_it_has(tmp_path):
    np.save(tmp_path / "big.npy", np.zeros((10, 10)))
    content = (tmp_path / "big.npy").read_bytes().replace(b"(10, 10), ", b"(10, 9999999999), ", 1)
    (tmp_path / "big.npy").write_bytes(content)
    with pytest.raises(ImageError, match=r"big.npy: not a readable .npy file"):
        read_array(tmp_path / "big.npy")
