"""Names of outputs: by fields, inside the output folder, one for each stack, and none that is read."""

from pathlib import Path

import pytest

from scheduler.images.errors import OutputError
from scheduler.images.naming import table_path
from scheduler.images.outputs import (
    output_path,
    output_paths,
    plan_outputs,
    template_fields,
    write_stack,
)
from scheduler.images.sources import PlaneRef, StackSource, find_stacks

FIELDS = {"well": "A01", "site": "1", "channel": "2"}


@pytest.mark.parametrize(
    ("template", "format", "expected"),
    [
        ("{well}_s{site}_c{channel}", "ome-tiff", "A01_s1_c2.ome.tif"),
        ("{well}_s{site}_c{channel}", "tiff", "A01_s1_c2.tif"),
        ("{well}/s{site}", "tiff", "A01/s1.tif"),
        ("{well}.ome.tif", "ome-tiff", "A01.ome.tif"),
        ("{well}.v2", "tiff", "A01.v2.tif"),
        ("{{{well}}}", "tiff", "{A01}.tif"),
        ("größe µ", "tiff", "größe µ.tif"),
    ],
)
def test_output_path(tmp_path, template, format, expected):
    assert output_path(tmp_path, template, FIELDS, format) == tmp_path / expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{wel}", "no field 'wel'; did you mean 'well'"),
        ("{well", "expected '}'"),
        ("{}", "a field is a name in braces"),
        ("{well.__class__}", "a field is a name in braces"),
        ("{well!r}", "a field is a name in braces"),
        ("{well:>900000000}", "a field is a name in braces"),
        ("../{well}", "isn't a name in the output folder"),
        ("/{well}", "isn't a name in the output folder"),
        ("a/../../{well}", "isn't a name in the output folder"),
        ("{well}/", "isn't a name in the output folder"),
        ("", "isn't a name in the output folder"),
    ],
)
def test_unusable_names(tmp_path, template, message):
    with pytest.raises(OutputError, match=message):
        output_path(tmp_path, template, FIELDS, "tiff")


@pytest.mark.parametrize("value", ["..", ".", "", "../x", "/etc/passwd", "a/b", "a\0b"])
def test_a_value_never_leads_elsewhere(tmp_path, value):
    with pytest.raises(OutputError, match=r"field well is .* which can't be part of a file name"):
        output_path(tmp_path, "{well}", {"well": value}, "tiff")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "A01").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        OutputError, match=r"outside of the output folder .*/out: a link leads to .*/elsewhere"
    ):
        output_path(tmp_path / "out", "{well}/s{site}", FIELDS, "tiff")


def test_a_link_within_the_folder_is_fine(tmp_path):
    (tmp_path / "out" / "real").mkdir(parents=True)
    (tmp_path / "out" / "A01").symlink_to(tmp_path / "out" / "real")
    assert output_path(tmp_path / "out", "{well}/s{site}", FIELDS, "tiff").name == "s1.tif"


def test_the_output_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    assert output_path(tmp_path / "out", "{well}", FIELDS, "tiff") == tmp_path / "out" / "A01.tif"


def test_an_unknown_format(tmp_path):
    with pytest.raises(OutputError, match="no output format 'ometiff'; did you mean 'ome-tiff'"):
        output_path(tmp_path, "{well}", FIELDS, "ometiff")


@pytest.mark.parametrize(
    ("template", "format", "message"),
    [
        ("sub/p.zarr/{well}/{site}", "ome-zarr", r"leads into p.zarr, which isn't its first part or"),
        (
            "p.ome.zarr/{well}/{site}",
            "tiff",
            r"leads into p.ome.zarr, .* isn't of format ome-zarr: for a plate",
        ),
        ("P.ZARR/{well}/{site}", "ome-zarr", r"leads into P.ZARR"),
        (".stackyard/{well}", "tiff", r"names that begin with .stackyard are for the records"),
        ("{well}/.stackyard-1-2.part", "ome-tiff", r"and for unfinished files"),
        ("{well}.zarr/.stackyard/1", "ome-zarr", r"names that begin with .stackyard"),
    ],
)
def test_names_that_mean_something_else(tmp_path, template, format, message):
    source = StackSource(tuple(FIELDS.items()), (PlaneRef("x"),), (1, 2, 3), "uint16")
    with pytest.raises(OutputError, match=message):
        plan_outputs(tmp_path, template, [source], format)


def test_an_image_may_be_named_as_a_zarr_and_lie_in_a_folder(tmp_path):
    path = output_path(tmp_path, "sub/{well}.ome.zarr", FIELDS, "ome-zarr")
    assert path == tmp_path / "sub/A01.ome.zarr"


def test_two_stacks_with_one_name(tmp_path):
    stacks = [FIELDS, FIELDS | {"channel": "1"}]
    with pytest.raises(OutputError, match=r"A01_s1.tif for both .*'channel': '2'.*; put \{channel\} into it"):
        output_paths(tmp_path, "{well}_s{site}", stacks, "tiff")
    paths = output_paths(tmp_path, "{well}_c{channel}", stacks, "tiff")
    assert [path.name for path in paths] == ["A01_c2.tif", "A01_c1.tif"]


def test_template_fields():
    assert template_fields("{well}/{{x}}_{site}{well}") == ["well", "site", "well"]


def test_an_output_that_is_an_input_is_refused(plate):
    folder, _ = plate
    sources = find_stacks(folder, "{well}_s{site}_z{z}_c{channel}.tif", select={"well": "A01", "channel": 1})
    (folder.parent / "link").symlink_to(folder)
    for place in (folder, folder.parent / "link", folder / ".." / folder.name):
        with pytest.raises(OutputError, match=r"A01_s1_z00_c1.tif is among the files that are read"):
            plan_outputs(place, "{well}_s{site}_z00_c{channel}", sources, "tiff")
    (beside,) = plan_outputs(folder, "{well}_s{site}_c{channel}", sources, "tiff")
    assert beside.path == folder / "A01_s1_c1.tif"


def test_an_output_folder_with_inputs_in_it_is_refused(tmp_path, pixels):
    write_stack(tmp_path / "a.ome.zarr", pixels((2, 4, 5)), format="ome-zarr")
    sources = find_stacks(tmp_path, "{name}.ome.zarr")
    with pytest.raises(OutputError, match=r"a.ome.zarr is among the files that are read"):
        plan_outputs(tmp_path, "{name}", sources, "ome-zarr")


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("a.b.ome.tif", "ome-tiff", "a.b.csv"),
        ("A.OME.TIF", "ome-tiff", "A.csv"),
        ("a.ome.tif", "tiff", "a.ome.csv"),
        ("a.zarr", "ome-zarr", "a.zarr.csv"),
    ],
)
def test_a_table_has_the_name_of_its_stack(name, format, expected):
    assert table_path(Path("out", name), format) == Path("out", expected)
