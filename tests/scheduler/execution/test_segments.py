"""A chain that leaves its device: the device works on while others read, compute on the host, and write."""

import secrets
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile

from memcore import backend_of
from pools.virtual import VirtualDeviceMemory
from scheduler.execution.run import run
from tests.scheduler.execution.tiny_runs import MakeConfig, stacks, tried

pytestmark = pytest.mark.skipif(not backend_of("pyclesperanto").installed(), reason="needs pyclesperanto")

TAG = f"test-segments-{secrets.token_hex(3)}"
CAPACITY = 8 << 20
JOBS = 11
STEPS = (
    "import json, time\n"
    "from pathlib import Path\n"
    "from pools.virtual import VirtualDeviceMemory\n"
    f"device = VirtualDeviceMemory('VIRTUAL-{TAG}-0')\n"
    "def note(context, where):\n"
    "    ours = sum(each.nbytes for each in device.charges() if each.owner == context.job_id)\n"
    "    with open(Path(__file__).with_name('charged'), 'a') as file:\n"
    "        print(where, ours > 0, file=file)\n"
    "    time.sleep(1.0)\n"
    "def before(stack, *, context):\n"
    "    note(context, 'before')\n"
    "    return stack + 1\n"
    "def on_device(stack, *, context):\n"
    "    note(context, 'on_device')\n"
    "    return stack\n"
    "def after(stack, *, context):\n"
    "    note(context, 'after')\n"
    "    return stack * 2\n"
)


def test_a_device_is_busy_while_neighbours_are_on_the_host_and_its_bytes_are_theirs_again(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "segments.py").write_text(STEPS)
    memory = VirtualDeviceMemory(f"VIRTUAL-{TAG}-0", CAPACITY)
    try:
        config = make_config(
            input={"path": str(stacks(tmp_path / "in", JOBS)), "pattern": "{name}.tif"},
            steps=[
                {"use": "segments:before", "declare": {"input": "numpy"}},
                {"use": "segments:on_device", "declare": {"input": "pyclesperanto"}},
                {"use": "segments:after", "declare": {"input": "numpy"}},
            ],
            output={"path": "out", "name": "{name}"},
            devices={"gpus": {"virtual": [CAPACITY], "name": TAG}, "cpu": False},
        )
        summary = run(config)
    finally:
        memory.unlink()
    assert (summary.done, summary.failed) == (JOBS, 0)
    for number in range(JOBS):
        made = tifffile.imread(tmp_path / "out" / f"n{number:02}.ome.tif")
        np.testing.assert_array_equal(made, np.full((2, 5, 7), (number + 1) * 2, np.uint8), strict=True)
    # What is reserved on the device is there until the end of its stay, and not a step longer.
    charged = (tmp_path / "charged").read_text().split("\n")[:-1]
    assert sorted(set(charged)) == ["after False", "before True", "on_device True"]
    assert len(charged) == 3 * JOBS
    stays = sorted(tuple(stay) for each in tried(summary) for stay in each.detail["on_device"])
    assert len(stays) == JOBS
    # The first job of a kind runs alone, to be measured.
    busy = sum(end - began for began, end in stays[1:])
    span = stays[-1][1] - stays[1][0]
    print(f"device busy for {100 * busy / span:.1f} % of {span:.1f} s, {JOBS - 1} jobs of 3 x 1 s")
    assert all(end <= began for (_, end), (began, _) in pairwise(stays))
    assert busy >= 0.9 * span
