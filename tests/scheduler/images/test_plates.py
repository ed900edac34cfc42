"""Plates: where outputs go, the metadata before the first job, and channels that jobs write at once."""

import dataclasses
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import zarr

from scheduler.images.errors import OutputError
from scheduler.images.outputs import (
    Destination,
    WriteOptions,
    plan_outputs,
    prepare_output,
    verify_stack,
    write_stack,
)
from scheduler.images.sources import PlaneRef, StackSource, find_stacks, read_stack
from scheduler.images.zarr_out import levels_of, pyramid

VERSIONS = ["0.4", "0.5"]
SIZE = (1.5, 0.25, 0.5)


def read(source: StackSource) -> np.ndarray:
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    return out


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


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_all(targets, stack, options, **kwargs) -> None:
    for target in targets:
        place = {"channel": target.channel, "channels": target.channels}
        write_stack(target.path, stack, format="ome-zarr", options=options, **place, **kwargs)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("again", "options", "message"),
    [
        (
            {"channels": (2, 3)},
            {},
            r"A/01/1 holds channels 1, 2, 3 in 1 level, .* channels 2, 3 in 1 level",
        ),
        ({"channels": (3, 2, 1, 4)}, {}, r"this run would make that channels 1, 2, 3, 4"),
        ({"channels": (1, 2, 3)}, {"levels": 2}, r"in 1 level, and this run would .* in 2 levels: give the"),
        (
            {"channels": (1, 2, 3)},
            {"zarr_version": None},
            r"A/01 isn't of OME-Zarr 0..: set output.zarr",
        ),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_image_with_other_channels_is_left_alone(
    tmp_path, pixels, version, again, options, message, overwrite
):
    whole = WriteOptions(zarr_version=version)
    sources = plate_sources(sites=1, channels=(1, 2, 3))
    targets = prepare_output(tmp_path, TEMPLATE, sources, "ome-zarr", options=whole)
    write_all(targets, pixels((3, 16, 12)), whole)
    before = contents(tmp_path)
    other = "0.4" if version == "0.5" else "0.5"
    given = {"zarr_version": version} | options
    given["zarr_version"] = given["zarr_version"] or other
    with pytest.raises(OutputError, match=message):
        prepare_output(
            tmp_path, TEMPLATE, plate_sources(sites=1, **again, wells=("A01", "C01")), "ome-zarr",
            options=WriteOptions(**given), overwrite=overwrite,
        )  # fmt: skip
    assert contents(tmp_path) == before


@pytest.mark.parametrize("version", VERSIONS)
def test_wells_and_images_of_a_plate_stay_in_its_lists(tmp_path, pixels, version):
    options = WriteOptions(zarr_version=version)
    plan = {"format": "ome-zarr", "options": options, "overwrite": True}
    write_all(prepare_output(tmp_path, TEMPLATE, plate_sources(), **plan), pixels((3, 16, 12)), options)
    before = contents(tmp_path)
    prepare_output(tmp_path, TEMPLATE, plate_sources(wells=("A01",), sites=1), **plan)
    assert contents(tmp_path) == before
    more = [
        source
        for source in plate_sources(wells=("A02", "B11"), sites=3)
        if dict(source.fields)["site"] == "3"
    ]
    write_all(prepare_output(tmp_path, TEMPLATE, more, **plan), pixels((3, 16, 12)), options)
    name = "zarr.json" if version == "0.5" else ".zattrs"
    described = json.loads((tmp_path / "p1.ome.zarr" / name).read_text())
    plate = (described["attributes"]["ome"] if version == "0.5" else described)["plate"]
    assert [well["path"] for well in plate["wells"]] == ["A/01", "A/02", "B/11"]
    assert plate["field_count"] == 3
    found = [source.name for source in find_stacks(tmp_path, "p1.ome.zarr", select={"channel": 0})]
    assert found == [
        "well-A01_site-1_channel-0", "well-A01_site-2_channel-0", "well-A02_site-3_channel-0",
        "well-B11_site-1_channel-0", "well-B11_site-2_channel-0", "well-B11_site-3_channel-0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("group", "attributes", "message"),
    [
        ("p1.ome.zarr", {"ome": {"multiscales": []}}, r"p1.ome.zarr is there and isn't a plate"),
        ("p1.ome.zarr/A/01", {"ome": {"plate": {}}}, r"A/01 is there and isn't a well"),
        ("p1.ome.zarr", {"ome": {"plate": {"wells": [{"path": "A"}]}}}, r"has a well 'A', where ROW/COLUMN"),
    ],
)
def test_what_is_no_plate_is_left_alone(tmp_path, group, attributes, message):
    (tmp_path / group).mkdir(parents=True)
    there = tmp_path / group / "zarr.json"
    there.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=message):
        prepare_output(tmp_path, TEMPLATE, plate_sources(), "ome-zarr", overwrite=True)
    there.write_text("{")
    with pytest.raises(OutputError, match=r"zarr.json can't be read, remove it"):
        prepare_output(tmp_path, TEMPLATE, plate_sources(), "ome-zarr", overwrite=True)
    assert list(contents(tmp_path)) == list(before)


def test_images_that_arent_to_be_written_are_left_alone(tmp_path, pixels):
    targets = prepare_output(tmp_path, TEMPLATE, plate_sources(sites=1), "ome-zarr")
    write_all(targets, pixels((3, 16, 12)), WriteOptions())
    edited = tmp_path / "p1.ome.zarr/A/01/1/zarr.json"
    edited.write_text(edited.read_text().replace("DAPI", "Hoechst"))
    (tmp_path / "p1.ome.zarr/zarr.json").unlink()
    only = {tmp_path / "p1.ome.zarr/B/11/1"}
    prepare_output(tmp_path, TEMPLATE, plate_sources(sites=1), "ome-zarr", overwrite=True, only=only)
    assert "Hoechst" in edited.read_text()
    names = [source.channel_name for source in find_stacks(tmp_path, "p1.ome.zarr")]
    assert names == ["Hoechst", "channel 2", "DAPI", "channel 2"]


def test_a_channel_that_cant_be_read_keeps_its_place(tmp_path, pixels):
    first, *others = plate_sources(wells=("A01",), sites=1, channels=(1, 2, 3))
    broken = dataclasses.replace(first, channel_name=None, problem="bad")
    targets = prepare_output(tmp_path, TEMPLATE, [broken, *others], "ome-zarr")
    write_all(targets[1:], pixels((3, 16, 12)), WriteOptions())
    names = [source.channel_name for source in find_stacks(tmp_path, "p1.ome.zarr")]
    assert names == ["channel 1", "channel 2", "channel 3"]
    # it has been mended
    prepare_output(tmp_path, TEMPLATE, [first, *others], "ome-zarr", overwrite=True)
    names = [source.channel_name for source in find_stacks(tmp_path, "p1.ome.zarr")]
    assert names == ["DAPI", "channel 2", "channel 3"]


def test_a_plate_has_no_more_levels_than_its_pixels_give(tmp_path, pixels):
    options = WriteOptions(levels=6)
    stack = pixels((3, 16, 12))
    targets = prepare_output(tmp_path, TEMPLATE, plate_sources(), "ome-zarr", options=options)
    write_all(targets, stack, options)
    for target in targets:
        group = zarr.open_group(target.path, mode="r")
        assert [group[str(level)].shape[-2:] for level in range(4)] == [(16, 12), (8, 6), (4, 3), (2, 1)]
        assert len(group.attrs["ome"]["multiscales"][0]["datasets"]) == 4
    assert [levels_of(shape, 6) for shape in [(9, 1, 40), (1, 2, 3), (1, 3, 4), (1, 64, 64)]] == [1, 2, 2, 6]
    for edge in range(1, 20):
        assert len(list(pyramid(np.zeros((1, edge, 40)), 16))) == levels_of((1, edge, 40), 16)


def test_a_step_that_makes_the_image_smaller_is_told_how_many_levels_it_can_have(tmp_path, pixels):
    options = WriteOptions(levels=6)
    targets = prepare_output(tmp_path, TEMPLATE, plate_sources(), "ome-zarr", options=options)
    with pytest.raises(OutputError, match=r"has 4 levels, but \(3, 4, 3\) can be .* set output.levels to 2"):
        write_all(targets[:1], pixels((3, 4, 3)), options)


def test_a_channel_is_taken_by_its_chunks_alone(tmp_path, pixels):
    for version in VERSIONS:
        options = WriteOptions(zarr_version=version)
        folder = tmp_path / version
        targets = prepare_output(folder, TEMPLATE, plate_sources(), "ome-zarr", options=options)
        assert not any(target.taken for target in targets)
        write_all(targets[1:2], pixels((3, 16, 12)), options)
        assert [target.taken for target in targets[:3]] == [False, True, False]


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


@pytest.mark.parametrize(
    ("format", "template"),
    [("tiff", "{name}_{time}"), ("ome-zarr", "{name}.zarr/{well}/{site}")],
)
def test_a_broken_source_may_lack_what_its_file_would_tell(tmp_path, format, template):
    told = (("name", "a"), ("time", "0"), ("well", "A01"), ("site", "1"))
    good = StackSource(told, (PlaneRef("x"),), (3, 16, 12), "uint16")
    broken = StackSource((("name", "b"),), (PlaneRef("y"),), (1, 1, 1), "uint8")
    with pytest.raises(OutputError, match="no field"):
        plan_outputs(tmp_path, template, [good, broken], format)
    places = plan_outputs(tmp_path, template, [good, replace(broken, problem="damaged")], format)
    assert len({place.path for place in places}) == 2


def test_a_broken_source_has_no_place_in_the_plate(tmp_path):
    sources = plate_sources(wells=("A01",), sites=1, channels=(1,))
    broken = StackSource(
        (("well", "B02"), ("site", "1")), (PlaneRef("y"),), (1, 1, 1), "uint8", problem="bad"
    )
    targets = prepare_output(tmp_path, TEMPLATE, [*sources, broken], "ome-zarr")
    assert targets[1].path == tmp_path / "p1.ome.zarr/B/02/1"
    assert not (tmp_path / "p1.ome.zarr/B").exists()


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
