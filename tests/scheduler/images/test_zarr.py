"""OME-Zarr 0.4 and 0.5: written, read by another reader, and read again; plates; metadata that lies."""

import json
import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from scheduler.images.errors import ImageError, InputError, OutputError
from scheduler.images.outputs import (
    Destination,
    WriteOptions,
    output_path,
    plan_outputs,
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


def change(group: Path, version: str, edit) -> None:
    """Apply `edit` to a group's OME metadata."""
    path = group / (".zattrs" if version == "0.4" else "zarr.json")
    described = json.loads(path.read_text())
    edit(described if version == "0.4" else described["attributes"]["ome"])
    path.write_text(json.dumps(described))


def foreign_image(path: Path, data: np.ndarray, axes: str, version: str = "0.5", **options) -> None:
    """An image as other programs write it, by zarr alone; `options` go to create_array."""
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    array = group.create_array("data/full", shape=data.shape, dtype=data.dtype, **options)
    array[...] = data
    kinds = {"t": "time", "c": "channel"}
    multiscale = {
        "axes": [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes],
        "datasets": [
            {
                "path": "data/full",
                "coordinateTransformations": [{"type": "scale", "scale": [1.0] * len(axes)}],
            }
        ],
    }
    if version == "0.4":
        group.attrs["multiscales"] = [multiscale | {"version": version}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [multiscale]}


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
def test_images_of_other_programs(tmp_path, pixels, version, axes):
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
def test_big_endian_and_sharded_arrays(tmp_path, pixels, options):
    data = pixels((4, 8, 8)).astype(options.pop("dtype", "u2"))
    foreign_image(tmp_path / "a.zarr", data, "zyx", **options)
    (source,) = find_stacks(tmp_path, "a.zarr")
    assert source.dtype == "uint16"
    np.testing.assert_array_equal(read(source), data)


def test_a_chunk_is_decoded_once(tmp_path, pixels, monkeypatch):
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


def test_time_can_be_stacked_along(tmp_path, pixels):
    data = pixels((3, 2, 8, 6))
    foreign_image(tmp_path / "a.zarr", data, "tzyx", chunks=(2, 1, 8, 6))
    sources = find_stacks(tmp_path, "a.zarr", stack_along="time")
    assert [source.fields for source in sources] == [(("z", "0"),), (("z", "1"),)]
    for z, source in enumerate(sources):
        np.testing.assert_array_equal(read(source), data[:, z])


def test_a_series_of_images(tmp_path, pixels):
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


def test_zarr_in_a_pattern_with_planes(tmp_path, pixels):
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
def test_verify_misses_no_chunk(tmp_path, version):
    options = WriteOptions(zarr_version=version, chunks=(1, 8, 8))
    path = tmp_path / "a.ome.zarr"
    zeros = np.zeros((2, 16, 8), "uint16")
    write_stack(path, zeros, format="ome-zarr", options=options)
    assert verify_stack(path, (2, 16, 8), "uint16")
    assert not verify_stack(path, (2, 16, 9), "uint16")
    assert not verify_stack(path, (2, 16, 8), "int16")
    next(chunk for chunk in sorted((path / "0").rglob("0"), reverse=True) if chunk.is_file()).unlink()
    assert not verify_stack(path, (2, 16, 8), "uint16")
    shutil.rmtree(path / "0")
    assert not verify_stack(path, (2, 16, 8), "uint16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "zib"}, "no compression 'zib'; did you mean 'zlib'"),
        ({"zarr_version": "0.3"}, "no OME-Zarr version '0.3', only 0.4 and 0.5"),
        ({"chunks": (0, 1, 1)}, r"chunks are three lengths .* not \(0, 1, 1\)"),
        ({"chunks": (1, 1)}, "chunks are three lengths"),
        ({"levels": 0}, "levels must be 1 to 16, not 0"),
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


# Plates


def plate_sources(wells=("A01", "B11"), sites=2, channels=(1, 2), shape=(3, 16, 12)) -> list[StackSource]:
    return [
        StackSource(
            (("well", well), ("site", str(site)), ("channel", str(channel))),
            (PlaneRef("x"),), shape, "uint16", SIZE, {1: "DAPI"}.get(channel),
        )
        for well in wells for site in range(1, sites + 1) for channel in channels
    ]  # fmt: skip


TEMPLATE = "p1.ome.zarr/{well}/{site}"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plate_is_written_by_jobs_and_read_again(tmp_path, pixels, version):
    options = WriteOptions(zarr_version=version, levels=2)
    sources = plate_sources()
    targets = prepare_output(tmp_path, TEMPLATE, sources, "ome-zarr", options=options)
    assert targets[1] == Destination(tmp_path / "p1.ome.zarr/A/01/1", 1, 2)
    data = [pixels((3, 16, 12), seed=seed) for seed in range(len(targets))]
    for target, stack in zip(targets[::-1], data[::-1], strict=True):
        assert not verify_stack(target.path, stack.shape, "uint16", channel=target.channel)
        write_stack(
            target.path, stack, format="ome-zarr", options=options, provenance={"n": 1},
            channel=target.channel, channels=target.channels,
        )  # fmt: skip
        assert verify_stack(target.path, stack.shape, "uint16", channel=target.channel)
    again = find_stacks(tmp_path, "{plate}.ome.zarr")
    assert [source.fields for source in again[:3]] == [
        (("plate", "p1"), ("well", "A01"), ("site", "1"), ("channel", "0")),
        (("plate", "p1"), ("well", "A01"), ("site", "1"), ("channel", "1")),
        (("plate", "p1"), ("well", "A01"), ("site", "2"), ("channel", "0")),
    ]
    for source, stack in zip(again, data, strict=True):
        assert source.physical_size_um == SIZE
        np.testing.assert_array_equal(read(source), stack)
    assert [source.channel_name for source in again[:2]] == ["DAPI", "channel 2"]
    assert json.loads((targets[0].path / "provenance-c0.json").read_text()) == {"n": 1}
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("version", VERSIONS)
def test_another_reader_finds_the_plate(tmp_path, pixels, version):
    io = pytest.importorskip("ome_zarr.io", reason="needs ome-zarr")
    reader = pytest.importorskip("ome_zarr.reader", reason="needs ome-zarr")
    options = WriteOptions(zarr_version=version, levels=2)
    targets = prepare_output(tmp_path, TEMPLATE, plate_sources(), "ome-zarr", options=options)
    stack = pixels((3, 16, 12))
    for target in targets:
        write_stack(
            target.path, stack, format="ome-zarr", options=options,
            channel=target.channel, channels=target.channels,
        )  # fmt: skip
    nodes = list(reader.Reader(io.parse_url(tmp_path / "p1.ome.zarr"))())
    plate = next(spec for node in nodes for spec in node.specs if isinstance(spec, reader.Plate))
    assert sorted(plate.well_paths) == ["A/01", "B/11"]
    well = reader.Reader(io.parse_url(tmp_path / "p1.ome.zarr/A/01"))
    assert any(isinstance(spec, reader.Well) for node in well() for spec in node.specs)
    (image,) = list(reader.Reader(io.parse_url(tmp_path / "p1.ome.zarr/A/01/1"))())
    np.testing.assert_array_equal(image.data[0].compute(), np.stack([stack, stack]))
    assert image.metadata["channel_names"] == ["DAPI", "channel 2"]


def test_preparing_again_is_harmless_and_other_wells_arent(tmp_path):
    prepare_output(tmp_path, TEMPLATE, plate_sources(), "ome-zarr")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("zarr.json")}
    prepare_output(tmp_path, TEMPLATE, plate_sources(), "ome-zarr")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("zarr.json")} == before
    with pytest.raises(FileExistsError, match=r"p1.ome.zarr/zarr.json exists already"):
        prepare_output(tmp_path, TEMPLATE, plate_sources(wells=("C01",)), "ome-zarr")
    prepare_output(tmp_path, TEMPLATE, plate_sources(wells=("C01",)), "ome-zarr", overwrite=True)


def test_a_channel_is_overwritten_only_when_asked(tmp_path, pixels):
    (target, *_) = prepare_output(tmp_path, TEMPLATE, plate_sources(), "ome-zarr")
    place = {"format": "ome-zarr", "channel": target.channel, "channels": target.channels}
    write_stack(target.path, pixels((3, 16, 12)), **place)
    with pytest.raises(FileExistsError, match=r"p1.ome.zarr/A/01/1/0/c/0 exists already"):
        write_stack(target.path, pixels((3, 16, 12), seed=1), **place)
    write_stack(target.path, pixels((3, 16, 12), seed=2), **place, overwrite=True)
    found = zarr.open_array(target.path / "0")[0]
    np.testing.assert_array_equal(found, pixels((3, 16, 12), seed=2))
    assert not list(tmp_path.rglob("*.part"))


def test_channels_that_dont_fit_together(tmp_path, pixels):
    first, second, *_ = prepare_output(tmp_path, TEMPLATE, plate_sources(), "ome-zarr")
    write_stack(first.path, pixels((3, 16, 12)), format="ome-zarr", channel=0, channels=2)
    with pytest.raises(
        OutputError, match=r"doesn't fit the others: .*shape \[2, 4, 16, 12\] but \[2, 3, 16, 12\] is there"
    ):
        write_stack(second.path, pixels((4, 16, 12)), format="ome-zarr", channel=1, channels=2)
    assert not verify_stack(second.path, (4, 16, 12), "uint16", channel=1)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("template", "fields", "message"),
    [
        ("p.zarr/{well}", {}, r"a plate's images are NAME.zarr/\{well\}/\{site\}"),
        ("p.zarr/{well}/{site}", {"well": "1A"}, "'1A' isn't a well of a plate, as A01 is"),
        ("p.zarr/{well}/s_{site}", {}, "gives 's_1', but a plate has letters and digits only"),
        ("p.zarr/../{well}/{site}", {}, "isn't a name in the output folder"),
        ("p.zarr/{well}/{row}", {}, "no field 'row'"),
    ],
)
def test_unusable_plate_names(tmp_path, template, fields, message):
    base = {"well": "A01", "site": "1", "channel": "1"} | fields
    source = StackSource(tuple(base.items()), (PlaneRef("x"),), (1, 2, 3), "uint16")
    with pytest.raises(OutputError, match=message):
        prepare_output(tmp_path, template, [source], "ome-zarr")
    assert list(tmp_path.iterdir()) == []


def test_rows_and_columns_as_fields(tmp_path):
    fields = (("row", "C"), ("column", "7"), ("site", "1"))
    source = StackSource(fields, (PlaneRef("x"),), (1, 2, 3), "uint16")
    (target,) = plan_outputs(tmp_path, "p.zarr/{row}/{column}/{site}", [source], "ome-zarr")
    assert target == Destination(tmp_path / "p.zarr/C/7/1", 0, 1)


def test_only_channels_share_an_image(tmp_path):
    with pytest.raises(OutputError, match=r"for both .*'site': '1'.*'site': '2'.*; put \{site\} into it"):
        plan_outputs(tmp_path, "p.zarr/{well}/0", plate_sources(channels=(1,)), "ome-zarr")


def test_plain_outputs_are_planned_alike(tmp_path):
    sources = plate_sources(sites=1)
    targets = prepare_output(tmp_path / "new", "{well}_c{channel}", sources, "ome-tiff")
    assert [target.path.name for target in targets][:2] == ["A01_c1.ome.tif", "A01_c2.ome.tif"]
    assert {(target.channel, target.channels) for target in targets} == {(None, 1)}
    assert (tmp_path / "new").is_dir()


def test_a_broken_source_has_no_place_in_the_plate(tmp_path):
    sources = plate_sources(wells=("A01",), sites=1, channels=(1,))
    broken = StackSource(
        (("well", "B02"), ("site", "1")), (PlaneRef("y"),), (1, 1, 1), "uint8", problem="bad"
    )
    targets = prepare_output(tmp_path, TEMPLATE, [*sources, broken], "ome-zarr")
    assert targets[1].path == tmp_path / "p1.ome.zarr/B/02/1"
    assert not (tmp_path / "p1.ome.zarr/B").exists()


# Metadata that lies


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", ["../../secret/0", "/etc", "", ".", "a/../../b", 7, None])
def test_no_path_leads_outside(tmp_path, pixels, version, path):
    image = write_stack(
        tmp_path / "a.zarr", pixels((2, 8, 6)), format="ome-zarr", options=WriteOptions(zarr_version=version)
    )
    change(image, version, lambda ome: ome["multiscales"][0]["datasets"][0].update(path=path))
    with pytest.raises(InputError, match=r"a.zarr: its metadata leads to .* which isn't inside"):
        find_stacks(tmp_path, "a.zarr")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda ome: ome.pop("multiscales"), "a Zarr without an OME-Zarr image or plate"),
        (lambda ome: ome.update(multiscales=[]), "its metadata has no multiscales"),
        (lambda ome: ome.update(multiscales={}), "its metadata has no multiscales"),
        (lambda ome: ome.update(multiscales=["x"]), "its metadata's multiscales is 'x'"),
        (lambda ome: ome["multiscales"][0].pop("datasets"), "its metadata has no datasets"),
        (
            lambda ome: ome["multiscales"][0]["datasets"][0].update(path="1"),
            "not a readable OME-Zarr|can't be read",
        ),
        (lambda ome: ome["multiscales"][0]["axes"].reverse(), "its axes are x, y, z"),
        (lambda ome: ome["multiscales"][0]["axes"].pop(0), "its scale is .* for 2 axes"),
        (lambda ome: ome["multiscales"][0]["axes"][0].update(name="y"), "its axes are y, y, x"),
        (lambda ome: ome.update(plate={}), "its metadata has no wells"),
        (lambda ome: ome.update(plate=3), "its metadata's plate is 3"),
        (lambda ome: ome.update(plate={"wells": [{"path": "../.."}]}), "which isn't inside"),
        (lambda ome: ome.update(plate={"wells": [{"path": "A/1"}]}), r"a.zarr/A/1: "),
    ],
)
def test_metadata_that_isnt_ome_zarr(tmp_path, pixels, edit, message):
    image = write_stack(tmp_path / "a.zarr", pixels((2, 8, 6)), format="ome-zarr")
    change(image, "0.5", edit)
    with pytest.raises(InputError, match=message):
        find_stacks(tmp_path, "a.zarr")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_absurd_shape_is_refused_before_memory_is_taken(tmp_path, pixels, version):
    image = write_stack(
        tmp_path / "a.zarr", pixels((2, 8, 6)), format="ome-zarr", options=WriteOptions(zarr_version=version)
    )
    path = image / "0" / (".zarray" if version == "0.4" else "zarr.json")
    described = json.loads(path.read_text())
    described["shape"] = [2_000_000, 80_000, 60_000]
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"absurd header: claims 19200000000000000 bytes .*, stored in \d+"):
        find_stacks(tmp_path, "a.zarr")


def test_absurd_chunks_are_refused(tmp_path, pixels):
    image = write_stack(tmp_path / "a.zarr", pixels((2, 8, 6)), format="ome-zarr")
    path = image / "0" / "zarr.json"
    described = json.loads(path.read_text())
    described["chunk_grid"]["configuration"]["chunk_shape"] = [20_000, 80_000, 60_000]
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match="absurd header: chunks of 192000000000000 bytes in an array of 192"):
        find_stacks(tmp_path, "a.zarr")


class Payload:
    """What a pickle does when it is decoded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("place", ["filters", "compressor", "codecs", "codecs in shards"])
def test_a_codec_that_runs_code_is_refused(tmp_path, pixels, place):
    assert "pickle" in numcodecs.registry.codec_registry
    marker = tmp_path / "ran"
    version = "0.5" if place.startswith("codecs") else "0.4"
    options = {"chunks": (2, 8, 6)} if version == "0.4" else {"chunks": (1, 8, 6), "shards": (2, 8, 6)}
    foreign_image(tmp_path / "a.zarr", pixels((2, 8, 6)), "zyx", version, **options)
    array = tmp_path / "a.zarr" / "data" / "full"
    path = array / (".zarray" if version == "0.4" else "zarr.json")
    described = json.loads(path.read_text())
    by_id, by_name = {"id": "pickle", "protocol": 5}, {"name": "numcodecs.pickle", "configuration": {}}
    if place == "filters":
        described["filters"] = [by_id]
    elif place == "compressor":
        described["compressor"] = by_id
    elif place == "codecs":
        described["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, by_name]
    else:
        described["codecs"][0]["configuration"]["codecs"].append(by_name)
    path.write_text(json.dumps(described))
    for chunk in array.rglob("*"):
        if chunk.is_file() and not chunk.name.startswith((".", "zarr.json")):
            chunk.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(InputError, match="pickle"):
        find_stacks(tmp_path, "a.zarr")
    with pytest.raises(ImageError, match="pickle"):
        read(StackSource((), (PlaneRef(str(array)),), (1, 8, 6), "uint16"))
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:The data type")
def test_an_array_of_text_is_refused(tmp_path):
    foreign_image(tmp_path / "a.zarr", np.array([["ab", "c"]], "U2"), "yx")
    with pytest.raises(InputError, match=r"isn't numbers|isn't one that images are read with"):
        find_stacks(tmp_path, "a.zarr")


def test_a_damaged_chunk(tmp_path, pixels):
    image = write_stack(tmp_path / "a.zarr", pixels((2, 8, 6)), format="ome-zarr")
    for chunk in (image / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:-20])
    (source,) = find_stacks(tmp_path, "a.zarr")
    with pytest.raises(ImageError, match=r"a.zarr/0: not a readable OME-Zarr"):
        read(source)


def test_an_array_that_changed_since_it_was_found(tmp_path, pixels):
    path = tmp_path / "a.zarr"
    write_stack(path, pixels((2, 8, 6)), format="ome-zarr")
    (source,) = find_stacks(tmp_path, "a.zarr")
    for other, message in (
        (pixels((2, 8, 7)), r"uint16 \(8, 7\), but uint16 \(8, 6\) in the stack"),
        (pixels((2, 8, 6), "uint8"), r"uint8 \(8, 6\), but uint16 \(8, 6\)"),
        (pixels((1, 8, 6)), "has 1 planes, plane 1 is wanted"),
    ):
        write_stack(path, other, format="ome-zarr", overwrite=True)
        with pytest.raises(ImageError, match=message):
            read(source)
    shutil.rmtree(path)
    with pytest.raises(ImageError, match=r"a.zarr/0"):
        read(source)


def test_a_folder_that_is_no_zarr(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(InputError, match=r"a.zarr: a folder, and no OME-Zarr"):
        find_stacks(tmp_path, "a.zarr")


def test_a_damaged_image_of_a_plate_leaves_the_others(tmp_path, pixels):
    targets = prepare_output(tmp_path, TEMPLATE, plate_sources(), "ome-zarr")
    for target in targets:
        write_stack(
            target.path,
            pixels((3, 16, 12)),
            format="ome-zarr",
            channel=target.channel,
            channels=target.channels,
        )
    shutil.rmtree(tmp_path / "p1.ome.zarr/A/01/2/0")
    shutil.rmtree(tmp_path / "p1.ome.zarr/B")
    sources = find_stacks(tmp_path, "p1.ome.zarr")
    problems = {source.name: source.problem for source in sources}
    assert list(problems) == [
        "well-A01_site-1_channel-0", "well-A01_site-1_channel-1", "well-A01_site-2", "well-B11",
    ]  # fmt: skip
    assert "p1.ome.zarr/A/01/2" in problems["well-A01_site-2"]
    assert "p1.ome.zarr/B/11" in problems["well-B11"]
    np.testing.assert_array_equal(read(sources[0]), pixels((3, 16, 12)))


# Several jobs at once


@pytest.mark.parametrize("version", VERSIONS)
def test_jobs_that_write_channels_of_one_image_at_once(tmp_path, pixels, version):
    options = WriteOptions(zarr_version=version, levels=2)
    sources = plate_sources(wells=("A01",), sites=1, channels=range(1, 9))
    targets = prepare_output(tmp_path, TEMPLATE, sources, "ome-zarr", options=options)
    data = [pixels((3, 16, 12), seed=seed) for seed in range(8)]
    start = threading.Barrier(8)

    def write(target: Destination, stack: np.ndarray) -> None:
        start.wait(timeout=60)
        write_stack(
            target.path, stack, format="ome-zarr", options=options,
            channel=target.channel, channels=target.channels,
        )  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, targets, data, timeout=120))
    for source, stack in zip(find_stacks(tmp_path, "p1.ome.zarr"), data, strict=True):
        np.testing.assert_array_equal(read(source), stack)
    assert not list(tmp_path.rglob("*.part"))


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", VERSIONS)
def test_no_flipped_byte_escapes_as_another_error(tmp_path, pixels, version):
    path = write_stack(
        tmp_path / "a.zarr", pixels((2, 8, 6)), format="ome-zarr", options=WriteOptions(zarr_version=version)
    )
    files = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    generator = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        for file, whole in files.items():
            content = bytearray(whole)
            content[generator.integers(0, len(whole))] = generator.integers(0, 256)
            file.write_bytes(content)
        try:
            for source in find_stacks(tmp_path, "a.zarr"):
                assert source.nbytes < 1 << 20
                read(source)
        except (InputError, ImageError) as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert [message for message in messages if "a.zarr" not in message] == []
