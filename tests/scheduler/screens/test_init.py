"""`stackyard init` writes a config that loads and finds the stacks."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from scheduler.config import load_config
from scheduler.images.sample import write_sample
from scheduler.images.sources import find_stacks
from scheduler.screens import cli
from scheduler.screens.proposal import output_name


def init(*arguments: str):
    return CliRunner().invoke(cli.app, ["init", *arguments])


def stacks_of(config: Path):
    given = load_config(config).input
    return find_stacks(given.path, given.pattern, stack_along=given.stack_along, select=given.select)


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sample(inside):
    write_sample(inside / "plate 1", wells=2, sites=1, channels=2, planes=3, size=8)
    (inside / "plate 1" / "notes.txt").touch()
    result = init()
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "stackyard.yaml: 4 stacks in plate 1, pattern {well}_s{site}_z{z}_c{channel}.tif\n"
    )
    text = (inside / "stackyard.yaml").read_text()
    assert text.startswith("# 4 stacks of 3 × 8 × 8 uint16, 1.5 KiB in all.")
    config = load_config(inside / "stackyard.yaml")
    assert config.output.name == "{well}_s{site}_c{channel}"
    assert config.output.path == inside / "out"
    assert [stack.shape for stack in stacks_of(inside / "stackyard.yaml")] == [(3, 8, 8)] * 4


def test_json(inside):
    write_sample(inside / "plate", wells=1, sites=1, channels=2, planes=3, size=8)
    for path in (inside / "plate").glob("*_c2.tif"):
        path.write_bytes(b"no image")
    assert json.loads(init("--json").stdout) == {
        "config": "stackyard.yaml",
        "folder": "plate",
        "pattern": "{well}_s{site}_z{z}_c{channel}.tif",
        "stacks": 2,
        "unreadable": 1,
        "left_out": 0,
    }


def test_images_that_are_left_out_are_counted(inside):
    for name, wells in (("one", 2), ("two", 1), ("three", 1)):
        write_sample(inside / name, wells=wells, sites=1, channels=1, planes=3, size=8)
    (inside / "one" / "overview.tif").touch()
    (inside / "one" / "notes.txt").touch()
    head, left_out = init().stdout.splitlines()
    assert head.startswith("stackyard.yaml: 2 stacks in one, pattern ")
    assert left_out.startswith("left out: 7 images of other names or in other folders")
    assert json.loads(init("--json", "--overwrite").stdout)["left_out"] == 7


def test_names_reach_the_terminal_without_control_codes(inside):
    write_sample(inside / "a\x1b[2Jb", wells=1, sites=1, channels=1, planes=2, size=8)
    assert "1 stack in a\\x1b[2Jb, pattern" in init().stdout


@pytest.mark.parametrize(("planes", "pattern"), [(4, "embryo{number}.ome.tif"), (1, "embryo{z}.ome.tif")])
def test_a_number_counts_planes_only_if_the_files_hold_single_ones(inside, planes, pattern):
    for number in range(3):
        tifffile.imwrite(
            inside / f"embryo{number}.ome.tif",
            np.zeros((planes, 8, 6), np.uint8),
            ome=True,
            metadata={"axes": "ZYX"},
        )
    assert init().exit_code == 0
    assert load_config(inside / "stackyard.yaml").input.pattern == pattern
    stacks = stacks_of(inside / "stackyard.yaml")
    assert [stack.shape for stack in stacks] == ([(4, 8, 6)] * 3 if planes == 4 else [(3, 8, 6)])


def test_axes_of_the_files_are_part_of_the_name(inside):
    tifffile.imwrite(
        inside / "a.ome.tif", np.zeros((2, 3, 8, 6), np.uint16), ome=True, metadata={"axes": "CZYX"}
    )
    assert init().exit_code == 0
    assert load_config(inside / "stackyard.yaml").output.name == "a_{channel}"
    assert [stack.shape for stack in stacks_of(inside / "stackyard.yaml")] == [(3, 8, 6)] * 2


def test_config_elsewhere_leads_back_to_the_images(inside):
    write_sample(inside / "images", wells=1, sites=1, channels=1, planes=2, size=8)
    (inside / "configs").mkdir()
    assert init("images", "--config", "configs/a.yaml").exit_code == 0
    assert load_config(inside / "configs/a.yaml").input.path == inside / "images"


def test_an_existing_config_is_kept_unless_told(inside):
    write_sample(inside, wells=1, sites=1, channels=1, planes=2, size=8)
    (inside / "stackyard.yaml").write_text("mine")
    result = init()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "stackyard.yaml exists; --overwrite replaces it" in result.stderr
    assert (inside / "stackyard.yaml").read_text() == "mine"
    assert init("--overwrite").exit_code == 0
    assert load_config(inside / "stackyard.yaml")


@pytest.mark.parametrize(
    ("folder", "said"), [("gone", "gone is no folder"), (".", "there is no TIFF file in . or below")]
)
def test_no_images(inside, folder, said):
    result = init(folder)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (inside / "stackyard.yaml").exists()


def test_results_and_hidden_folders_are_no_input(inside):
    write_sample(inside / "out", wells=2, sites=1, channels=1, planes=2, size=8)
    write_sample(inside / ".cache", wells=2, sites=1, channels=1, planes=2, size=8)
    write_sample(inside / "images", wells=1, sites=1, channels=1, planes=2, size=8)
    assert init().exit_code == 0
    assert load_config(inside / "stackyard.yaml").input.path == inside / "images"


@pytest.mark.parametrize(
    ("pattern", "fields", "name"),
    [
        ("{well}_s{site}_z{z}_c{channel}.tif", ["well", "site", "channel"], "{well}_s{site}_c{channel}"),
        ("r{row}c{column}p{z}-ch{channel}.tiff", ["row", "column", "channel"], "r{row}c{column}-ch{channel}"),
        ("{z}.tif", [], "result"),
        ("{name}{z:d}.tif", ["name"], "{name}"),
        ("{plate}/{well}*{z}.ome.tif", ["plate", "well", "time"], "{plate}_{well}_{time}"),
    ],
)
def test_output_name(pattern, fields, name):
    assert output_name(pattern, fields) == name
