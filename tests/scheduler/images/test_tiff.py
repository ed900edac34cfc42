"""TIFF files: how their pixels are stored, how their pages are ordered, what their headers claim."""

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from scheduler.images.errors import ImageError, InputError
from scheduler.images.sources import StackSource, find_stacks, read_stack


def read(source: StackSource) -> np.ndarray:
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    return out


def find_one(folder: Path, pattern: str = "{name}.tif") -> StackSource:
    (source,) = find_stacks(folder, pattern)
    return source


STORED = {
    "plain": {},
    "big endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "strips": {"rowsperstrip": 5},
    "tiles": {"tile": (16, 16)},
    "deflate": {"compression": "zlib"},
    "deflate, predicted": {"compression": "zlib", "predictor": True},
    "deflate, strips, big endian": {"compression": "zlib", "rowsperstrip": 7, "byteorder": ">"},
    "LZW": {"compression": "lzw"},
    "LZW, predicted, tiles": {"compression": "lzw", "predictor": True, "tile": (16, 32)},
    "zstd": {"compression": "zstd"},
    "PackBits": {"compression": "packbits"},
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64", "uint32"])
@pytest.mark.parametrize("options", STORED.values(), ids=STORED)
def test_every_way_of_storing_pixels(tmp_path, pixels, dtype, options):
    if options.get("compression") == "packbits":
        dtype = "uint8"  # it compresses bytes
    stack = pixels((3, 33, 21), dtype)
    for z, plane in enumerate(stack):
        tifffile.imwrite(tmp_path / f"p_z{z}.tif", plane, **options)
    tifffile.imwrite(tmp_path / "whole.tif", stack, photometric="minisblack", **options)
    for pattern in ("p_z{z}.tif", "whole.tif"):
        source = find_one(tmp_path, pattern)
        assert (source.shape, source.dtype) == (stack.shape, dtype)
        np.testing.assert_array_equal(read(source), stack)


@pytest.mark.parametrize("dtype", ["bool", "float16", "int64", "uint64", "int8", "complex64"])
def test_other_dtypes(tmp_path, pixels, dtype):
    stack = pixels((3, 9, 11), "float32" if dtype == "complex64" else dtype).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    source = find_one(tmp_path)
    assert source.dtype == dtype
    np.testing.assert_array_equal(read(source), stack)


def test_bilevel_and_12_bit_pages(tmp_path, pixels):
    mask, deep = pixels((2, 9, 11), "bool"), pixels((9, 11), "uint16") >> 4
    tifffile.imwrite(tmp_path / "mask.tif", mask, photometric="minisblack", bitspersample=1)
    tifffile.imwrite(tmp_path / "deep.tif", deep, bitspersample=12)
    np.testing.assert_array_equal(read(find_one(tmp_path, "mask.tif")), mask)
    np.testing.assert_array_equal(read(find_one(tmp_path, "deep.tif"))[0], deep)


@pytest.mark.parametrize("threads", [1, 4])
def test_planes_are_decoded_into_the_given_array(tmp_path, pixels, monkeypatch, threads):
    stack = pixels((2, 64, 48))
    tifffile.imwrite(tmp_path / "a.tif", stack, compression="zlib", tile=(16, 16), photometric="minisblack")
    outs = []
    original = tifffile.TiffPage.asarray

    def watched(page, *, out, **options):
        outs.append((out.__array_interface__["data"][0], options["maxworkers"]))
        return original(page, out=out, **options)

    monkeypatch.setattr(tifffile.TiffPage, "asarray", watched)
    out = np.empty((2, 64, 48), "uint16")
    read_stack(find_one(tmp_path), out, threads=threads)
    start = out.__array_interface__["data"][0]
    assert outs == [(start, threads), (start + 64 * 48 * 2, threads)]
    np.testing.assert_array_equal(out, stack)


def test_imagej_hyperstack_gives_a_stack_for_each_channel_and_time(tmp_path, pixels):
    data = pixels((2, 3, 2, 8, 6))
    tifffile.imwrite(
        tmp_path / "a.tif", data, imagej=True, resolution=(4.0, 5.0),
        metadata={"axes": "TZCYX", "unit": "um", "spacing": 1.5, "Labels": ["x"] * 12},
    )  # fmt: skip
    sources = find_stacks(tmp_path, "{name}.tif")
    assert [source.name for source in sources] == [
        f"name-a_time-{time}_channel-{channel}" for time in (0, 1) for channel in (0, 1)
    ]
    for source in sources:
        time, channel = int(dict(source.fields)["time"]), int(dict(source.fields)["channel"])
        assert source.physical_size_um == (1.5, 0.2, 0.25)
        np.testing.assert_array_equal(read(source), data[time, :, channel])
    (chosen,) = find_stacks(tmp_path, "{name}.tif", select={"channel": 1, "time": "0"})
    np.testing.assert_array_equal(read(chosen), data[0, :, 1])


def test_the_time_axis_of_a_file_can_be_stacked_along(tmp_path, pixels):
    data = pixels((5, 8, 6))
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TYX"})
    assert len(find_stacks(tmp_path, "{name}.tif")) == 5
    (source,) = find_stacks(tmp_path, "{name}.tif", stack_along="time")
    np.testing.assert_array_equal(read(source), data)


def test_a_hyperstack_with_one_directory_for_all_planes(tmp_path, pixels):
    # as ImageJ writes what is larger than 4 GiB: big-endian pixels in a row, one directory
    data = pixels((6, 8, 6))
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, byteorder=">", metadata={"axes": "ZYX"})
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        first = file.pages[0]
        pages = len(first.tags)
        content[first.offset + 2 + 12 * pages : first.offset + 6 + 12 * pages] = struct.pack(">I", 0)
        start = first.dataoffsets[0]
    (tmp_path / "a.tif").write_bytes(content)
    source = find_one(tmp_path)
    assert source.planes[3].offset == start + 3 * 8 * 6 * 2
    np.testing.assert_array_equal(read(source), data)
    (tmp_path / "a.tif").write_bytes(content[: start + 5 * 96])
    with pytest.raises(ImageError, match="truncated: 96 of the plane's 96 bytes are missing"):
        read(source)


def test_tifffile_axes_and_physical_sizes(tmp_path, pixels):
    data = pixels((2, 4, 8, 6))
    metadata = {"axes": "CZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2}
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", metadata=metadata)
    sources = find_stacks(tmp_path, "{name}.tif")
    assert [source.fields[-1] for source in sources] == [("channel", "0"), ("channel", "1")]
    assert sources[0].physical_size_um == (2.0, 0.5, 0.25)
    np.testing.assert_array_equal(read(sources[1]), data[1])


def test_axes_that_nobody_named_are_refused(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels((2, 4, 8, 6)), photometric="minisblack")
    with pytest.raises(InputError, match=r"can't tell what its axes QQ of sizes \(2, 4\) mean"):
        find_stacks(tmp_path, "{name}.tif")


def test_three_planes_stored_as_rgb_samples_are_planes_again(tmp_path, pixels):
    data = pixels((3, 8, 6))
    tifffile.imwrite(
        tmp_path / "a.tif", data, photometric="rgb", planarconfig="separate", metadata={"axes": "ZYX"}
    )
    np.testing.assert_array_equal(read(find_one(tmp_path)), data)


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_rgb_gives_a_stack_for_each_sample(tmp_path, pixels, planarconfig, compression):
    data = pixels((2, 8, 6, 3), "uint8")
    for z in range(2):
        plane = data[z] if planarconfig == "contig" else np.moveaxis(data[z], -1, 0)
        tifffile.imwrite(
            tmp_path / f"z{z}.tif",
            plane,
            photometric="rgb",
            planarconfig=planarconfig,
            compression=compression,
        )
    sources = find_stacks(tmp_path, "z{z}.tif")
    assert [source.fields for source in sources] == [(("sample", str(sample)),) for sample in range(3)]
    for sample, source in enumerate(sources):
        np.testing.assert_array_equal(read(source), data[..., sample])


def test_a_grey_slice_among_rgb_and_an_rgb_slice_among_grey(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a_z0.tif", pixels((8, 6, 3), "uint8"), photometric="rgb")
    tifffile.imwrite(tmp_path / "a_z1.tif", pixels((8, 6), "uint8"))
    tifffile.imwrite(tmp_path / "b_z0.tif", pixels((8, 6), "uint8"))
    tifffile.imwrite(tmp_path / "b_z1.tif", pixels((8, 6, 3), "uint8"), photometric="rgb")
    sources = {source.name: source for source in find_stacks(tmp_path, "{name}_z{z}.tif")}
    with pytest.raises(ImageError, match=r"a_z1.tif page 0: 1 sample a pixel, but sample 2 is wanted"):
        read(sources["name-a_sample-2"])
    with pytest.raises(ImageError, match=r"b_z1.tif page 0: 3 samples a pixel, but one in the stack name-b"):
        read(sources["name-b"])


def test_palette_images_are_refused_with_the_remedy(tmp_path, pixels):
    colours = pixels((3, 256), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels((8, 6), "uint8"), photometric="palette", colormap=colours)
    with pytest.raises(
        InputError, match="palette image, its values are numbers of colours; convert it to grey"
    ):
        find_stacks(tmp_path, "{name}.tif")


def test_pages_of_different_shape_arent_one_stack(tmp_path, pixels):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for shape in ((8, 6), (8, 6), (8, 7)):
            writer.write(pixels(shape), contiguous=False, metadata=None)
    with pytest.raises(
        InputError, match=r"aren't one stack: 2 pages of uint16 \(8, 6\), 1 pages of uint16 \(8, 7\)"
    ):
        find_stacks(tmp_path, "{name}.tif")


def test_pages_of_different_compression_are_one_stack(tmp_path, pixels):
    data = pixels((3, 8, 6))
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for plane, compression in zip(data, (None, "zlib", None), strict=True):
            writer.write(plane, contiguous=False, metadata=None, compression=compression)
    np.testing.assert_array_equal(read(find_one(tmp_path)), data)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("CENTIMETER", (None, 0.5, 0.25)), ("MILLIMETER", (None, 0.05, 0.025)), ("INCH", None), ("NONE", None)],
)
def test_plain_resolution_tags(tmp_path, pixels, unit, expected):
    tifffile.imwrite(tmp_path / "a.tif", pixels((8, 6)), resolution=(40000, 20000), resolutionunit=unit)
    assert find_one(tmp_path).physical_size_um == pytest.approx(expected)


def patched(path: Path, tag: int, value: int, page: int = 0) -> None:
    """Overwrite the value of a one-value tag in a little-endian classic TIFF."""
    with tifffile.TiffFile(path) as file:
        found = file.pages[page].tags[tag]
        offset, size = found.valueoffset, found.dtype_name
    content = bytearray(path.read_bytes())
    packed = struct.pack("<H" if size == "SHORT" else "<I", value)
    content[offset : offset + len(packed)] = packed
    path.write_bytes(content)


ABSURD = {
    "ImageLength": (257, 60_000, {}, "truncated: 959808 of its 960000 bytes"),
    "compressed ImageWidth": (256, 60_000, {"compression": "zlib"}, r"absurd header: claims 1440000 bytes"),
    "StripOffsets": (273, 2**31, {}, "truncated: 2147483"),
    "StripByteCounts": (279, 2**31, {"compression": "zlib"}, "truncated: 2147483"),
    "TileWidth": (322, 60_000 // 16 * 16, {"compression": "zlib", "tile": (60_000 // 16 * 16, 16)}, "absurd"),
    "BitsPerSample": (258, 77, {}, "samples of 77 bits"),
}


@pytest.mark.parametrize(("tag", "value", "options", "message"), ABSURD.values(), ids=ABSURD)
def test_absurd_headers_are_refused_before_memory_is_taken(
    tmp_path, pixels, monkeypatch, tag, value, options, message
):
    path = tmp_path / "a.tif"
    if "tile" in options:
        tifffile.imwrite(path, pixels((12, 6)), compression="zlib", tile=(16, 16))
        patched(path, 323, value)
    else:
        tifffile.imwrite(path, pixels((12, 8)), **options)
    patched(path, tag, value)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", None)  # nothing may be decoded
    with pytest.raises(InputError, match=message):
        find_stacks(tmp_path, "{name}.tif")


def test_a_header_that_reaches_into_other_data_is_refused(tmp_path, pixels):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels((12, 8)), metadata=None)
    path.write_bytes(path.read_bytes() + bytes(1000))
    patched(path, 257, 18)
    with pytest.raises(InputError, match="absurd header: claims 288 bytes, stored in 192"):
        find_stacks(tmp_path, "{name}.tif")


def test_volumes_in_one_page_are_refused(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels((16, 32, 32)), volumetric=True, tile=(16, 16, 16))
    with pytest.raises(InputError, match="a volume of 16 planes in one page"):
        find_stacks(tmp_path, "{name}.tif")


def test_a_missing_strip_isnt_zeros(tmp_path, pixels):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels((12, 8)), compression="zlib", rowsperstrip=6)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].tags[279].valueoffset
    content = bytearray(path.read_bytes())
    content[offset : offset + 2] = bytes(2)
    path.write_bytes(content)
    with pytest.raises(InputError, match="1 of 2 strips or tiles are missing"):
        find_stacks(tmp_path, "{name}.tif")


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
def test_damaged_compressed_pixels(tmp_path, pixels, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels((64, 64)), compression=compression)
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[start + count // 2 : start + count] = bytes(count - count // 2)
    path.write_bytes(content)
    source = find_one(tmp_path)
    with pytest.raises(ImageError, match=r"a.tif: not a readable TIFF"):
        read(source)


def test_a_directory_that_leads_to_itself_ends(tmp_path, pixels):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels((12, 8)))
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, tags = page.offset, len(page.tags)
    content = bytearray(path.read_bytes())
    content[offset + 2 + 12 * tags : offset + 6 + 12 * tags] = struct.pack("<I", offset)
    path.write_bytes(content)
    assert find_one(tmp_path).shape == (1, 12, 8)


def test_no_flipped_byte_of_a_header_escapes_as_another_error(tmp_path, pixels, caplog):
    caplog.set_level(logging.CRITICAL, logger="tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels((3, 12, 8)), photometric="minisblack", compression="zlib", ome=True)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    messages = []
    for _ in range(400):
        content = bytearray(whole)
        for position in generator.integers(0, len(whole), 3):
            content[position] = generator.integers(0, 256)
        path.write_bytes(content)
        try:
            for source in find_stacks(tmp_path, "{name}.tif"):
                assert source.nbytes < 1000 * len(whole)
                read(source)
        except (InputError, ImageError) as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert [message for message in messages if "a.tif" not in message] == []


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (r"\u00B5m", (2.0, 0.2, 0.25)),
        ("micron", (2.0, 0.2, 0.25)),
        ("um", (2.0, 0.2, 0.25)),
        ("nm", (0.002, 0.0002, 0.00025)),
        ("pixel", None),
    ],
)
def test_units_as_imagej_writes_them(tmp_path, pixels, unit, expected):
    described = f"ImageJ=1.53t\nimages=3\nslices=3\nunit={unit}\nspacing=2.0\nloop=false\n"
    tifffile.imwrite(
        tmp_path / "a.tif", pixels((3, 8, 6)), description=described, metadata=None, resolution=(4, 5),
        photometric="minisblack",
    )  # fmt: skip
    assert find_one(tmp_path).physical_size_um == (None if expected is None else pytest.approx(expected))
