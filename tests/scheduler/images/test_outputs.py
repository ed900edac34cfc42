"""Outputs: files that are whole or absent, with metadata that other readers find."""

import errno
import os
import resource
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from scheduler.images import tiff_out
from scheduler.images.errors import OutputError
from scheduler.images.naming import SUFFIXES
from scheduler.images.outputs import (
    WriteOptions,
    check_output_folder,
    output_path,
    verify_stack,
    write_stack,
)
from scheduler.images.sources import find_stacks, read_stack
from scheduler.images.stack import StackMetadata


@pytest.mark.parametrize("format", ["tiff", "ome-tiff"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64", "bool"])
def test_round_trip_with_metadata(tmp_path, pixels, format, dtype):
    stack = pixels((4, 9, 7), dtype)
    path = output_path(tmp_path, "a", {}, format)
    write_stack(
        path, stack, format=format, physical_size_um=(1.5, 0.25, 0.5), channel_name="α-Tubulin",
        provenance={"gaussian": {"sigma": 2.0}, "memory": "numpy"},
    )  # fmt: skip
    with tifffile.TiffFile(path) as file:
        (series,) = file.series
        assert (series.axes, series.shape, series.dtype) == ("ZYX", (4, 9, 7), np.dtype(dtype))
        np.testing.assert_array_equal(series.asarray(), stack)
        x, y = (file.pages[0].tags[tag].value for tag in (282, 283))
        assert (x[0] / x[1], y[0] / y[1]) == pytest.approx((20000, 40000))
        assert file.pages[0].resolutionunit == 3
    (source,) = find_stacks(tmp_path, path.name)
    assert (source.physical_size_um, source.channel_name) == ((1.5, 0.25, 0.5), "α-Tubulin")
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    np.testing.assert_array_equal(out, stack)
    assert verify_stack(path, stack.shape, dtype)


def test_ome_xml_is_as_the_schema_says(tmp_path, pixels):
    path = tmp_path / "A01.ome.tif"
    provenance = {
        "step 1": "gaussian <&>",
        "versions": {"numpy": "2.4"},
        "bad \x00\x1b": "\ud800 {x}",
        "n": 3,
    }
    write_stack(path, pixels((2, 4, 5)), format="ome-tiff", channel_name="a<b", provenance=provenance)
    with tifffile.TiffFile(path) as file:
        root = ElementTree.fromstring(file.ome_metadata)
    name = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
    pixels_element = root.find(f"{name}Image/{name}Pixels")
    sizes = {axis: pixels_element.attrib[f"Size{axis}"] for axis in "XYZCT"}
    assert sizes == {"X": "5", "Y": "4", "Z": "2", "C": "1", "T": "1"}
    assert "PhysicalSizeX" not in pixels_element.attrib
    assert root.find(f"{name}Image").attrib["Name"] == "A01"
    assert pixels_element.find(f"{name}Channel").attrib["Name"] == "a<b"
    annotation = root.find(f"{name}StructuredAnnotations/{name}MapAnnotation")
    assert annotation.attrib["Namespace"] == "stackyard/provenance"
    assert {entry.attrib["K"]: entry.text for entry in annotation.iter(f"{name}M")} == {
        "step 1": "gaussian <&>",
        "versions": '{"numpy": "2.4"}',
        "bad \ufffd\ufffd": "\ufffd {x}",
        "n": "3",
    }


def test_an_unknown_plane_distance_is_left_out(tmp_path, pixels):
    path = write_stack(
        tmp_path / "a.ome.tif", pixels((2, 4, 5)), format="ome-tiff", physical_size_um=(None, 0.5, 0.25)
    )
    (source,) = find_stacks(tmp_path, path.name)
    assert source.physical_size_um == (None, 0.5, 0.25)


@pytest.mark.parametrize("format", ["tiff", "ome-tiff"])
def test_one_plane_keeps_its_axis(tmp_path, pixels, format):
    path = write_stack(tmp_path / "a.tif", pixels((1, 4, 5)), format=format)
    (source,) = find_stacks(tmp_path, "a.tif")
    assert source.shape == (1, 4, 5)
    assert verify_stack(path, (1, 4, 5), "uint16")


@pytest.mark.parametrize("shape", [(3, 8, 6), (4, 8, 6), (2, 8, 3), (2, 3, 4), (1, 1, 1)])
@pytest.mark.parametrize("format", ["tiff", "ome-tiff"])
def test_three_planes_are_no_colours(tmp_path, pixels, format, shape):
    path = write_stack(tmp_path / "a.tif", pixels(shape), format=format)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == shape[0]
        assert file.pages[0].samplesperpixel == 1
    (source,) = find_stacks(tmp_path, "a.tif")
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    np.testing.assert_array_equal(out, pixels(shape))


@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[::-1], np.s_[:, :, 1:]])
@pytest.mark.parametrize("format", ["tiff", "ome-tiff"])
def test_strided_arrays(tmp_path, pixels, format, view):
    stack = pixels((4, 8, 6))[view]
    path = write_stack(tmp_path / "a.tif", stack, format=format)
    np.testing.assert_array_equal(tifffile.imread(path), stack)
    assert verify_stack(path, stack.shape, stack.dtype)


def test_big_endian_arrays_are_written_with_their_values(tmp_path, pixels):
    stack = pixels((2, 8, 6)).astype(">u2")
    path = write_stack(tmp_path / "a.tif", stack, format="tiff")
    np.testing.assert_array_equal(tifffile.imread(path), stack)


@pytest.mark.parametrize("format", ["tiff", "ome-tiff"])
def test_bigtiff_only_where_it_is_needed(tmp_path, pixels, monkeypatch, format):
    stack = pixels((2, 8, 6))
    for limit, expected in ((stack.nbytes, False), (stack.nbytes - 1, True)):
        monkeypatch.setattr(tiff_out, "BIGTIFF_BYTES", limit)
        write_stack(tmp_path / "a.tif", stack, format=format, overwrite=True)
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            assert file.is_bigtiff is expected
            np.testing.assert_array_equal(file.asarray(), stack)


@pytest.mark.parametrize(
    ("array", "format", "message"),
    [
        (np.zeros((2, 3)), "tiff", r"has axes Z, Y, X, each of 1 or more; this is \(2, 3\)"),
        (np.zeros((0, 3, 4)), "tiff", r"this is \(0, 3, 4\)"),
        ([[[1]]], "tiff", "is a NumPy array, not list"),
        (
            np.zeros((1, 2, 3), "int64"),
            "ome-tiff",
            r"ome-tiff has no int64 \(format tiff has it\); convert it to one",
        ),
        (np.zeros((1, 2, 3), "float16"), "ome-tiff", "ome-tiff has no float16"),
        (np.zeros((1, 2, 3), "U3"), "tiff", "tiff has no <U3; convert it to one of bool, "),
        (np.zeros((1, 2, 3), "uint8"), "png", "no output format 'png'"),
    ],
)
def test_what_cant_be_written(tmp_path, array, format, message):
    with pytest.raises(OutputError, match=message):
        write_stack(tmp_path / "a.tif", array, format=format)
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_overwritten_only_when_asked(tmp_path, pixels):
    path = tmp_path / "a.tif"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"a.tif exists already; overwriting must be asked for"):
        write_stack(path, pixels((2, 4, 5)), format="tiff")
    assert path.read_bytes() == b"precious"
    write_stack(path, pixels((2, 4, 5)), format="tiff", overwrite=True)
    assert verify_stack(path, (2, 4, 5), "uint16")
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_appears_meanwhile_is_kept(tmp_path, pixels, monkeypatch):
    path = tmp_path / "a.tif"
    fsync = os.fsync

    def meanwhile(descriptor):
        path.write_bytes(b"theirs")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(FileExistsError, match="exists already"):
        write_stack(path, pixels((2, 4, 5)), format="tiff")
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_at_the_output_is_replaced_not_followed(tmp_path, pixels):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    path = tmp_path / "a.tif"
    path.symlink_to(target)
    with pytest.raises(FileExistsError):
        write_stack(path, pixels((2, 4, 5)), format="tiff")
    write_stack(path, pixels((2, 4, 5)), format="tiff", overwrite=True)
    assert target.read_bytes() == b"precious"
    assert not path.is_symlink()


def test_a_dangling_link_is_something_that_is_there(tmp_path, pixels):
    path = tmp_path / "a.tif"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_stack(path, pixels((2, 4, 5)), format="tiff")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(tmp_path, pixels, monkeypatch, error):
    path = tmp_path / "a.tif"
    path.write_bytes(b"before")
    names = []

    def failing(_descriptor):
        names.extend(os.listdir(tmp_path))
        raise error

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(type(error)):
        write_stack(path, pixels((2, 4, 5)), format="tiff", overwrite=True)
    assert len(names) == 2
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_oserror_that_says_so():
    stack = np.zeros((1, 64, 64), "uint16")
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(OSError, match="No space left") as caught,
    ):
        tiff_out.write_tiff(full, stack, "tiff", StackMetadata(), name="a")
    assert caught.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_within_a_stack_is_told_by_its_own_reason(tmp_path):
    # a limit on file sizes cuts a write short as a full disk does
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_stack(tmp_path / "a.tif", np.zeros((2, 512, 512), "uint16"), format="tiff")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_umask_and_setgid_hold(tmp_path, pixels):
    folder = tmp_path / "shared"
    folder.mkdir()
    group = next((number for number in os.getgroups() if number != os.getgid()), None)
    if os.geteuid() == 0:
        group = 12345
    if group is not None:
        os.chown(folder, -1, group)
    folder.chmod(0o2775)
    before = os.umask(0o002)
    try:
        path = write_stack(folder / "sub" / "a.tif", pixels((2, 4, 5)), format="tiff")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    assert path.stat().st_gid == folder.stat().st_gid
    assert path.parent.stat().st_mode & stat.S_ISGID


def test_a_name_too_long_for_the_file_system(tmp_path, pixels):
    with pytest.raises(OSError, match="File name too long"):
        write_stack(tmp_path / ("x" * 300 + ".tif"), pixels((1, 2, 3)), format="tiff")
    assert list(tmp_path.iterdir()) == []


def test_a_name_as_long_as_the_file_system_takes(tmp_path, pixels):
    path = write_stack(tmp_path / ("x" * 251 + ".tif"), pixels((1, 2, 3)), format="tiff")
    assert verify_stack(path, (1, 2, 3), "uint16")


# Folder and verification


def test_the_output_folder_is_made(tmp_path):
    assert check_output_folder(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match=r"output folder .*/out can't be written: File exists"):
        check_output_folder(tmp_path / "out")
    with pytest.raises(OutputError, match="can't be written: Not a directory"):
        check_output_folder(tmp_path / "out" / "deeper")


def test_an_output_folder_without_permission(unprivileged, pixels):
    with pytest.raises(OutputError, match="can't be written: Permission denied"):
        check_output_folder(unprivileged.folder)
    with pytest.raises(OutputError, match="can't be written: Permission denied"):
        check_output_folder(unprivileged.folder / "new")
    for format in ("tiff", "ome-zarr"):
        with pytest.raises(PermissionError):
            write_stack(unprivileged.folder / "a", pixels((1, 2, 3)), format=format)
    assert list(unprivileged.folder.iterdir()) == []


def test_an_output_folder_that_the_system_keeps():
    with pytest.raises(OutputError, match=r"output folder /proc/stackyard can't be written: "):
        check_output_folder("/proc/stackyard")


@pytest.mark.parametrize("compression", ["none", "zlib"])
@pytest.mark.parametrize("format", ["tiff", "ome-tiff"])
def test_verify_stack(tmp_path, pixels, format, compression):
    path = tmp_path / f"a{SUFFIXES[format]}"
    assert not verify_stack(path, (3, 40, 50), "uint16")
    options = WriteOptions(compression=compression)
    write_stack(path, pixels((3, 40, 50)), format=format, options=options)
    assert verify_stack(path, (3, 40, 50), "uint16")
    assert not verify_stack(path, (3, 40, 50), "int16")
    assert not verify_stack(path, (3, 50, 40), "uint16")
    assert not verify_stack(path, (2, 40, 50), "uint16")
    whole = path.read_bytes()
    # a plain TIFF ends with what its last page can do without
    end = len(whole) - (100 if (format, compression) == ("tiff", "none") else 1)
    for length in (0, 8, 2000, end - 100, end):
        path.write_bytes(whole[:length])
        assert not verify_stack(path, (3, 40, 50), "uint16")
    path.write_bytes(whole)
    assert verify_stack(path, (3, 40, 50), "uint16")


# Two writers


def test_of_two_writers_one_wins(tmp_path, pixels):
    path = tmp_path / "a.tif"
    start = threading.Barrier(4)

    def write(seed: int) -> int | None:
        stack = pixels((2, 64, 64), seed=seed)
        start.wait(timeout=60)
        try:
            write_stack(path, stack, format="tiff")
        except FileExistsError:
            return None
        return seed

    with ThreadPoolExecutor(4) as pool:
        (winner,) = [seed for seed in pool.map(write, range(4), timeout=120) if seed is not None]
    np.testing.assert_array_equal(tifffile.imread(path), pixels((2, 64, 64), seed=winner))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_hard_links(tmp_path, pixels, monkeypatch):
    def refused(*_arguments):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    path = write_stack(tmp_path / "a.tif", pixels((2, 4, 5)), format="tiff")
    assert verify_stack(path, (2, 4, 5), "uint16")
    with pytest.raises(FileExistsError, match="exists already"):
        write_stack(path, pixels((2, 4, 5)), format="tiff")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd"])
@pytest.mark.parametrize("dtype", ["uint16", "float32", "bool"])
def test_compressed_tiff(tmp_path, dtype, compression):
    stack = np.zeros((3, 64, 64), dtype)
    stack[1, 20:30] = 1
    options = WriteOptions(compression=compression)
    path = write_stack(tmp_path / "a.ome.tif", stack, format="ome-tiff", options=options)
    assert path.stat().st_size < stack.nbytes
    np.testing.assert_array_equal(tifffile.imread(path), stack)
    assert verify_stack(path, stack.shape, dtype)
