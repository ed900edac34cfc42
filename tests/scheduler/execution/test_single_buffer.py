"""OpenCL refuses a buffer that the account of bytes has room for: out of memory, then the ladder."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from memcore import backend_of
from scheduler.execution.status import RunSummary
from tests.scheduler.execution.tiny_runs import decided, outcomes, tried

pytestmark = pytest.mark.skipif(
    not backend_of("pyclesperanto").installed(), reason="needs pyclesperanto and an OpenCL driver"
)

# PoCL with a limit of 1 GiB refuses a single buffer of more than a quarter of it.
LARGE = (66, 1024, 1024)
SMALL = (5, 64, 48)
STEP = """\
import pyclesperanto as cle
from memcore import memory_types

@memory_types("pyclesperanto", splittable="z", workspace=0)
def one_more(stack):
    return cle.add_image_and_scalar(stack, scalar=1.0)
"""


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunSummary]:
    """A run of one stack of 264 MiB and six small ones, on two virtual GPUs of 3 GiB, without a CPU."""
    folder = tmp_path_factory.mktemp("single-buffer")
    (folder / "in").mkdir()
    large = np.zeros(LARGE, np.float32)
    large[:] = np.arange(LARGE[0], dtype=np.float32)[:, None, None]
    tifffile.imwrite(folder / "in" / "large.tif", large)
    del large
    for number in range(6):
        tifffile.imwrite(folder / "in" / f"small{number}.tif", np.full(SMALL, number, np.float32))
    (folder / "clsteps.py").write_text(STEP)
    config = {
        "input": {"path": "in", "pattern": "{name}.tif"},
        "steps": [{"use": "clsteps:one_more"}],
        "output": {"path": "out", "name": "{name}"},
        "devices": {"gpus": {"virtual": ["3GiB", "3GiB"]}, "cpu": False, "headroom": 0},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "scheduler.screens", "run", str(folder / "config.yaml"), "--json"]
    environment = {**os.environ, "POCL_MEMORY_LIMIT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    yield RunSummary(**{**told, "interrupted": False, "failures": ()})
    for path in (folder / "in", folder / "out"):
        for file in path.glob("*.tif"):
            file.unlink()


def test_the_refusal_of_one_buffer_is_out_of_memory_and_the_stack_goes_in_blocks(summary: RunSummary) -> None:
    assert (summary.done, summary.failed, summary.lost) == (7, 0, 0)
    ends = outcomes(summary)
    *refused, last = ends.pop("name-large")
    assert set(refused) == {"out_of_memory"}
    assert last == "done"
    assert summary.oom_attempts == len(refused)
    assert set(ends.values()) == {("done",)}
    first, *_, whole = tried(summary, "name-large")
    assert "CL_INVALID_BUFFER_SIZE" in first.detail["error"]
    assert first.plan["split"] is None
    assert whole.plan["split"]["blocks"] >= 2
    assert f"in {whole.plan['split']['blocks']} blocks" in decided(summary, "name-large")


def test_every_result_is_right(summary: RunSummary) -> None:
    out = Path(summary.run_dir).parents[1]
    large = tifffile.imread(out / "large.ome.tif")
    assert (large.shape, large.dtype) == (LARGE, np.float32)
    for z, plane in enumerate(large):
        assert (plane == z + 1).all()
    for number in range(6):
        small = tifffile.imread(out / f"small{number}.ome.tif")
        np.testing.assert_array_equal(small, np.full(SMALL, number + 1, np.float32), strict=True)


def test_both_devices_have_worked(summary: RunSummary) -> None:
    assert {each.device for each in tried(summary)} == {"virtual0", "virtual1"}
