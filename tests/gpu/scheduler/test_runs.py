"""Whole runs on a GPU; those that can are rehearsed on a virtual one with STACKYARD_GPU_REHEARSAL=1."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from scheduler import run
from tests.cuda import cuda_libraries, on_cuda
from tests.gpu.scheduler.nvml import GIB, MIB, GpuUnderTest, hog
from tests.scheduler.execution.tiny_runs import MakeConfig, decided, outcomes, stacks, step_config, tried

ROOT = Path(__file__).parents[3]
LIMIT_S = 110
REHEARSE = os.environ.get("STACKYARD_GPU_REHEARSAL") == "1"
ONE_GPU: Mapping[str, Any] = {"gpus": {"virtual": ["2GiB"]}} if REHEARSE else {"gpus": [0]}
LIBRARIES = pytest.mark.parametrize("name", ["torch"] if REHEARSE else ["torch", "cupy"])
real = pytest.mark.skipif(REHEARSE, reason="needs real device memory")
pytestmark = pytest.mark.gpu


def need(name: str) -> None:
    if not REHEARSE:
        on_cuda(name)


def stackyard(*arguments: str, limit_s: float = LIMIT_S) -> "subprocess.CompletedProcess[str]":
    """Run the command, and see that it ends in order."""
    done = subprocess.run(
        [sys.executable, "-m", "scheduler.screens", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done


@LIBRARIES
def test_results_say_which_device_and_library_made_them(
    make_config: MakeConfig,
    name: str,
) -> None:
    need(name)
    steps = [{"use": "gaussian", "with": {"sigma": 1.0}, "memory": [name]}]
    summary = run(make_config(steps=steps, devices={**ONE_GPU, "cpu": False}))
    assert (summary.done, summary.failed, summary.lost, summary.oom_attempts) == (4, 0, 0, 0)
    (used,) = [each for each in summary.devices.values() if each["jobs"]]
    assert used["kind"] == ("virtual" if REHEARSE else "cuda")
    results = sorted(Path(summary.run_dir).parents[1].glob("*.ome.tif"))
    assert len(results) == 4
    made = tifffile.TiffFile(results[0]).ome_metadata or ""
    device = "virtual0" if REHEARSE else "gpu0"
    for said in (f'"memory_type": "{name}"', f'"device": "{device}"'):
        assert said in made.replace("&quot;", '"')
    on_cpu = run(make_config(steps=[{"use": "gaussian", "with": {"sigma": 1.0}}], devices={"gpus": []},
                             output={"path": "cpu", "name": "{well}_c{channel}"}))  # fmt: skip
    for path in sorted(Path(on_cpu.run_dir).parents[1].glob("*.ome.tif")):
        expected, found = tifffile.imread(path), tifffile.imread(results[0].with_name(path.name))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * 4000)


GREEDY = """
import numpy as np
from memcore import memory_types

@memory_types("{name}")
def step(stack):
    import {name} as library
    where = {{"device": stack.device}} if "{name}" == "torch" else {{}}
    library.empty(1 << 46, dtype=library.uint8, **where)

@step.register("numpy")
def step_on_cpu(stack):
    return np.array(stack)
"""


@LIBRARIES
def test_a_job_that_runs_out_of_device_memory_ends_on_the_cpu(
    tmp_path: Path,
    make_config: MakeConfig,
    name: str,
) -> None:
    need(name)
    (tmp_path / "greedy.py").write_text(GREEDY.format(name=name))
    config = make_config(
        input={"path": str(stacks(tmp_path / "in", 2)), "pattern": "{name}.tif"},
        steps=[{"use": "greedy:step"}],
        output={"path": "out", "name": "{name}"},
        devices=ONE_GPU,
        memory={"on_pressure": "cpu"},
    )
    summary = run(config)
    assert (summary.done, summary.failed, summary.lost) == (2, 0, 0)
    assert summary.oom_attempts >= 1
    ends = outcomes(summary)
    assert {tries[-1] for tries in ends.values()} == {"done"}
    assert any("out_of_memory" in tries for tries in ends.values())
    assert {tried(summary, job)[-1].device for job in ends} == {"cpu"}


@LIBRARIES
@real
def test_the_peak_of_a_job_alone_on_its_gpu_is_measured(
    tmp_path: Path,
    make_config: MakeConfig,
    name: str,
) -> None:
    need(name)
    (tmp_path / "taker.py").write_text(
        f"def step(stack):\n"
        f"    import {name} as library\n"
        f"    where = dict(device=stack.device) if {name!r} == 'torch' else {{}}\n"
        f"    array = library.zeros({256 * MIB}, dtype=library.uint8, **where)\n"
        f"    return stack + array[:1].max()\n"
    )
    devices = {"gpus": [0], "cpu": False}
    summary = run(step_config(make_config, stacks(tmp_path / "in", 3), "taker", name, devices=devices))
    assert (summary.done, summary.failed) == (3, 0)
    peaks = [each.detail["device_peak_bytes"] for each in tried(summary)]
    assert all(256 * MIB <= peak < 300 * MIB for peak in peaks), peaks


FAULTS = {
    # An index out of range fails an assertion on the device, which the process can't be rid of.
    "torch": (
        "far = library.full((5,), 1 << 30, device=stack.device); "
        "library.zeros(3, device=stack.device)[far].sum().item()"
    ),
    "cupy": (
        "library.RawKernel('extern \"C\" __global__ void fault(int* p) { *p = 1; }', 'fault')"
        "((1,), (1,), (library.uint64(8),)); library.cuda.Device().synchronize()"
    ),
}


@LIBRARIES
@real
def test_a_fault_on_the_gpu_ends_its_process_and_no_other_job(
    tmp_path: Path,
    make_config: MakeConfig,
    name: str,
) -> None:
    need(name)
    (tmp_path / "faulty.py").write_text(
        f"def step(stack, *, context):\n"
        f"    import {name} as library\n"
        f"    if context.job_id == 'name-n03':\n"
        f"        {FAULTS[name]}\n"
        f"    return stack\n"
    )
    devices = {"gpus": [0], "cpu": False}
    summary = run(step_config(make_config, stacks(tmp_path / "in", 8), "faulty", name, devices=devices))
    assert (summary.done, summary.failed, summary.lost) == (7, 1, 0)
    (failure,) = summary.failures
    assert failure.job == "name-n03"
    ends = outcomes(summary)
    assert ends.pop("name-n03") == ("worker_died", "worker_died")
    assert {tries[-1] for tries in ends.values()} == {"done"}
    assert any(f"{name} can't use gpu0 any more" in remark for remark in summary.remarks), summary.remarks


@LIBRARIES
@real
def test_jobs_go_to_the_cpu_while_another_program_has_the_gpu(
    tmp_path: Path,
    make_config: MakeConfig,
    gpu: GpuUnderTest,
    name: str,
) -> None:
    need(name)
    (tmp_path / "large.py").write_text(
        f"from memcore import memory_types\n"
        f"@memory_types({name!r}, workspace={4 * GIB})\n"
        f"def step(stack):\n    return stack + 0\n"
        f"@step.register('numpy')\n"
        f"def step_on_cpu(stack):\n    return stack + 0\n"
    )
    config = make_config(
        input={"path": str(stacks(tmp_path / "in", 3)), "pattern": "{name}.tif"},
        steps=[{"use": "large:step"}],
        output={"path": "out", "name": "{name}"},
        devices={"gpus": [0]},
        memory={"on_pressure": "cpu"},
    )
    with hog(gpu.free() - 3 * GIB):
        summary = run(config)
    assert (summary.done, summary.failed, summary.lost, summary.oom_attempts) == (3, 0, 0, 0)
    assert {each.device for each in tried(summary)} == {"cpu"}
    assert "fall_back: " in decided(summary, "name-n00")


def test_two_runs_share_one_gpu(tmp_path: Path, write_config: Any) -> None:
    need("torch")
    (tmp_path / "cache").mkdir()
    processes = []
    for number in range(2):
        config = write_config(
            f"run{number}.yaml",
            steps=[{"use": "gaussian", "with": {"sigma": 1.0}, "memory": ["torch"]}],
            output={"path": str(tmp_path / f"out{number}"), "name": "{well}_c{channel}"},
            devices={**ONE_GPU, "cpu": False},
        )
        command = [sys.executable, "-m", "scheduler.screens", "run", str(config), "--json"]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        ends = [process.communicate(timeout=LIMIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], [errors[-800:] for _, errors in ends]
    for out, _ in ends:
        summary = json.loads(out)
        assert (summary["done"], summary["lost"], summary["oom_attempts"]) == (4, 0, 0)


# The commands


@real
def test_the_gpu_and_its_libraries_are_shown(gpu: GpuUnderTest) -> None:
    shown = json.loads(stackyard("devices", "--json").stdout)
    assert gpu.uuid in [device["uuid"] for device in shown["devices"]]
    for name in cuda_libraries("torch", "cupy", "jax", "tensorflow"):
        assert shown["backends"][name]["available"], shown["backends"][name]


def test_the_quick_start_runs_on_the_gpu(tmp_path: Path) -> None:
    stackyard("sample", str(tmp_path / "sample"), "--wells", "1", "--size", "128", "--planes", "6")
    text = (ROOT / "configs" / "quickstart.yaml").read_text()
    text = text.replace("../data/sample", str(tmp_path / "sample"))
    text = text.replace("../out/quickstart", str(tmp_path / "out"))
    gpus = json.dumps(ONE_GPU["gpus"])
    text = text.replace("gpus: auto ", f"gpus: {gpus} ").replace("cpu: true", "cpu: false")
    (tmp_path / "quickstart.yaml").write_text(text)
    if not REHEARSE:
        cuda_libraries("torch", "cupy")
    summary = json.loads(stackyard("run", str(tmp_path / "quickstart.yaml"), "--json").stdout)
    assert (summary["done"], summary["failed"], summary["lost"]) == (4, 0, 0)
    (used,) = [device for device in summary["devices"].values() if device["jobs"]]
    assert used["virtual"] == REHEARSE


def test_a_stress_test_loses_nothing() -> None:
    if not REHEARSE:
        cuda_libraries("torch", "cupy")
    options = ["--jobs", "40", "--hog", "random", "--kill-workers", "1", "--under-estimate", "20%", "--json"]
    virtual = ["--virtual", "1x2GiB"] if REHEARSE else []
    account = json.loads(stackyard("stress", *options, *virtual).stdout)
    assert (account["done"], account["failed"], account["lost"]) == (40, 0, 0)
    assert (account["duplicates"], account["wrong_values"], account["reservations_left"]) == (0, 0, 0)
    assert account["overcommit_bytes"] == 0
    assert account["worker_kills"] == 1
