"""Good stacks among damaged, malicious and unreadable ones, and steps that do their worst, in one run.

Each bad stack has its own reason and each good one its result; nothing is written outside of the outputs.
"""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from scheduler.images.outputs import write_stack

SHAPE = (3, 24, 40)
PIXELS = np.random.default_rng(3).integers(0, 4000, SHAPE, np.uint16)
STEP = '''\
import ctypes, os, sys

def step(stack, *, context):
    """What it does is said by the job's name."""
    does = context.job_id.partition("name-does_")[2].partition("_kind")[0]
    match does:
        case "":
            return stack
        case "exit":
            sys.exit("had enough")
        case "os_exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "interrupt":
            raise KeyboardInterrupt
        case "codes":
            print("\\x1b[2J\\x1b[31mred")
            raise ValueError("\\x1b[2Jcleared\\x07")
        case "long":
            raise ValueError("x" * 1_000_000)
        case "unpicklable":
            class Odd(Exception):
                def __reduce__(self):
                    raise TypeError("no pickling")
            raise Odd("odd")
        case "none":
            return None
        case "flat":
            return stack[0]
        case "objects":
            return stack.astype(object)
        case "list":
            return stack.tolist()
        case "recursion":
            def down():
                down()
            down()
        case "closes":
            os.close(1)
            os.close(2)
            return stack
        case "chdir":
            os.chdir("/")
            return stack
'''


def bad_tag(path: Path, tag: int, value: int) -> None:
    """Overwrite a value in the first page of a little-endian classic TIFF."""
    with tifffile.TiffFile(path) as file:
        found = file.pages.first.tags[tag]
        offset, kind = found.valueoffset, found.dtype_name
    content = bytearray(path.read_bytes())
    packed = struct.pack("<H" if kind == "SHORT" else "<I", value)
    content[offset : offset + len(packed)] = packed
    path.write_bytes(content)


def tiff(path: Path, array: Any = PIXELS, **options: Any) -> None:
    tifffile.imwrite(path, array, photometric="minisblack", **options)


def whole_then(*change: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        tiff(path)
        bad_tag(path, *change)

    return make


def truncated(path: Path) -> None:
    tiff(path)
    os.truncate(path, path.stat().st_size - 1000)


def cut_pixels(path: Path) -> None:
    tiff(path, PIXELS[:1])
    os.truncate(path, path.stat().st_size - 100)


def of_bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def pages(*arrays: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with tifffile.TiffWriter(path) as writer:
            for array in arrays:
                writer.write(array, photometric="minisblack")

    return make


def damaged_pixels(path: Path) -> None:
    tiff(path, compression="zlib")
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[start + 20 : start + 400] = bytes(380)
    path.write_bytes(content)


def image(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """An OME-Zarr, changed."""

    def make(path: Path) -> None:
        write_stack(path, PIXELS, format="ome-zarr")
        change(path)

    return make


def described(*keys: Any, **values: Any) -> Callable[[Path], None]:
    """Replace values in the metadata of an OME-Zarr's array."""

    def change(path: Path) -> None:
        file = path / "0" / "zarr.json"
        record = json.loads(file.read_text())
        within = record
        for key in keys:
            within = within[key]
        within.update(values)
        file.write_text(json.dumps(record))

    return change


def leads_outside(path: Path) -> None:
    file = path / "zarr.json"
    record = json.loads(file.read_text())
    record["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = "../../secret"
    file.write_text(json.dumps(record))


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickled(path: Path) -> None:
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "numcodecs.pickle", "configuration": {}},
    ]
    described(codecs=codecs)(path)
    for chunk in (path / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(pickle.dumps(Payload(path.parent.parent / "ran")))


def cut_chunks(path: Path) -> None:
    for chunk in (path / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:-20])


def shut(path: Path) -> None:
    tiff(path)
    path.chmod(0)


# By name of the file: what makes it, and what the run's account says of its job.
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated.tif": (truncated, "claims 3 planes, the file holds 1 pages"),
    "cut_pixels.tif": (cut_pixels, "truncated: 100 of its 1920 bytes are missing"),
    "empty.tif": (of_bytes(b""), "not a readable TIFF"),
    "two_bytes.tif": (of_bytes(b"II"), "not a readable TIFF"),
    "png.tif": (of_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200)), "not a readable TIFF"),
    "text.tif": (of_bytes(b"well A01\n" * 30), "not a readable TIFF"),
    "tall.tif": (whole_then(257, 60_000), "its pages aren't one stack: 1 pages of uint16 (60000, 40)"),
    "strips_beyond.tif": (whole_then(273, 2**31), "truncated: "),
    "odd_bits.tif": (whole_then(258, 77), "not a readable TIFF"),
    "no_rows.tif": (whole_then(257, 0), "not a readable TIFF"),
    "mixed_shapes.tif": (pages(PIXELS[0], PIXELS[0, :, :20]), "its pages aren't one stack"),
    "mixed_dtypes.tif": (pages(PIXELS[0], PIXELS[0].astype(np.uint8)), "its pages aren't one stack"),
    "damaged_pixels.tif": (damaged_pixels, "not a readable TIFF"),
    "pipe.tif": (os.mkfifo, "not a file"),
    "device.tif": (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "nowhere.tif": (lambda path: path.symlink_to("gone"), "No such file"),
    "loop.tif": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "folder.tif": (Path.mkdir, "a folder, and no OME-Zarr"),
    "shut.tif": (shut, "Permission denied"),
    "absurd_shape.zarr": (image(described(shape=[2_000_000, 80_000, 60_000])), "absurd header"),
    "absurd_chunks.zarr": (
        image(described("chunk_grid", "configuration", chunk_shape=[20_000, 80_000, 60_000])),
        "absurd header",
    ),
    "negative_shape.zarr": (image(described(shape=[-3, 24, 40])), "not a readable OME-Zarr"),
    "outside.zarr": (image(leads_outside), "which isn't inside"),
    "pickled.zarr": (image(pickled), "pickle"),
    "cut_chunks.zarr": (image(cut_chunks), "not a readable OME-Zarr"),
    "no_zarr.zarr": (Path.mkdir, "a folder, and no OME-Zarr"),
    "does_exit.tif": (tiff, "SystemExit: had enough"),
    "does_os_exit.tif": (tiff, "its worker process"),
    "does_segfault.tif": (tiff, "its worker process"),
    "does_interrupt.tif": (tiff, "KeyboardInterrupt"),
    "does_codes.tif": (tiff, "ValueError: \x1b[2Jcleared"),
    "does_long.tif": (tiff, "ValueError: xxx"),
    "does_unpicklable.tif": (tiff, "Odd: odd"),
    "does_none.tif": (tiff, "NoneType"),
    "does_flat.tif": (tiff, "(24, 40)"),
    "does_objects.tif": (tiff, "object"),
    "does_list.tif": (tiff, "list"),
    "does_recursion.tif": (tiff, "RecursionError"),
}
GOOD: dict[str, Callable[[Path], Any]] = {
    "plain.tif": tiff,
    "ünï 野 🔬.tif": tiff,
    "x' OR 1=1; --.tif": tiff,
    "{braces} %s $(touch ran).tif": tiff,
    "n" * 180 + ".tif": tiff,
    "does_closes.tif": tiff,
    "does_chdir.tif": tiff,
    "not_finite.tif": lambda path: tiff(path, np.full(SHAPE, [np.nan] * 39 + [np.inf], np.float32)),
}


@dataclass(frozen=True, slots=True)
class Ended:
    folder: Path
    status: int
    summary: dict[str, Any]
    said: str

    def reason(self, file: str) -> str:
        name, _, kind = file.rpartition(".")
        job = f"name-{name}_kind-{kind}"
        found = [each["reason"] for each in self.summary["failures"] if each["job"] == job]
        assert len(found) == 1, (file, self.summary["failures"])
        return str(found[0])


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("hostile")
    stacks = folder / "stacks"
    stacks.mkdir()
    # Where a link, a name or a path might lead.
    write_stack(folder / "secret", PIXELS, format="ome-zarr")
    for name, make in {**GOOD, **{name: make for name, (make, _) in BAD.items()}}.items():
        make(stacks / name)
    (folder / "worst.py").write_text(STEP)
    config = {
        "input": {"path": "stacks", "pattern": "{name}.{kind}"},
        "steps": [{"use": "worst:step", "declare": {"input": "numpy"}}],
        "output": {"path": "out", "name": "{name}"},
        "devices": {"gpus": []},
        "jobs": {"max_failures": 100},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "scheduler.screens", "run", "config.yaml", "--json"]
    if os.geteuid() == 0 and shutil.which("setpriv"):
        # Root is let in everywhere by these two alone.
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    before = seen(folder)
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "out/cache")},
    )
    assert done.stdout, done.stderr
    (folder / "before").write_text("\n".join(before))
    return Ended(folder, done.returncode, json.loads(done.stdout), done.stderr)


def seen(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] != "out" and "__pycache__" not in path.parts
    )


@pytest.mark.parametrize("name", BAD)
def test_a_bad_stack_has_its_own_reason(ended: Ended, name: str) -> None:
    reason = ended.reason(name)
    if name == "shut.tif" and os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may read everything, and there is no setpriv to take that away")
    assert BAD[name][1] in reason
    assert "Traceback" not in reason
    assert name.rpartition(".")[0] in reason or name.startswith("does_")
    assert not reason.rstrip().endswith(":")
    assert len(reason) < 3_000


@pytest.mark.parametrize("name", GOOD)
def test_a_good_stack_among_them_is_done(ended: Ended, name: str) -> None:
    result = ended.folder / "out" / f"{name.rpartition('.')[0]}.ome.tif"
    np.testing.assert_array_equal(tifffile.imread(result), tifffile.imread(ended.folder / "stacks" / name))


def test_the_run_ends_in_order_and_says_all(ended: Ended) -> None:
    assert ended.status == 1, ended.said
    summary = ended.summary
    assert (summary["jobs"], summary["done"], summary["failed"], summary["lost"]) == (
        len(BAD) + len(GOOD),
        len(GOOD),
        len(BAD),
        0,
    )
    assert "Traceback" not in ended.said
    assert not any(char for char in ended.said if not char.isprintable() and char != "\n")


def test_nothing_is_written_but_results(ended: Ended) -> None:
    out = ended.folder / "out"
    assert seen(ended.folder) == sorted([*(ended.folder / "before").read_text().split("\n"), "before"])
    assert {path.name for path in out.iterdir()} - {"cache", ".stackyard"} == {
        f"{name.rpartition('.')[0]}.ome.tif" for name in GOOD
    }
