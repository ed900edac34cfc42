"""A disk that is full in the middle of a run: nothing more is started, nothing is lost, `resume` finishes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from scheduler.images.outputs import verify_stack

JOBS = 24
SHAPE = (4, 63, 65)  # 32 KiB each
WAIT_S = 240


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    folder = tmp_path / "stacks"
    folder.mkdir()
    random = np.random.default_rng(5)
    for number in range(JOBS):
        stack = random.integers(0, 60000, SHAPE, np.uint16)
        tifffile.imwrite(folder / f"n{number:02}.tif", stack, photometric="minisblack")
    return folder


def stackyard(*arguments: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "scheduler.screens", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def whole_outputs(out: Path) -> set[str]:
    """Names of the outputs; each has to be whole, and there is nothing else but the run's folder."""
    found = {path for path in out.iterdir() if path.name != ".stackyard"}
    assert all(verify_stack(path, SHAPE, "uint16") for path in found), found
    return {path.name.removesuffix(".ome.tif") for path in found}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system in memory of the size that is asked for; a second call changes the size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: str) -> Path:
        options = f"remount,size={size}" if folder.is_mount() else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"may not mount here: {done.stderr.strip()}")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_resume_finishes_it(
    stacks: Path, small_disk: Callable[[str], Path], write_config: Callable[..., Path]
) -> None:
    out = small_disk("640k") / "out"
    config = write_config(
        input={"path": str(stacks), "pattern": "{name}.tif"},
        steps=[{"use": "convert_dtype", "with": {"dtype": "uint16", "rule": "exact"}, "memory": "numpy"}],
        output={"path": str(out), "name": "{name}"},
    )
    status, summary, said = stackyard("run", str(config))
    assert status == 130, said
    assert "no space left" in said
    assert summary["lost"] == 0
    assert 0 < len(whole_outputs(out)) < JOBS
    small_disk("16m")
    status, summary, said = stackyard("resume", summary["run_dir"])
    assert status == 0, said
    assert (summary["jobs"], summary["done"], summary["failed"], summary["lost"]) == (JOBS, JOBS, 0, 0)
    assert whole_outputs(out) == {path.stem for path in stacks.glob("*.tif")}


def test_no_room_for_one_output_blames_no_job(
    tmp_path: Path, stacks: Path, write_config: Callable[..., Path]
) -> None:
    """Where nothing may be mounted: a worker that hears once that there is no room, as a quota tells it."""
    (tmp_path / "quota.py").write_text(
        "import errno, pathlib\n"
        f"told = pathlib.Path({str(tmp_path)!r}, 'told')\n"
        "def step(stack, *, context):\n"
        "    if context.job_id == 'name-n07' and not told.exists():\n"
        "        told.touch()\n"
        "        raise OSError(errno.EDQUOT, 'Disk quota exceeded', 'out/n07')\n"
        "    return stack\n"
    )
    config = write_config(
        input={"path": str(stacks), "pattern": "{name}.tif"},
        steps=[{"use": "quota:step", "declare": {"input": "numpy"}}],
        output={"path": "out", "name": "{name}"},
    )
    status, summary, said = stackyard("run", str(config))
    assert status == 130, said
    assert "no space left for out/n07" in said
    assert summary["failures"] == []
    done = len(whole_outputs(tmp_path / "out"))
    assert summary["done"] == done < JOBS
    status, summary, said = stackyard("resume", summary["run_dir"])
    assert status == 0, said
    assert (summary["done"], summary["lost"]) == (JOBS, 0)
