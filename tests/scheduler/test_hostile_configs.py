"""Configs that are malicious or absurd: refused with their place and a reason, and nothing is written."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from scheduler.screens.cli import app

INPUT = 'input: {path: stacks, pattern: "{name}_z{z}.tif"}\n'
STEPS = "steps: [{use: gaussian, with: {sigma: 1}}]\n"
OUTPUT = 'output: {path: out, name: "{name}"}\n'
WHOLE = INPUT + STEPS + OUTPUT


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one stack, away from which everything is somebody else's."""
    folder = tmp_path / "here"
    (folder / "stacks").mkdir(parents=True)
    for z in range(2):
        tifffile.imwrite(folder / "stacks" / f"a_z{z}.tif", np.full((9, 11), 7, np.uint16))
    monkeypatch.chdir(folder)
    return folder


def bomb() -> str:
    lines = ["b0: &b0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines)


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr
    assert all(char.isprintable() or char == "\n" for char in result.stderr)
    assert len(result.stderr) < 5000
    return result.stderr


CASES = {
    "python object": (WHOLE + "memory: !!python/object/apply:os.system [touch ran]\n", ":4:", "constructor"),
    "python name": ("input: !!python/name:os.system\n", ":1:8", "constructor"),
    "alias bomb": (bomb() + "\n" + WHOLE, "", "stands for more than 20,000 values"),
    "deep nesting": (WHOLE + "jobs: " + "[" * 5000 + "]" * 5000, ":4:", "nested deeper than 40 levels"),
    "an alias of itself": (WHOLE + "jobs: &j {priority: *j}\n", ":4:", "contains itself"),
    "very many keys": (
        WHOLE + "".join(f"k{n}: 1\n" for n in range(9_000)),
        ":4:1",
        "and 8,980 more",
    ),
    "a key twice": (WHOLE + OUTPUT, ":4:1", "key 'output' is given twice"),
    "control codes in a key": (WHOLE + '"\\e[2Jx": 1\n', ":4:1", "unknown key"),
    "a NUL in a name": (
        INPUT + STEPS + 'output: {path: out, name: "a\\0{name}"}\n',
        "",
        "control characters",
    ),
    "a name that leads up": (INPUT + STEPS + 'output: {path: out, name: "../{name}"}\n', "", "'../a'"),
    "an absolute name": (INPUT + STEPS + 'output: {path: out, name: "/tmp/{name}"}\n', "", "'/tmp/a'"),
    "a name that asks for attributes": (
        INPUT + STEPS + 'output: {path: out, name: "{name.__class__}"}\n',
        ":3:27",
        "a field is a name in braces",
    ),
    "a name of a billion spaces": (
        INPUT + STEPS + 'output: {path: out, name: "{name:>1000000000}"}\n',
        ":3:27",
        "a field is a name in braces",
    ),
    "a name longer than any file's": (
        INPUT + STEPS + f'output: {{path: out, name: "{"n" * 300}{{name}}"}}\n',
        "",
        "name",
    ),
    "a pattern that leads up": (
        'input: {path: stacks, pattern: "../{name}_z{z}.tif"}\n' + STEPS + OUTPUT,
        ":1:32",
        "must name files inside the folder",
    ),
    "a pattern without separators": (
        'input: {path: stacks, pattern: "{a}{b}{c}{d}{z}.tif"}\n' + STEPS + OUTPUT,
        ":1:32",
        "fields {a} and {b} touch",
    ),
    "sigma is no number": (WHOLE.replace("sigma: 1", "sigma: .nan"), ":2:39", "got nan"),
    "sigma is infinite": (WHOLE.replace("sigma: 1", "sigma: 1e999"), ":2:39", "got inf"),
    "sigma is negative": (WHOLE.replace("sigma: 1", "sigma: -1"), ":2:39", "zero or more; got -1"),
    "a negative size": (WHOLE + "devices: {headroom: -1}\n", ":4:21", "a size can't be negative"),
    "an infinite time": (WHOLE + "jobs: {timeout_s: .inf}\n", ":4:", "jobs.timeout_s"),
    "a huge number": (WHOLE + f"jobs: {{priority: {'9' * 5000}}}\n", "", ""),
    "a million virtual GPUs": (
        WHOLE + "devices: {gpus: {virtual: [" + ", ".join(["1GiB"] * 30_000) + "]}}\n",
        "",
        "",
    ),
    "code as a step": (
        WHOLE.replace("use: gaussian", "use: \"__import__('os').system('touch ran')\""),
        ":2:15",
        "no step",
    ),
    "a path as a step": (
        WHOLE.replace("use: gaussian", 'use: "../evil:step"'),
        ":2:15",
        "package.module:function",
    ),
    "a step that is no function": (
        WHOLE.replace("use: gaussian, with: {sigma: 1}", "use: json:__file__, declare: {input: numpy}"),
        ":2:15",
        "can't be called",
    ),
    "a cluster that is no address": (
        WHOLE + 'cluster: {kind: address, address: "file:///etc/passwd"}\n',
        ":4:",
        "expected the address of a Dask scheduler",
    ),
    "the outputs are the inputs": (
        INPUT + STEPS + 'output: {path: stacks, format: tiff, name: "{name}_z0"}\n',
        "",
        "",
    ),
}


@pytest.mark.parametrize(("text", "place", "reason"), CASES.values(), ids=CASES)
def test_refused_before_anything_starts(here: Path, text: str, place: str, reason: str) -> None:
    Path("config.yaml").write_text(text)
    before = sorted(here.rglob("*"))
    said = refused("run", "config.yaml")
    assert f"config.yaml{place}" in said or not place
    assert reason in said
    # The folder for results may be there, and has nothing in it.
    assert [path for path in sorted(here.rglob("*")) if path not in before and path.name != "out"] == []
    assert not (here.parent / "ran").exists()


def test_outputs_behind_a_link_that_leads_elsewhere(here: Path) -> None:
    (here / "out").mkdir()
    (here.parent / "elsewhere").mkdir()
    (here / "out/sub").symlink_to(here.parent / "elsewhere")
    Path("config.yaml").write_text(INPUT + STEPS + 'output: {path: out, name: "sub/{name}"}\n')
    assert "elsewhere" in refused("run", "config.yaml")
    assert list((here.parent / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to("/dev/zero"), "larger than 256 KiB"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("gone"), "no such file"),
        (lambda path: path.write_bytes(os.urandom(64) + b"\xff\0"), "config.yaml"),
        (lambda path: path.write_text(""), "the file is empty"),
    ],
    ids=["a device", "a folder", "a link to itself", "a link to nowhere", "noise", "nothing"],
)
def test_what_is_no_config(here: Path, make, reason: str) -> None:
    make(here / "config.yaml")
    assert reason in refused("run", "config.yaml")


@pytest.mark.parametrize("command", ["status", "resume", "report", "cancel", "simulate"])
@pytest.mark.parametrize("there", ["nothing", "a file", "noise in a journal", "an empty journal"])
def test_what_is_no_run(here: Path, command: str, there: str) -> None:
    run = here / "run"
    if there == "a file":
        run.write_bytes(b"\x1b[2J")
    elif there != "nothing":
        run.mkdir()
        (run / "journal.sqlite").write_bytes(b"" if there == "an empty journal" else os.urandom(5000))
    assert "run" in refused(command, "run")


def test_planes_that_are_there_twice_or_not_at_all_are_named(here: Path) -> None:
    Path("config.yaml").write_text(WHOLE)
    stacks = here / "stacks"
    (stacks / "a_z00.tif").write_bytes((stacks / "a_z0.tif").read_bytes())
    said = refused("run", "config.yaml")
    assert "a_z0.tif" in said
    assert "a_z00.tif" in said
    (stacks / "a_z00.tif").rename(stacks / "a_z3.tif")
    assert "2" in refused("run", "config.yaml")
    for path in stacks.iterdir():
        path.unlink()
    assert "it is empty" in refused("run", "config.yaml")
    stacks.rmdir()
    os.mkfifo(stacks)
    assert "stacks" in refused("run", "config.yaml")
    assert not (here / "out").exists()
