"""What a run does when its devices have no room: the CPU, waiting, or a failure with the figures."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pools.virtual import Charge, VirtualDeviceMemory
from scheduler.config import RunConfig
from scheduler.execution.journal import Journal
from scheduler.execution.run import run
from scheduler.execution.status import RunStatus, RunSummary

pytest.importorskip("torch", reason="needs torch: virtual GPUs hold no NumPy arrays")

MakeConfig = Callable[..., RunConfig]
CAPACITY = 8 << 20
TAG = f"test-pressure-{secrets.token_hex(3)}"
GAUSSIAN = [{"use": "gaussian", "with": {"sigma": 1.0}}]


@pytest.fixture
def device() -> Iterator[VirtualDeviceMemory]:
    """The one virtual GPU of these runs, which other programs can fill too."""
    memory = VirtualDeviceMemory(f"VIRTUAL-{TAG}-0", CAPACITY)
    yield memory
    memory.unlink()


@pytest.fixture
def hog(device: VirtualDeviceMemory) -> Charge:
    """A program that isn't ours and leaves 4 KiB of the device free."""
    return device.charge(CAPACITY - 4096, "somebody else")


def pressed(make_config: MakeConfig, on_pressure: str, **sections: Any) -> RunConfig:
    gpus = {"virtual": [CAPACITY], "name": TAG}
    memory = {"on_pressure": on_pressure}
    return make_config(**{"steps": GAUSSIAN, "devices": {"gpus": gpus}, "memory": memory, **sections})


def decisions(summary: RunSummary, job: str) -> str:
    journal = Journal.open_readonly(Path(summary.run_dir, "journal.sqlite"))
    return "\n".join(f"{verdict}: {reason}" for verdict, reason in journal.decisions(job))


def jobs_on(summary: RunSummary, name: str) -> int:
    return int(summary.devices[name]["jobs"])


def test_with_room_the_jobs_run_on_the_virtual_gpu(
    make_config: MakeConfig, device: VirtualDeviceMemory
) -> None:
    summary = run(pressed(make_config, "wait"))
    assert (summary.done, summary.exit_status) == (4, 0)
    assert jobs_on(summary, "virtual0") == 4
    assert summary.devices["virtual0"]["virtual"] is True
    assert device.used() == 0


@pytest.mark.parametrize("on_pressure", ["cpu", "earliest-finish"])
def test_under_pressure_the_cpu_takes_over_and_the_journal_says_why(
    make_config: MakeConfig, hog: Charge, on_pressure: str
) -> None:
    config = pressed(make_config, on_pressure)
    summary = run(config)
    assert (summary.done, summary.exit_status) == (4, 0)
    assert (jobs_on(summary, "cpu"), jobs_on(summary, "virtual0")) == (4, 0)
    words = decisions(summary, "well-A01_channel-1")
    assert "goes to cpu" in words
    assert "other programs leave 4 KiB" in words
    assert hog.nbytes == CAPACITY - 4096
    assert len(list(config.output.path.glob("*.ome.tif"))) == 4


def test_what_can_never_fit_a_device_goes_to_the_cpu(make_config: MakeConfig) -> None:
    summary = run(pressed(make_config, "cpu", devices={"gpus": {"virtual": [8192]}}))
    assert (summary.done, jobs_on(summary, "cpu")) == (4, 4)
    words = decisions(summary, "well-A01_channel-1")
    assert "fall_back: goes to cpu: virtual:torch needs" in words
    assert "virtual0, has 8 KiB" in words


@pytest.mark.parametrize("on_pressure", ["wait", "fail"])
def test_what_can_never_fit_is_refused_at_once_where_the_cpu_may_not_help(
    make_config: MakeConfig, on_pressure: str
) -> None:
    summary = run(pressed(make_config, on_pressure, devices={"gpus": {"virtual": [8192]}}))
    assert (summary.done, summary.failed, summary.exit_status) == (0, 4, 1)
    reason = summary.failures[0].reason
    assert "can never fit" in reason
    assert "8 KiB" in reason
    assert f"on_pressure is {on_pressure}" in reason


def test_wait_waits_until_the_other_program_is_gone(make_config: MakeConfig, hog: Charge) -> None:
    reasons: list[str] = []

    def end_the_hog(status: RunStatus) -> None:
        known = bool(status.devices) and status.devices[0].free_bytes is not None
        if known and not reasons and status.waiting:
            assert (status.running, status.done) == (0, 0)
            reasons.append(status.waiting[0].reason)
            hog.release()

    summary = run(pressed(make_config, "wait"), on_status=end_the_hog)
    assert (summary.done, jobs_on(summary, "virtual0")) == (4, 4)
    assert "on_pressure is wait" in reasons[0]


def test_fail_fails_with_the_figures(make_config: MakeConfig, hog: Charge) -> None:
    summary = run(pressed(make_config, "fail"))
    assert (summary.done, summary.failed, summary.exit_status) == (0, 4, 1)
    reason = summary.failures[0].reason
    assert "on_pressure is fail" in reason
    assert "4 KiB" in reason
    assert "8 MiB" in reason
    assert hog.nbytes > 0


def test_a_chain_without_cpu_waits_and_never_touches_it(make_config: MakeConfig, hog: Charge) -> None:
    held = [hog]

    def end_the_hog(status: RunStatus) -> None:
        if held and status.waiting and status.devices[0].free_bytes is not None:
            held.pop().release()

    gpus = {"virtual": [CAPACITY], "name": TAG}
    config = pressed(make_config, "cpu", devices={"gpus": gpus, "cpu": False})
    summary = run(config, on_status=end_the_hog)
    assert (summary.done, jobs_on(summary, "virtual0"), jobs_on(summary, "cpu")) == (4, 4, 0)


def test_a_stack_too_large_for_the_device_goes_through_it_in_blocks(
    make_config: MakeConfig, plate: Path, tmp_path: Path
) -> None:
    (tmp_path / "copying.py").write_text("def copy(stack):\n    return stack.clone()\n")
    declare = {"input": "torch", "splittable": "z", "workspace": 0}
    config = pressed(
        make_config,
        "wait",
        steps=[{"use": "copying:copy", "declare": declare}],
        devices={"gpus": {"virtual": [10_000]}, "cpu": False},
    )
    summary = run(config)
    assert (summary.done, jobs_on(summary, "virtual0")) == (4, 4)
    assert "in 2 blocks" in decisions(summary, "well-A01_channel-1")
    planes = [tifffile.imread(plate / f"A01_z{z:02}_c1.tif") for z in range(3)]
    np.testing.assert_array_equal(tifffile.imread(config.output.path / "A01_c1.ome.tif"), np.stack(planes))


def test_results_are_the_same_wherever_a_job_ran(
    make_config: MakeConfig, device: VirtualDeviceMemory
) -> None:
    on_gpu = pressed(make_config, "wait", output={"path": "gpu", "name": "{well}_c{channel}"})
    on_cpu = make_config(
        steps=[{**GAUSSIAN[0], "memory": "numpy"}], output={"path": "cpu", "name": "{well}_c{channel}"}
    )
    assert (run(on_gpu).done, run(on_cpu).done) == (4, 4)
    for path in sorted(on_cpu.output.path.glob("*.ome.tif")):
        expected = tifffile.imread(path)
        found = tifffile.imread(on_gpu.output.path / path.name)
        # the tolerance that the step states: 1e-6 of the largest value
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * float(expected.max()))
    assert device.capacity == CAPACITY
