"""find_stacks and read_stack on plates of one-plane files: grouping, order, and all that can be wrong."""

import contextlib
import os
import pickle
import sys

import numpy as np
import pytest
import tifffile

from scheduler.images.errors import ImageError, InputError
from scheduler.images.outputs import write_stack
from scheduler.images.planes import UnevenStacksWarning
from scheduler.images.sources import PlaneRef, StackSource, find_stacks, read_stack

PATTERN = "{well}_s{site}_z{z}_c{channel}.tif"


def read(source: StackSource) -> np.ndarray:
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    return out


def test_a_plate_comes_back_whole(plate):
    folder, stacks = plate
    sources = find_stacks(folder, PATTERN)
    assert [source.name for source in sources] == list(stacks)
    for source in sources:
        assert (source.shape, source.dtype, source.nbytes) == ((4, 12, 10), "uint16", 960)
        np.testing.assert_array_equal(read(source), stacks[source.name])


def test_any_field_can_be_stacked_along(plate):
    folder, stacks = plate
    sources = find_stacks(folder, PATTERN, stack_along="channel", select={"well": "A01", "z": 2})
    assert [source.fields for source in sources] == [(("well", "A01"), ("site", "1"), ("z", "02"))]
    expected = [stacks[f"well-A01_site-1_channel-{channel}"][2] for channel in (1, 2)]
    np.testing.assert_array_equal(read(sources[0]), expected)


def test_planes_are_in_natural_order(tmp_path, pixels):
    stack = pixels((11, 4, 3))
    for z in range(11):
        tifffile.imwrite(tmp_path / f"z{z}.tif", stack[z])
    (source,) = find_stacks(tmp_path, "z{z}.tif")
    assert source.name == "stack"
    assert source.planes[2] == PlaneRef(str(tmp_path / "z2.tif"))
    np.testing.assert_array_equal(read(source), stack)


def test_select_by_lists_globs_and_numbers(plate):
    folder, _ = plate
    chosen = find_stacks(folder, PATTERN, select={"well": ["A01", "B*"], "channel": 2})
    assert [source.name for source in chosen] == ["well-A01_site-1_channel-2", "well-B02_site-1_channel-2"]


def test_only_one_header_a_stack_is_read(plate, monkeypatch):
    folder, _ = plate
    opened = []
    original = tifffile.TiffFile.__init__

    def counting(self, file, *args, **kwargs):
        opened.append(str(file))
        original(self, file, *args, **kwargs)

    monkeypatch.setattr(tifffile.TiffFile, "__init__", counting)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", None)
    assert len(find_stacks(folder, PATTERN)) == 4
    assert len(opened) == 4


def test_sources_survive_pickling(plate):
    folder, _ = plate
    sources = find_stacks(folder, PATTERN)
    assert pickle.loads(pickle.dumps(sources)) == sources


def test_unicode_names(tmp_path, pixels):
    stack = pixels((2, 4, 3))
    for z in range(2):
        tifffile.imwrite(tmp_path / f"Größe 細胞 µ_z{z}.tif", stack[z])
    (source,) = find_stacks(tmp_path, "{sample}_z{z}.tif")
    assert source.fields == (("sample", "Größe 細胞 µ"),)
    np.testing.assert_array_equal(read(source), stack)


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"input folder .*/nowhere doesn't exist"):
        find_stacks(tmp_path / "nowhere", PATTERN)


def test_a_file_is_no_folder(plate):
    folder, _ = plate
    with pytest.raises(InputError, match=r"A01_s1_z00_c1.tif is a file; give its folder"):
        find_stacks(folder / "A01_s1_z00_c1.tif", PATTERN)


def test_a_pattern_that_matches_nothing_shows_what_is_there(plate):
    folder, _ = plate
    with pytest.raises(
        InputError,
        match=r"matches the pattern '\{well\}.png'; it holds A01_s1_z00_c1.tif, A01_s1_z00_c2.tif.* …",
    ):
        find_stacks(folder, "{well}.png")


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="it is empty"):
        find_stacks(tmp_path, PATTERN)


@pytest.mark.parametrize(("along", "meant"), [("zz", "did you mean .z."), ("image", "did you mean .time.")])
def test_stack_along_must_be_known(plate, along, meant):
    folder, _ = plate
    with pytest.raises(InputError, match=rf"'{along}' is no field of the pattern.*{meant}"):
        find_stacks(folder, PATTERN, stack_along=along)


def test_a_selection_that_leaves_nothing(plate):
    folder, _ = plate
    (folder / "A01_s2_z00_c1.tif").touch()
    with pytest.raises(InputError, match="leaves none of the files"):
        find_stacks(folder, PATTERN, select={"well": "B02", "site": 2})


def test_missing_planes_are_named(plate):
    folder, _ = plate
    (folder / "A01_s1_z01_c1.tif").unlink()
    (folder / "B02_s1_z01_c2.tif").unlink()
    (folder / "B02_s1_z02_c2.tif").unlink()
    with pytest.raises(
        InputError,
        match=r"well A01 site 1 channel 1: 1 of 4 planes are missing: A01_s1_z01_c1.tif; "
        r"well B02 site 1 channel 2: 2 of 4 planes are missing: B02_s1_z01_c2.tif, B02_s1_z02_c2.tif",
    ):
        find_stacks(folder, PATTERN)


def test_a_gap_up_to_an_absurd_number_is_no_endless_list(tmp_path, pixels):
    for z in ("0", "1", "4000000000000"):
        tifffile.imwrite(tmp_path / f"z{z}.tif", pixels((4, 3)))
    with pytest.raises(
        InputError, match=r"3999999999998 of 4000000000001 planes are missing: z2.tif, z3.tif"
    ):
        find_stacks(tmp_path, "z{z}.tif")


def test_planes_may_be_numbered_in_steps(tmp_path, pixels):
    stack = pixels((3, 4, 3))
    for z, plane in zip((5, 10, 15), stack, strict=True):
        tifffile.imwrite(tmp_path / f"z{z}.tif", plane)
    (source,) = find_stacks(tmp_path, "z{z}.tif")
    np.testing.assert_array_equal(read(source), stack)


def test_a_missing_step_is_a_gap(tmp_path, pixels):
    for z in (5, 10, 20):
        tifffile.imwrite(tmp_path / f"z{z}.tif", pixels((4, 3)))
    with pytest.raises(InputError, match=r"1 of 4 planes are missing: z15.tif"):
        find_stacks(tmp_path, "z{z}.tif")


def test_planes_that_arent_numbers_are_taken_as_they_are(tmp_path, pixels):
    stack = pixels((2, 4, 3))
    tifffile.imwrite(tmp_path / "bottom.tif", stack[0])
    tifffile.imwrite(tmp_path / "top.tif", stack[1])
    (source,) = find_stacks(tmp_path, "{z}.tif")
    np.testing.assert_array_equal(read(source), stack)


def test_stacks_of_unequal_ends_are_warned_of(plate):
    folder, _ = plate
    (folder / "B02_s1_z03_c2.tif").unlink()
    with pytest.warns(
        UnevenStacksWarning, match="1 of 4 stacks.*z 0 to 3: well B02 site 1 channel 2 has z 0 to 2"
    ):
        sources = find_stacks(folder, PATTERN)
    assert [source.shape[0] for source in sources] == [4, 4, 4, 3]


def test_a_plane_that_is_there_twice_is_named(plate):
    folder, _ = plate
    (folder / "A01_s1_z1_c1.tif").write_bytes((folder / "A01_s1_z01_c1.tif").read_bytes())
    with pytest.raises(
        InputError,
        match=r"A01 site 1 channel 1: z 1 is there 2 times: A01_s1_z01_c1.tif, A01_s1_z1_c1.tif|z1_c1",
    ):
        find_stacks(folder, PATTERN)


def test_many_faults_are_counted_not_listed(tmp_path):
    for well in range(20):
        for z in (0, 1, 3):
            (tmp_path / f"w{well}_z{z}.tif").touch()
    with pytest.raises(InputError, match=r"w0_z2.tif.*; and 14 more") as caught:
        find_stacks(tmp_path, "w{well}_z{z}.tif")
    assert len(str(caught.value)) < 600


def test_a_slice_of_another_shape(plate, pixels):
    folder, _ = plate
    tifffile.imwrite(folder / "A01_s1_z02_c1.tif", pixels((12, 11)))
    source = find_stacks(folder, PATTERN)[0]
    with pytest.raises(
        ImageError,
        match=r"A01_s1_z02_c1.tif page 0: uint16 \(12, 11\), but uint16 \(12, 10\) in the stack well-A01",
    ):
        read(source)


def test_a_slice_that_would_broadcast_is_another_shape(plate, pixels):
    folder, _ = plate
    tifffile.imwrite(folder / "A01_s1_z02_c1.tif", pixels((10, 12)))
    with pytest.raises(ImageError, match=r"uint16 \(10, 12\), but uint16 \(12, 10\)"):
        read(find_stacks(folder, PATTERN)[0])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_slice_of_another_dtype(plate, pixels, dtype):
    folder, _ = plate
    tifffile.imwrite(folder / "A01_s1_z02_c1.tif", pixels((12, 10), dtype))
    with pytest.raises(ImageError, match=rf"z02_c1.tif page 0: {dtype} \(12, 10\), but uint16 \(12, 10\)"):
        read(find_stacks(folder, PATTERN)[0])


def test_a_truncated_slice(plate):
    folder, _ = plate
    path = folder / "A01_s1_z02_c1.tif"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match=r"z02_c1.tif page 0: truncated: 100 of its 240 bytes are missing"):
        read(find_stacks(folder, PATTERN)[0])


@pytest.mark.parametrize("content", [b"", b"II", b"not an image at all", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_a_slice_that_is_no_tiff(plate, content):
    folder, _ = plate
    (folder / "A01_s1_z02_c1.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"A01_s1_z02_c1.tif: not a readable TIFF"):
        read(find_stacks(folder, PATTERN)[0])


def test_a_slice_that_vanished(plate):
    folder, _ = plate
    source = find_stacks(folder, PATTERN)[0]
    (folder / "A01_s1_z02_c1.tif").unlink()
    with pytest.raises(ImageError, match=r"A01_s1_z02_c1.tif: can't be read: No such file"):
        read(source)


def test_a_damaged_first_slice_leaves_the_other_stacks(plate):
    folder, stacks = plate
    (folder / "A01_s1_z00_c1.tif").write_bytes(b"MM")
    sources = find_stacks(folder, PATTERN)
    with pytest.raises(ImageError, match=r"A01_s1_z00_c1.tif: not a readable TIFF"):
        read(sources[0])
    np.testing.assert_array_equal(read(sources[1]), stacks[sources[1].name])


def test_a_wholly_damaged_stack_leaves_the_others(plate):
    folder, stacks = plate
    for path in folder.glob("A01_s1_z*_c1.tif"):
        path.write_bytes(b"damaged")
    sources = find_stacks(folder, PATTERN)
    assert "A01_s1_z00_c1.tif: not a readable TIFF" in sources[0].problem
    with pytest.raises(ImageError, match=r"A01_s1_z00_c1.tif: not a readable TIFF"):
        read(sources[0])
    np.testing.assert_array_equal(read(sources[3]), stacks[sources[3].name])


def test_nothing_but_damaged_stacks(plate):
    folder, _ = plate
    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(
        InputError, match=r"no stack in .* can be read: .*A01_s1_z00_c1.tif: not a readable TIFF"
    ):
        find_stacks(folder, PATTERN)


def test_slices_of_several_pages_are_refused(tmp_path, pixels):
    for z in range(2):
        tifffile.imwrite(tmp_path / f"z{z}.tif", pixels((4, 5, 6)), photometric="minisblack")
    with pytest.raises(InputError, match=r"z0.tif holds 4 planes along z.*leave \{z\} out of the pattern"):
        find_stacks(tmp_path, "z{z}.tif")


@pytest.mark.parametrize(
    "out",
    [
        np.empty((4, 12, 11), "uint16"),
        np.empty((4, 12, 10), "uint8"),
        np.empty((4, 12, 10), ">u2" if sys.byteorder == "little" else "<u2"),
        np.empty((12, 10), "uint16"),
    ],
)
def test_out_must_be_what_the_source_says(plate, out):
    folder, _ = plate
    with pytest.raises(ValueError, match=r"but stack well-A01_site-1_channel-1 is uint16 \(4, 12, 10\)"):
        read_stack(find_stacks(folder, PATTERN)[0], out)


def test_out_may_be_strided(plate):
    folder, stacks = plate
    source = find_stacks(folder, PATTERN)[0]
    whole = np.zeros((4, 12, 20), "uint16")
    read_stack(source, whole[:, :, ::2])
    np.testing.assert_array_equal(whole[:, :, ::2], stacks[source.name])
    assert not whole[:, :, 1::2].any()


@pytest.mark.parametrize("kind", ["plain", "zlib", "big-endian", "strided", "zarr", "damaged"])
def test_nothing_sees_the_array_any_more_when_read_stack_is_done(tmp_path, pixels, kind):
    stack = pixels((3, 64, 48))
    if kind == "zarr":
        write_stack(tmp_path / "a.zarr", stack, format="ome-zarr")
    else:
        tifffile.imwrite(
            tmp_path / "a.tif",
            stack,
            photometric="minisblack",
            compression="zlib" if kind in ("zlib", "damaged") else None,
            byteorder=">" if kind == "big-endian" else None,
        )
    (source,) = find_stacks(tmp_path, "a.{format}")
    if kind == "damaged":
        content = bytearray((tmp_path / "a.tif").read_bytes())
        content[-2000:] = bytes(2000)
        (tmp_path / "a.tif").write_bytes(content)
    owner = np.empty((3, 64, 96 if kind == "strided" else 48), "uint16")
    out = owner[:, :, ::2] if kind == "strided" else owner[:]
    before = sys.getrefcount(owner)
    with pytest.raises(ImageError) if kind == "damaged" else contextlib.nullcontext():
        read_stack(source, out, threads=2)
    assert sys.getrefcount(owner) == before


def test_a_named_pipe_isnt_waited_for(plate):
    folder, _ = plate
    (folder / "A01_s1_z02_c1.tif").unlink()
    os.mkfifo(folder / "A01_s1_z02_c1.tif")
    source = find_stacks(folder, PATTERN)[0]
    with pytest.raises(ImageError, match=r"A01_s1_z02_c1.tif: not a file"):
        read(source)


def test_a_folder_where_a_slice_should_be(plate):
    folder, _ = plate
    (folder / "A01_s1_z02_c1.tif").unlink()
    (folder / "A01_s1_z02_c1.tif").mkdir()
    with pytest.raises(ImageError, match=r"A01_s1_z02_c1.tif"):
        read(find_stacks(folder, PATTERN)[0])


@pytest.mark.parametrize(
    ("target", "message"),
    [("nowhere", "No such file"), ("A01_s1_z01_c1.tif", "Too many levels of symbolic links")],
)
def test_links_that_lead_nowhere(plate, target, message):
    folder, _ = plate
    (folder / "A01_s1_z01_c1.tif").unlink()
    (folder / "A01_s1_z01_c1.tif").symlink_to(folder / target)
    with pytest.raises(ImageError, match=rf"A01_s1_z01_c1.tif: can't be read: {message}"):
        read(find_stacks(folder, PATTERN)[0])


def test_files_and_folders_that_may_not_be_read(unprivileged, pixels):
    stack = pixels((2, 4, 5))
    with unprivileged.as_owner():
        for z in range(2):
            tifffile.imwrite(unprivileged.folder / f"z{z}.tif", stack[z])
        (unprivileged.folder / "z1.tif").chmod(0)
        (unprivileged.folder / "closed").mkdir(mode=0)
    (source,) = find_stacks(unprivileged.folder, "z{z}.tif")
    with pytest.raises(ImageError, match=r"z1.tif: can't be read: Permission denied"):
        read(source)
    with pytest.raises(InputError, match=r"can't list input folder .*: Permission denied"):
        find_stacks(unprivileged.folder, "closed/z{z}.tif")


@pytest.mark.parametrize(
    "name", [b"\xff_z0.tif", b"a\x1b[31m_z0.tif", b"a\n_z0.tif", b"a\x7f_z0.tif", b"\xc2\x85_z0.tif"]
)
def test_names_that_no_journal_or_terminal_takes(tmp_path, name):
    with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
        pass
    with pytest.raises(
        InputError, match=r"the name '.*' in .* has control characters or isn't UTF-8; rename it"
    ) as caught:
        find_stacks(tmp_path, "{name}_z{z}.tif")
    assert str(caught.value).isprintable()


def test_what_is_shown_of_a_folder_doesnt_reach_the_terminal_as_codes(tmp_path):
    (tmp_path / "a\x1b[31m").touch()
    with pytest.raises(InputError, match="it holds a\ufffd\\[31m"):
        find_stacks(tmp_path, "{name}_z{z}.tif")
