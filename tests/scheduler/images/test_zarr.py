"""OME-Zarr images, 0.4 and 0.5: written, read by another reader, and again; pyramids; whole or absent."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from scheduler.images.errors import InputError, OutputError
from scheduler.images.outputs import (
    WriteOptions,
    output_path,
    prepare_output,
    verify_stack,
    write_stack,
)
from scheduler.images.sources import PlaneRef, StackSource, find_stacks, read_stack
from scheduler.images.zarr_out import pyramid

VERSIONS = ["0.4", "0.5"]
SIZE = (1.5, 0.25, 0.5)


def read(source: StackSource) -> np.ndarray:
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    return out


def attributes(group: Path, version: str) -> dict:
    if version == "0.4":
        return json.loads((group / ".zattrs").read_text())
    return json.loads((group / "zarr.json").read_text())["attributes"]


# Images


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("compression", ["default", "none", "zlib", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int64", "bool"])
def test_round_trip(tmp_path, pixels, version, compression, dtype):
    stack = pixels((5, 33, 20), dtype)
    path = output_path(tmp_path, "{well}", {"well": "A01"}, "ome-zarr")
    options = WriteOptions(zarr_version=version, compression=compression, chunks=(2, 16, 16))
    write_stack(
        path, stack, format="ome-zarr", physical_size_um=SIZE, channel_name="α-Tubulin",
        provenance={"gaussian": {"sigma": 2.0}}, options=options,
    )  # fmt: skip
    assert verify_stack(path, stack.shape, dtype)
    (source,) = find_stacks(tmp_path, "{well}.ome.zarr")
    assert (source.fields, source.shape, source.dtype) == ((("well", "A01"),), (5, 33, 20), dtype)
    assert (source.physical_size_um, source.channel_name) == (SIZE, "α-Tubulin")
    np.testing.assert_array_equal(read(source), stack)
    assert attributes(path, version)["stackyard"] == {"gaussian": {"sigma": 2.0}}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("version", VERSIONS)
def test_another_reader_finds_pixels_axes_sizes_and_channels(tmp_path, pixels, version):
    io = pytest.importorskip("ome_zarr.io", reason="needs ome-zarr")
    reader = pytest.importorskip("ome_zarr.reader", reason="needs ome-zarr")
    stack = pixels((3, 64, 48))
    options = WriteOptions(zarr_version=version, levels=3)
    path = write_stack(
        tmp_path / "a.ome.zarr", stack, format="ome-zarr", physical_size_um=SIZE, channel_name="DAPI",
        options=options,
    )  # fmt: skip
    (node,) = list(reader.Reader(io.parse_url(path))())
    assert [level.shape for level in node.data] == [(3, 64, 48), (3, 32, 24), (3, 16, 12)]
    np.testing.assert_array_equal(node.data[0].compute(), stack)
    assert [axis["name"] for axis in node.metadata["axes"]] == ["z", "y", "x"]
    assert [axis["unit"] for axis in node.metadata["axes"]] == ["micrometer"] * 3
    scales = [level[0]["scale"] for level in node.metadata["coordinateTransformations"]]
    assert scales == [[1.5, 0.25, 0.5], [1.5, 0.5, 1.0], [1.5, 1.0, 2.0]]
    assert node.metadata["channel_names"] == ["DAPI"]


def test_sizes_that_nobody_knows_arent_made_up(tmp_path, pixels):
    path = write_stack(tmp_path / "a.ome.zarr", pixels((2, 8, 6)), format="ome-zarr")
    axes = attributes(path, "0.5")["ome"]["multiscales"][0]["axes"]
    assert [axis.get("unit") for axis in axes] == [None] * 3
    assert find_stacks(tmp_path, path.name)[0].physical_size_um is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("axes", ["tczyx", "czyx", "ztyx", "zyx", "yx", "cyx"])
def test_images_of_other_programs(tmp_path, pixels, version, axes, foreign_image):
    sizes = {"t": 2, "c": 3, "z": 4, "y": 9, "x": 7}
    data = pixels(tuple(sizes[axis] for axis in axes))
    chunks = {"t": 1, "c": 2, "z": 3, "y": 4, "x": 7}
    foreign_image(tmp_path / "a.zarr", data, axes, version, chunks=tuple(chunks[axis] for axis in axes))
    for source in find_stacks(tmp_path, "{name}.zarr"):
        fields = dict(source.fields)
        index = {"t": int(fields.get("time", 0)), "c": int(fields.get("channel", 0)), "z": slice(None)}
        expected = data[tuple(index[axis] for axis in axes[:-2])]
        np.testing.assert_array_equal(read(source), expected.reshape(source.shape))
    assert len(find_stacks(tmp_path, "{name}.zarr")) == {"t": 2}.get(axes[0], 1) * (
        3 if "c" in axes else 1
    ) * (2 if axes == "ztyx" else 1)


@pytest.mark.parametrize("options", [{"dtype": ">u2"}, {"shards": (2, 8, 8), "chunks": (1, 4, 4)}])
def test_big_endian_and_sharded_arrays(tmp_path, pixels, options, foreign_image):
    data = pixels((4, 8, 8)).astype(options.pop("dtype", "u2"))
    foreign_image(tmp_path / "a.zarr", data, "zyx", **options)
    (source,) = find_stacks(tmp_path, "a.zarr")
    assert source.dtype == "uint16"
    np.testing.assert_array_equal(read(source), data)


def test_a_chunk_is_decoded_once(tmp_path, pixels, monkeypatch, foreign_image):
    data = pixels((7, 8, 6))
    foreign_image(tmp_path / "a.zarr", data, "zyx", chunks=(3, 8, 6))
    selections = []
    original = zarr.Array.get_basic_selection

    def watched(array, selection, **options):
        selections.append(selection)
        return original(array, selection, **options)

    monkeypatch.setattr(zarr.Array, "get_basic_selection", watched)
    (source,) = find_stacks(tmp_path, "a.zarr")
    np.testing.assert_array_equal(read(source), data)
    assert selections == [(slice(0, 3),), (slice(3, 6),), (slice(6, 7),)]


def test_time_can_be_stacked_along(tmp_path, pixels, foreign_image):
    data = pixels((3, 2, 8, 6))
    foreign_image(tmp_path / "a.zarr", data, "tzyx", chunks=(2, 1, 8, 6))
    sources = find_stacks(tmp_path, "a.zarr", stack_along="time")
    assert [source.fields for source in sources] == [(("z", "0"),), (("z", "1"),)]
    for z, source in enumerate(sources):
        np.testing.assert_array_equal(read(source), data[:, z])


def test_a_series_of_images(tmp_path, pixels, foreign_image):
    group = zarr.create_group(tmp_path / "a.zarr")
    group.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    images = [pixels((2, 8, 6), seed=index) for index in range(11)]
    for index, data in enumerate(images):
        foreign_image(tmp_path / "a.zarr" / str(index), data, "zyx")
    sources = find_stacks(tmp_path, "a.zarr", select={"image": [2, 10]})
    assert [source.fields for source in sources] == [(("image", "2"),), (("image", "10"),)]
    np.testing.assert_array_equal(read(sources[1]), images[10])


def test_a_path_that_is_the_zarr_itself(tmp_path, pixels):
    write_stack(tmp_path / "a.ome.zarr", pixels((2, 8, 6)), format="ome-zarr")
    with pytest.raises(
        InputError, match=r"a.ome.zarr is one OME-Zarr; give its folder as path and 'a.ome.zarr' as"
    ):
        find_stacks(tmp_path / "a.ome.zarr", "{name}")


def test_zarr_in_a_pattern_with_planes(tmp_path, pixels, foreign_image):
    for z in range(2):
        foreign_image(tmp_path / f"z{z}.zarr", pixels((8, 6)), "yx")
    with pytest.raises(InputError, match=r"z0.zarr is a folder, which holds whole stacks: leave \{z\} out"):
        find_stacks(tmp_path, "z{z}.zarr")


# Pyramids


def test_pyramid_averages_intensities_and_picks_labels(pixels):
    image = np.array([[[1, 2, 9], [3, 5, 9], [9, 9, 9]]], "uint16")
    assert [level.tolist() for level in pyramid(image, 5)][1:] == [[[[3]]]]
    labels = np.array([[[7, 0], [0, 9]]], "int32")
    assert list(pyramid(labels, 2))[1].tolist() == [[[7]]]
    assert list(pyramid(np.full((1, 2, 2), 65535, "uint16"), 2))[1].item() == 65535
    deep = pixels((2, 8, 8), "float64")
    np.testing.assert_allclose(list(pyramid(deep, 2))[1], deep.reshape(2, 4, 2, 4, 2).mean((2, 4)))


@pytest.mark.parametrize("channel", [None, 0])
def test_labels_of_few_bits_are_kept_whole_when_asked(tmp_path, channel):
    labels = np.array([[[7, 0], [0, 9]]], "uint16")
    options = WriteOptions(levels=2, downsample="nearest")
    source = StackSource((("well", "A01"), ("site", "1")), (PlaneRef("x"),), (1, 2, 2), "uint16")
    name = "a" if channel is None else "a.zarr/{well}/{site}"
    (place,) = prepare_output(tmp_path, name, [source], "ome-zarr", options=options)
    write_stack(place.path, labels, format="ome-zarr", options=options, channel=channel)
    assert zarr.open_array(place.path / "1", mode="r")[...].item() == 7


# Whole or not at all


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_is_overwritten_only_when_asked(tmp_path, pixels, version):
    path, options = tmp_path / "a.ome.zarr", WriteOptions(zarr_version=version)
    first, second = pixels((2, 8, 6)), pixels((3, 9, 7), "uint8")
    write_stack(path, first, format="ome-zarr", options=options)
    with pytest.raises(FileExistsError, match=r"a.ome.zarr exists already"):
        write_stack(path, second, format="ome-zarr", options=options)
    np.testing.assert_array_equal(read(find_stacks(tmp_path, path.name)[0]), first)
    write_stack(path, second, format="ome-zarr", options=options, overwrite=True)
    np.testing.assert_array_equal(read(find_stacks(tmp_path, path.name)[0]), second)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_at_the_output_is_replaced_not_followed(tmp_path, pixels):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    path = tmp_path / "a.ome.zarr"
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        write_stack(path, pixels((2, 8, 6)), format="ome-zarr")
    write_stack(path, pixels((2, 8, 6)), format="ome-zarr", overwrite=True)
    assert os.listdir(tmp_path / "precious") == ["file"]
    assert not path.is_symlink()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(tmp_path, pixels, monkeypatch, error):
    def failing(_descriptor):
        raise error

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(type(error)):
        write_stack(tmp_path / "a.ome.zarr", pixels((2, 8, 6)), format="ome-zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("channel", [None, 1])
def test_verify_misses_nothing(tmp_path, version, compression, channel):
    options = WriteOptions(zarr_version=version, chunks=(1, 8, 8), levels=2, compression=compression)
    zeros = np.zeros((2, 17, 9), "uint16")
    path = tmp_path / "a.ome.zarr"
    if channel is not None:
        sources = [
            StackSource((("well", "A01"), ("channel", str(index))), (PlaneRef("x"),), zeros.shape, "uint16")
            for index in range(2)
        ]
        path = prepare_output(tmp_path, "p.zarr/{well}/1", sources, "ome-zarr", options=options)[1].path
    place = {"channel": channel, "channels": 2}
    write_stack(path, zeros, format="ome-zarr", options=options, provenance={"run": "a"}, **place)

    def is_whole(shape=zeros.shape, dtype="uint16", **said) -> bool:
        return verify_stack(path, shape, dtype, channel=channel, provenance=said)

    assert is_whole()
    assert is_whole(run="a")
    assert not is_whole(run="b")
    assert not is_whole((2, 17, 10))
    assert not is_whole(dtype="int16")
    assert not verify_stack(path, zeros.shape, "uint16", channel=2 if channel else 0)
    # an array of Zarr 2 may do without attributes of its own
    spared = {path / level / ".zattrs" for level in "01"} | set(path.glob("provenance*"))
    files = [file for file in path.rglob("*") if file.is_file() and file not in spared]
    assert len(files) == {"0.4": 2, "0.5": 1}[version] + 2 + 2 * 3 * 2 + 2
    for file in files:
        content = file.read_bytes()
        file.unlink()
        assert not is_whole(), f"{file} gone"
        file.write_bytes(b"")
        assert not is_whole(), f"{file} empty"
        if compression == "none" or file.name.startswith((".z", "zarr")):
            file.write_bytes(content[:-1])
            assert not is_whole(), f"{file} cut short"
        file.write_bytes(content)
    assert is_whole()
    group = path / ("zarr.json" if version == "0.5" else ".zattrs")
    group.write_text(
        '{"zarr_format": 3, "node_type": "group", "attributes": {}}' if version == "0.5" else "{}"
    )
    assert not is_whole()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "zib"}, "no compression 'zib'; did you mean 'zlib'"),
        ({"zarr_version": "0.3"}, "no OME-Zarr version '0.3', only 0.4 and 0.5"),
        ({"chunks": (0, 1, 1)}, r"chunks are three lengths .* not \(0, 1, 1\)"),
        ({"chunks": (1, 1)}, "chunks are three lengths"),
        ({"levels": 0}, "levels must be 1 to 16, not 0"),
        ({"downsample": "means"}, "no downsample 'means'; did you mean 'mean'"),
    ],
)
def test_unusable_options(options, message):
    with pytest.raises(OutputError, match=message):
        WriteOptions(**options)


def test_lzw_is_for_tiff(tmp_path, pixels):
    with pytest.raises(OutputError, match="ome-zarr has no compression 'lzw'"):
        write_stack(
            tmp_path / "a.zarr", pixels((2, 8, 6)), format="ome-zarr", options=WriteOptions(compression="lzw")
        )
    assert list(tmp_path.iterdir()) == []


def test_provenance_that_is_no_json(tmp_path, pixels):
    path = write_stack(
        tmp_path / "a.ome.zarr", pixels((1, 8, 6)), format="ome-zarr",
        provenance={"nan": float("nan"), "path": Path("/x")},
    )  # fmt: skip
    assert attributes(path, "0.5")["stackyard"] == {"nan": "NaN", "path": "/x"}


@pytest.mark.parametrize(
    ("values", "window"),
    [([3.0, 7.0], (3.0, 7.0)), ([np.nan, 7.0], (0.0, 1.0)), ([5.0, 5.0], (0.0, 1.0))],
)
def test_viewers_are_told_the_range_of_values(tmp_path, values, window):
    stack = np.array(values, "float32").reshape(1, 1, 2)
    path = write_stack(tmp_path / "a.ome.zarr", stack, format="ome-zarr", channel_name="x")
    found = attributes(path, "0.5")["ome"]["omero"]["channels"][0]["window"]
    assert (found["start"], found["end"]) == window
