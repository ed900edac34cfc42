"""What a user gets wrong: one clear message and exit 2, and nothing started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from typer.testing import CliRunner

from scheduler.screens.cli import app

Refused = Callable[..., str]


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    """Two stacks of 2 x 9 x 11 voxels."""
    folder = tmp_path / "plate"
    folder.mkdir()
    for well in ("A01", "B02"):
        for z in range(2):
            tifffile.imwrite(folder / f"{well}_z{z}.tif", np.full((9, 11), 7, np.uint16))
    return folder


@pytest.fixture
def config(tmp_path: Path, plate: Path) -> dict[str, Any]:
    """A config that runs; tests break one part of it."""
    return {
        "input": {"path": str(plate), "pattern": "{well}_z{z}.tif"},
        "steps": [{"use": "gaussian", "with": {"sigma": 1.0}}],
        "output": {"path": str(tmp_path / "out"), "name": "{well}"},
    }


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Run a config that can't run; returns the message, having seen that nothing was started."""

    def run(config: dict[str, Any] | str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        result = CliRunner().invoke(app, ["run", str(path)])
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert not list((tmp_path / "out").glob("**/journal.sqlite"))
        return " ".join(result.output.split())

    return run


def test_a_missing_folder(config: dict[str, Any], refused: Refused) -> None:
    config["input"]["path"] = "nowhere"
    assert "nowhere doesn't exist" in refused(config)


def test_a_pattern_that_matches_nothing_shows_what_is_there(config: dict[str, Any], refused: Refused) -> None:
    config["input"]["pattern"] = "{well}_plane{z}.tif"
    said = refused(config)
    assert "{well}_plane{z}.tif" in said
    assert "A01_z0.tif" in said


def test_a_gap_in_z_names_the_missing_plane(config: dict[str, Any], refused: Refused, plate: Path) -> None:
    tifffile.imwrite(plate / "A01_z3.tif", np.zeros((9, 11), np.uint16))
    said = refused(config)
    assert "A01" in said
    assert "2" in said


def test_an_unknown_step_offers_the_nearest(config: dict[str, Any], refused: Refused) -> None:
    config["steps"][0]["use"] = "gausian"
    said = refused(config)
    assert "config.yaml:" in said
    assert "did you mean 'gaussian'" in said


def test_a_function_that_cannot_be_imported(config: dict[str, Any], refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import a_module_that_nobody_has\n")
    config["steps"] = [{"use": "needs_more:step", "declare": {"input": "numpy"}}]
    said = refused(config)
    assert "needs_more" in said
    assert "a_module_that_nobody_has" in said


def test_a_module_without_that_function(config: dict[str, Any], refused: Refused) -> None:
    config["steps"] = [{"use": "scipy.ndimage:gaussian_filtre", "declare": {"input": "numpy"}}]
    assert "gaussian_filter" in refused(config)


def test_an_undeclared_function_is_told_how_to_declare(config: dict[str, Any], refused: Refused) -> None:
    config["steps"] = [{"use": "scipy.ndimage:gaussian_filter", "with": {"sigma": 1.0}}]
    assert "declare" in refused(config)


def test_an_output_folder_that_cannot_be_made(
    config: dict[str, Any], refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    config["output"]["path"] = str(tmp_path / "file" / "out")
    assert "can't be written" in refused(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission(
    config: dict[str, Any], refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    assert "Permission denied" in refused(config)


def test_an_unknown_key_offers_the_nearest_and_its_place(refused: Refused, plate: Path) -> None:
    said = refused(
        f"input: {{path: {plate}, pattern: '{{well}}_z{{z}}.tif'}}\n"
        "steps: [{use: gaussian, with: {sigma: 1}}]\n"
        "outputt: {path: out, name: '{well}'}\n"
    )
    assert "config.yaml:3:1" in said
    assert "did you mean 'output'" in said


def test_a_wrong_type_names_file_and_line(config: dict[str, Any], refused: Refused) -> None:
    config["memory"] = {"reproducible": "perhaps"}
    said = refused(config)
    assert "config.yaml:" in said
    assert "memory.reproducible: expected true or false" in said


def test_an_unknown_step_keyword_offers_the_nearest(config: dict[str, Any], refused: Refused) -> None:
    config["steps"][0]["with"] = {"sigmma": 1.0}
    assert "sigma" in refused(config)


def test_a_gpu_that_is_not_there(config: dict[str, Any], refused: Refused) -> None:
    config["devices"] = {"gpus": [97]}
    assert "GPU 97 is not there" in refused(config)


def test_two_stacks_for_one_output_name_the_field_that_differs(
    config: dict[str, Any], refused: Refused
) -> None:
    config["output"]["name"] = "result"
    assert "{well}" in refused(config)


def run_command(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scheduler.screens", "run", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_outputs_that_exist_are_kept_unless_overwriting_is_asked_for(
    config: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    kept = tmp_path / "out" / "A01.ome.tif"
    kept.parent.mkdir()
    kept.write_bytes(b"precious")
    refused = run_command(path)
    assert refused.returncode == 2
    assert "A01.ome.tif" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert kept.read_bytes() == b"precious"
    assert run_command(path, "--overwrite").returncode == 0
    assert tifffile.imread(kept).shape == (2, 9, 11)


def test_ctrl_c_stops_cleanly_and_keeps_what_is_done(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one_waits.py").write_text(
        "import time\n"
        "def step(stack, *, context):\n"
        "    while 'B02' in context.job_id:\n"
        "        time.sleep(0.05)\n"
        "    return stack\n"
    )
    config["steps"] = [{"use": "one_waits:step", "declare": {"input": "numpy"}}]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "scheduler.screens", "run", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        finished = tmp_path / "out" / "A01.ome.tif"
        deadline = time.monotonic() + 120
        while not finished.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert tifffile.imread(finished).shape == (2, 9, 11)
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == [".stackyard", "A01.ome.tif"]
