"""OME-TIFF in: axes in any order, units, channel names, and claims that the pages don't keep."""

import itertools
import re

import numpy as np
import pytest
import tifffile

from scheduler.images.errors import ImageError, InputError
from scheduler.images.ome import OmeXmlError, micrometres, parse_ome
from scheduler.images.ome_planes import place_planes
from scheduler.images.sources import find_stacks, read_stack

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def ome_xml(pixels: str = "", body: str = "<TiffData/>", root: str = "") -> str:
    """An OME document of one image of 6 planes, Z 3 and C 2, with its attributes and elements replaced."""
    attributes = {
        "DimensionOrder": "XYZCT", "Type": "uint16",
        "SizeX": "5", "SizeY": "4", "SizeZ": "3", "SizeC": "2", "SizeT": "1",
    } | dict(re.findall(r'(\w+)="([^"]*)"', pixels))  # fmt: skip
    text = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    image = f'<Image ID="Image:0" Name="cells"><Pixels ID="Pixels:0" {text}>{body}</Pixels></Image>'
    return f'<OME xmlns="{NAMESPACE}" {root}>{image}</OME>'


@pytest.mark.parametrize("order", ["".join(axes) for axes in itertools.permutations("TZC")])
def test_every_order_of_axes(tmp_path, pixels, order):
    sizes = {"T": 2, "Z": 3, "C": 4}
    data = pixels((*(sizes[axis] for axis in order), 7, 5))
    tifffile.imwrite(
        tmp_path / "a.ome.tif", data, ome=True, photometric="minisblack", metadata={"axes": order + "YX"}
    )
    sources = find_stacks(tmp_path, "{name}.ome.tif")
    assert len(sources) == 8
    for source in sources:
        fields = dict(source.fields)
        index = {"T": int(fields["time"]), "C": int(fields["channel"]), "Z": slice(None)}
        out = np.empty(source.shape, source.dtype)
        read_stack(source, out)
        np.testing.assert_array_equal(out, data[tuple(index[axis] for axis in order)])


def test_physical_sizes_units_and_channel_names(tmp_path, pixels):
    metadata = {
        "axes": "CZYX",
        "PhysicalSizeX": 325.0, "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.000325, "PhysicalSizeYUnit": "mm",
        "PhysicalSizeZ": 1.5,
        "Channel": {"Name": ["DAPI", "α-Tubulin"]},
    }  # fmt: skip
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels((2, 4, 8, 6)), ome=True, metadata=metadata)
    sources = find_stacks(tmp_path, "{name}.ome.tif")
    assert [source.channel_name for source in sources] == ["DAPI", "α-Tubulin"]
    assert sources[0].physical_size_um == pytest.approx((1.5, 0.325, 0.325))


@pytest.mark.parametrize(
    ("along", "size", "names"),
    [
        ("z", (1.5, 0.25, 0.5), ["DAPI", "Tubulin"]),
        ("time", (None, 0.25, 0.5), ["DAPI", "Tubulin"]),
        ("channel", (None, 0.25, 0.5), [None]),
    ],
)
def test_only_what_holds_along_the_stacked_axis_is_told(tmp_path, pixels, along, size, names):
    metadata = {
        "axes": "TCZYX",
        "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 1.5,
        "Channel": {"Name": ["DAPI", "Tubulin"]},
    }  # fmt: skip
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels((1, 2, 1, 8, 6)), ome=True, metadata=metadata)
    sources = find_stacks(tmp_path, "{name}.ome.tif", stack_along=along)
    assert [source.channel_name for source in sources] == names
    assert {source.physical_size_um for source in sources} == {size}


def test_planes_of_several_files_along_channel_are_of_no_channel(tmp_path, pixels):
    for channel, name in enumerate(["DAPI", "Tubulin"]):
        metadata = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "Channel": {"Name": name}}
        tifffile.imwrite(tmp_path / f"a_c{channel}.ome.tif", pixels((8, 6)), ome=True, metadata=metadata)
    (source,) = find_stacks(tmp_path, "{name}_c{channel}.ome.tif", stack_along="channel")
    assert (source.shape, source.channel_name) == ((2, 8, 6), None)


def test_rgb_with_ome_metadata(tmp_path, pixels):
    data = pixels((2, 8, 6, 3), "uint8")
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, photometric="rgb", metadata={"axes": "ZYXS"})
    sources = find_stacks(tmp_path, "{name}.ome.tif", select={"sample": 1})
    out = np.empty((2, 8, 6), "uint8")
    read_stack(sources[0], out)
    np.testing.assert_array_equal(out, data[..., 1])


def test_several_images_in_one_file(tmp_path, pixels):
    first, second = pixels((3, 8, 6)), pixels((2, 5, 4), "uint8")
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(first, photometric="minisblack", metadata={"axes": "ZYX"})
        writer.write(second, photometric="minisblack", metadata={"axes": "ZYX"})
    sources = find_stacks(tmp_path, "{name}.ome.tif")
    assert [source.fields[-1] for source in sources] == [("image", "0"), ("image", "1")]
    for source, data in zip(sources, (first, second), strict=True):
        out = np.empty(source.shape, source.dtype)
        read_stack(source, out)
        np.testing.assert_array_equal(out, data)


def test_a_pyramid_is_read_at_full_resolution(tmp_path, pixels):
    data = pixels((2, 64, 64))
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(data, photometric="minisblack", subifds=1, tile=(16, 16), metadata={"axes": "ZYX"})
        writer.write(data[:, ::2, ::2], photometric="minisblack", subfiletype=1, tile=(16, 16))
    (source,) = find_stacks(tmp_path, "{name}.ome.tif")
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    np.testing.assert_array_equal(out, data)


def write_set(folder, data, names):
    """A set of OME-TIFF files with one plane in each, every one of them with the metadata of all."""
    body = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:{name}</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    for plane, name in zip(data, names, strict=True):
        size = f'SizeC="1" SizeZ="{len(data)}" PhysicalSizeX="0.5" PhysicalSizeY="0.5" PhysicalSizeZ="2"'
        xml = ome_xml(size, body, root=f'UUID="urn:{name}"')
        tifffile.imwrite(folder / name, plane, description=xml, metadata=None)


def test_a_set_of_files_is_one_stack(tmp_path, pixels):
    data = pixels((3, 4, 5))
    write_set(tmp_path, data, ["s_c.ome.tif", "s_a.ome.tif", "s_b.ome.tif"])
    (source,) = find_stacks(tmp_path, "{name}.ome.tif")
    assert source.fields == (("name", "s_a"),)
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    np.testing.assert_array_equal(out, data)


def test_a_set_of_files_by_its_planes(tmp_path, pixels):
    data = pixels((3, 4, 5))
    write_set(tmp_path, data, [f"s_z{z}.ome.tif" for z in range(3)])
    (source,) = find_stacks(tmp_path, "{name}_z{z}.ome.tif")
    assert (source.fields, source.physical_size_um) == ((("name", "s"),), (2.0, 0.5, 0.5))
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    np.testing.assert_array_equal(out, data)


def test_a_set_with_a_file_missing(tmp_path, pixels):
    write_set(tmp_path, pixels((3, 4, 5)), ["a.ome.tif", "b.ome.tif", "c.ome.tif"])
    (tmp_path / "b.ome.tif").unlink()
    with pytest.raises(
        InputError, match=r"a.ome.tif: its OME-XML places planes in 'b.ome.tif', which isn't there"
    ):
        find_stacks(tmp_path, "{name}.ome.tif")


def test_a_set_whose_other_file_has_another_shape(tmp_path, pixels):
    write_set(tmp_path, pixels((2, 4, 5)), ["a.ome.tif", "b.ome.tif"])
    tifffile.imwrite(tmp_path / "b.ome.tif", pixels((4, 6)))
    source = find_stacks(tmp_path, "{name}.ome.tif")[0]
    with pytest.raises(ImageError, match=r"b.ome.tif page 0: uint16 \(4, 6\), but uint16 \(4, 5\)"):
        read_stack(source, np.empty(source.shape, source.dtype))


@pytest.mark.parametrize("name", ["../secret.tif", "/etc/passwd", "..", "sub/../../secret.tif"])
def test_no_file_elsewhere_is_opened_whatever_the_header_names(tmp_path, pixels, name):
    tifffile.imwrite(tmp_path / "secret.tif", pixels((4, 5)))
    inside = tmp_path / "in"
    (inside / "sub").mkdir(parents=True)
    write_set(inside, pixels((1, 4, 5)), ["a.ome.tif"])
    xml = ome_xml(
        'SizeZ="2" SizeC="1"',
        '<TiffData IFD="0" PlaneCount="1"/>'
        f'<TiffData FirstZ="1" IFD="0"><UUID FileName="{name}">urn:uuid:1</UUID></TiffData>',
        root='UUID="urn:uuid:0"',
    )
    tifffile.imwrite(inside / "a.ome.tif", pixels((4, 5)), description=xml, metadata=None)
    with pytest.raises(InputError, match=re.escape(f"places planes in {name!r}, which isn't beside it")):
        find_stacks(inside, "{name}.ome.tif")


def test_a_renamed_file_knows_itself():
    body = '<TiffData IFD="0" PlaneCount="6"><UUID FileName="old.ome.tif">urn:uuid:7</UUID></TiffData>'
    (image,) = parse_ome(ome_xml(body=body, root='UUID="urn:uuid:7"'), "new.ome.tif")
    assert place_planes(image, lambda _: 6) == [("", page) for page in range(6)]


def test_planes_in_any_order_of_pages():
    body = "".join(
        f'<TiffData FirstZ="{z}" FirstC="{c}" IFD="{5 - (2 * z + c)}"/>' for z in range(3) for c in range(2)
    )
    (image,) = parse_ome(ome_xml(body=body), "a")
    assert (image.axes, image.sizes) == ("TCZ", (1, 2, 3))
    assert [page for _, page in place_planes(image, lambda _: 6)] == [5, 3, 1, 4, 2, 0]


@pytest.mark.parametrize(
    ("pixels", "body", "pages", "problem"),
    [
        ("", "<TiffData/>", 5, "claims 6 planes (T 1, C 2, Z 3), the file holds 5"),
        (
            'SizeZ="2000000000"',
            "<TiffData/>",
            6,
            "claims 4000000000 planes (T 1, C 2, Z 2000000000), the file holds 6",
        ),
        ("", '<TiffData IFD="4"/>', 6, "names no page for 5 of 6 planes, the first T 0, C 0, Z 1"),
        ("", "", 6, "names no page for 6 of 6 planes"),
        ("", '<TiffData/><TiffData IFD="2" FirstZ="1"/>', 6, "gives two pages for plane T 0, C 0, Z 1"),
        ("", '<TiffData FirstC="2"/>', 6, "places a page at C 2, beyond SizeC 2"),
    ],
)
def test_claims_are_held_against_the_pages(pixels, body, pages, problem):
    (image,) = parse_ome(ome_xml(pixels, body), "a")
    with pytest.raises(OmeXmlError, match=re.escape(problem)):
        place_planes(image, lambda _: pages)


@pytest.mark.parametrize("body", ["<TiffData/>", '<TiffData IFD="0" PlaneCount="2000000000"/>'])
def test_a_block_ends_with_the_planes(body):
    (image,) = parse_ome(ome_xml(body=body), "a")
    assert place_planes(image, lambda _: 9) == [("", page) for page in range(6)]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<OME", "can't be parsed"),
        ("", "can't be parsed"),
        ("<ROI/>", "'ROI', not OME"),
        ("<OME/>", "holds no image"),
        ('<OME><BinaryOnly MetadataFile="x.companion.ome"/></OME>', "companion file 'x.companion.ome'"),
        (ome_xml('DimensionOrder="ZYXCT"'), "DimensionOrder is 'ZYXCT'"),
        (ome_xml('SizeZ="-1"'), "SizeZ as '-1'"),
        (ome_xml('SizeZ="99999999999999999999"'), "SizeZ as '99999999999999999999'"),
        (ome_xml('SizeX="wide"'), "SizeX as 'wide'"),
        (ome_xml(body='<Channel SamplesPerPixel="3"/>'), "SizeC is 2, no multiple of SamplesPerPixel 3"),
    ],
)
def test_broken_xml(xml, message):
    with pytest.raises(OmeXmlError, match=re.escape(message)):
        parse_ome(xml, "a")


def test_entities_are_refused_before_they_expand():
    laughs = '<!DOCTYPE OME [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    with pytest.raises(OmeXmlError, match="declares entities"):
        parse_ome(laughs + ome_xml(), "a")


def test_a_file_whose_xml_is_broken_is_named(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels((4, 5)), description="<OME><Image></OME>", metadata=None)
    with pytest.raises(InputError, match=r"a.tif: its OME-XML can't be parsed: mismatched tag"):
        find_stacks(tmp_path, "{name}.tif")


def test_a_size_that_isnt_the_pages(tmp_path, pixels):
    tifffile.imwrite(
        tmp_path / "a.tif", pixels((4, 9)), metadata=None, description=ome_xml('SizeZ="1" SizeC="1"')
    )
    with pytest.raises(InputError, match="OME-XML says 4 × 5 pixels of 1 samples, page 0 is 4 × 9 of 1"):
        find_stacks(tmp_path, "{name}.tif")


def test_missing_planes_of_one_file_leave_the_others(tmp_path, pixels):
    good = pixels((2, 4, 5))
    tifffile.imwrite(tmp_path / "good.tif", good, ome=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "bad.tif", pixels((4, 5)), metadata=None, description=ome_xml())
    bad, fine = find_stacks(tmp_path, "{name}.tif")
    assert fine.problem == ""
    with pytest.raises(
        ImageError, match=r"bad.tif: its OME-XML claims 6 planes \(T 1, C 2, Z 3\), the file holds 1"
    ):
        read_stack(bad, np.empty(bad.shape, bad.dtype))


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ("0.5", None, 0.5),
        ("0.5", "µm", 0.5),
        ("0.5", "μm", 0.5),
        ("65", "nm", 0.065),
        ("5", "Å", 0.0005),
        ("1", "mm", 1000.0),
        (2, "cm", 20000.0),
        ("1", "pixel", None),
        ("1", "reference frame", None),
        ("0", "µm", None),
        ("-1", "µm", None),
        ("nan", "µm", None),
        ("inf", "µm", None),
        ("wide", "µm", None),
        (None, "µm", None),
    ],
)
def test_micrometres(value, unit, expected):
    assert micrometres(value, unit) == (None if expected is None else pytest.approx(expected))


def test_one_page_in_a_pattern_of_planes_is_a_plane_whatever_its_xml_claims(tmp_path, pixels):
    data = pixels((2, 4, 5))
    size = 'SizeC="1" SizeZ="9" PhysicalSizeX="0.5" PhysicalSizeY="0.5"'
    xml = ome_xml(size, '<Channel Name="DAPI"/><TiffData/>')
    for z in range(2):
        tifffile.imwrite(tmp_path / f"z{z}.tif", data[z], description=xml, metadata=None)
    (source,) = find_stacks(tmp_path, "z{z}.tif")
    assert (source.physical_size_um, source.channel_name) == ((None, 0.5, 0.5), "DAPI")
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    np.testing.assert_array_equal(out, data)
    with pytest.raises(InputError, match=r"claims 9 planes \(T 1, C 1, Z 9\), the file holds 1"):
        find_stacks(tmp_path, "{name}.tif")
