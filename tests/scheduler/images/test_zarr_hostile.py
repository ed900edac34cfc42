"""OME-Zarr that lies: paths that lead outside, absurd shapes, codecs that run code, damaged bytes."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numcodecs
import numpy as np
import pytest

from scheduler.images.errors import ImageError, InputError
from scheduler.images.outputs import (
    WriteOptions,
    write_stack,
)
from scheduler.images.sources import PlaneRef, StackSource, find_stacks, read_stack
from scheduler.images.zarr_in import describe_zarr

VERSIONS = ["0.4", "0.5"]


def read(source: StackSource) -> np.ndarray:
    out = np.empty(source.shape, source.dtype)
    read_stack(source, out)
    return out


def change(group: Path, version: str, edit) -> None:
    """Apply `edit` to a group's OME metadata."""
    path = group / (".zattrs" if version == "0.4" else "zarr.json")
    described = json.loads(path.read_text())
    edit(described if version == "0.4" else described["attributes"]["ome"])
    path.write_text(json.dumps(described))


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


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([20_000_000, 2, 2], r"claims 20000000 planes \(20000000, 2, 2\); 4194304 are read at most"),
        ([1_000_000_000, 1, 1], r"absurd header|claims 1000000000 planes"),
        ([10_001, 2, 2], r"absurd header: claims 10001 planes \(10001, 2, 2\), stored in \d+ bytes"),
    ],
)
def test_more_planes_than_can_be_are_refused(tmp_path, pixels, shape, message):
    image = write_stack(tmp_path / "a.zarr", pixels((2, 2, 2)), format="ome-zarr")
    path = image / "0" / "zarr.json"
    described = json.loads(path.read_text())
    described["shape"] = shape
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match=message):
        find_stacks(tmp_path, "a.zarr")


def test_an_image_that_memory_doesnt_suffice_for_leaves_the_others(tmp_path, pixels, monkeypatch):
    for name in "ab":
        write_stack(tmp_path / f"{name}.zarr", pixels((2, 2, 2)), format="ome-zarr")

    def described(path):
        if path.endswith("b.zarr"):
            raise MemoryError
        return describe_zarr(path)

    monkeypatch.setattr("scheduler.images.zarr_in.describe_zarr", described)
    good, too_large = find_stacks(tmp_path, "{name}.zarr")
    assert not good.problem
    assert "b.zarr: the description of its planes alone doesn't fit into memory" in too_large.problem


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
def test_a_codec_that_runs_code_is_refused(tmp_path, pixels, place, foreign_image):
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
def test_an_array_of_text_is_refused(tmp_path, foreign_image):
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
