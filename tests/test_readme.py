"""What the README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from memcore import MemoryType
from scheduler.config import RunConfig, load_config
from scheduler.images.arrays import ArrayFile
from scheduler.images.sample import write_sample
from scheduler.screens import cli
from scheduler.screens.proposal import propose_pattern
from scheduler.steps.resolve import BUILT_IN, resolve_step

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def python_block(word: str) -> str:
    (block,) = (block for block in blocks("python") if word in block)
    return block


@pytest.fixture
def reference(tmp_path: Path) -> RunConfig:
    (block,) = (block for block in blocks("yaml") if block.startswith("input:"))
    (tmp_path / "reference.yaml").write_text(block)
    return load_config(tmp_path / "reference.yaml")


def test_the_yaml_reference_loads_and_names_every_key(reference):
    assert reference.chosen_inputs == {"image": {"channel": (1,)}, "nuclei": {"channel": (2,)}}
    missing = []
    for name, field in RunConfig.model_fields.items():
        if name == "config_file":
            continue
        section = getattr(reference, name)
        parts = section if isinstance(section, tuple) else (section,)
        given = set().union(*(part.model_fields_set for part in parts))
        missing += [f"{name}.{key}" for key in type(parts[0]).model_fields if key not in given]
        assert field is not None
    assert not missing


@pytest.mark.parametrize("name", ["devices", "memory", "jobs", "cluster"])
def test_the_values_of_the_yaml_reference_are_the_defaults(reference, name):
    assert getattr(reference, name) == RunConfig.model_fields[name].default


def test_the_table_of_built_in_steps_says_which_implementations_there_are():
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|(.*)\|$", README, re.MULTILINE)
    assert {name for name, _ in rows} == set(BUILT_IN)
    needed = {
        "gaussian": {"sigma": 1.0},
        "richardson_lucy": {"sigma": 1.0},
        "convert_dtype": {"dtype": "uint8", "rule": "exact"},
    }
    (header,) = re.findall(r"^\| step \| keywords \|(.*)\|$", README, re.MULTILINE)
    columns = [name.strip() for name in header.split("|")]
    assert sorted(columns) == sorted(MemoryType)
    for name, cells in rows:
        shown = {column for column, cell in zip(columns, cells.split("|"), strict=True) if "●" in cell}
        arrays = {"flat": ArrayFile("flat.tif", (2, 3), "float32", "")} if name == "flat_field" else None
        step = resolve_step(name, with_=needed.get(name), arrays=arrays).step
        assert shown == set(step.memory_types), name


def test_pictures_are_there():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    assert all((Path(__file__).parent.parent / picture).is_file() for picture in pictures)


def test_every_command_shown_exists():
    shown = set(re.findall(r"(?:^    \$ |`)stackyard (\w+)", README, re.MULTILINE))
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert shown >= {"sample", "init", "run", "devices"}
    assert shown <= commands


def test_the_session_names_what_the_commands_say():
    names = [
        f"{w}_s{s}_z{z:02}_c{c}.tif" for w in ("A01", "A02") for s in (1, 2) for z in range(3) for c in (1, 2)
    ]
    proposal = propose_pattern(names)
    assert proposal is not None
    assert f"16 stacks in plate1, pattern {proposal.pattern}" in README


def test_the_errors_shown_are_those_of_that_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(
        'input: {path: plate1, patern: "{well}_s{site}_z{z}_c{channel}.tif"}\n'
        "steps:\n  - use: gaussian\n    with: {sigma: 1.0}\n"
        'output: {path: out, name: "{well}_s{site}_c{channel}"}\n'
        "devices: {headroom: 512MiX}\n"
    )
    result = CliRunner().invoke(cli.app, ["run", "bad.yaml"])
    shown = re.search(r"    \$ stackyard run bad.yaml\n(.*?)\n\n", README, re.DOTALL)
    assert shown is not None
    assert result.stderr == re.sub(r"^    ", "", shown[1], flags=re.MULTILINE) + "\n"
    assert result.exit_code == 2


def test_the_conversion_example_runs():
    done = subprocess.run(
        [sys.executable, "-c", python_block("convert_memory")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Failed to convert numpy array to numpy array\nReason: ")


def test_the_example_of_futures_runs(tmp_path):
    (tmp_path / "script.py").write_text(python_block("StackScheduler"))
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_the_step_and_the_script_run(tmp_path):
    """A run from Python, as shown, of a config that names the step shown."""
    write_sample(tmp_path / "plate1", wells=1, sites=1, channels=1, planes=3, size=32)
    (tmp_path / "mysteps.py").write_text(python_block("# mysteps.py"))
    (tmp_path / "script.py").write_text(python_block("load_config"))
    (tmp_path / "stackyard.yaml").write_text(
        'input: {path: plate1, pattern: "{well}_s{site}_z{z}_c{channel}.tif"}\n'
        "steps: [{use: mysteps:threshold, with: {level: 120}}]\n"
        'output: {path: out, name: "{well}"}\n'
    )
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    import tifffile

    mask = tifffile.imread(tmp_path / "out/A01.ome.tif")
    planes = [tifffile.imread(path) for path in sorted((tmp_path / "plate1").iterdir())]
    assert mask.dtype == "uint8"
    assert (mask == [plane > 120 for plane in planes]).all()


def test_two_channels_become_labels_and_a_table(tmp_path, monkeypatch):
    import tifffile

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_sample(tmp_path / "plate1", wells=1, sites=1, channels=2, planes=3, size=64)
    tifffile.imwrite(tmp_path / "flat.tif", np.ones((64, 64), np.float32))
    (tmp_path / "cells.py").write_text(python_block("# cells.py"))
    (block,) = (block for block in blocks("yaml") if block.startswith("steps:"))
    (tmp_path / "stackyard.yaml").write_text(
        f'input: {{path: plate1, pattern: "{{well}}_s{{site}}_z{{z}}_c{{channel}}.tif"}}\n{block}'
    )
    done = subprocess.run(
        [sys.executable, "-m", "scheduler.screens", "run", "stackyard.yaml"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    labels = tifffile.imread("out/A01_s1.ome.tif")
    header, *rows = Path("out/A01_s1.csv").read_text().splitlines()
    assert header == "well,site,nucleus,brightness"
    assert len(rows) == labels.max() > 0
    assert rows[0].startswith("A01,1,1,")
