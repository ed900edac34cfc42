"""An interrupted run is finished: what is done is kept, the rest is done, nothing is done twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from scheduler.config import RunConfig
from scheduler.execution.journal import Journal, JournalJob
from scheduler.execution.resume import ResumeError, is_done, resume
from scheduler.execution.run import run
from scheduler.execution.run_lock import run_lock
from scheduler.execution.status import RunStatus, RunSummary
from scheduler.execution.task import OutputRecord
from scheduler.images.errors import InputError, OutputError
from scheduler.images.naming import SUFFIXES
from scheduler.images.outputs import prepare_output, write_stack
from scheduler.images.sources import PlaneRef, StackSource
from scheduler.images.tables import table_digest, write_table

MakeConfig = Callable[..., RunConfig]
NUMPY_GAUSSIAN = [{"use": "gaussian", "with": {"sigma": 1.0}, "memory": "numpy"}]


@pytest.fixture
def interrupted(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunConfig, RunSummary]:
    """A run on one CPU slot that was stopped after its first job, which waits for that."""
    monkeypatch.setattr("scheduler.execution.devices.usable_cores", lambda: 1)
    gate, stop = tmp_path / "gate", threading.Event()
    (tmp_path / "resumed.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def gated(stack):\n"
        "    deadline = time.monotonic() + 60\n"
        f"    while not Path({str(gate)!r}).exists():\n"
        "        assert time.monotonic() < deadline, 'nobody opened the gate'\n"
        "        time.sleep(0.01)\n"
        "    return stack\n"
    )

    def stop_while_the_first_runs(status: RunStatus) -> None:
        if status.running:
            stop.set()
        if status.state == "stopping":
            gate.touch()

    config = make_config(steps=[*NUMPY_GAUSSIAN, {"use": "resumed:gated", "declare": {"input": "numpy"}}])
    summary = run(config, on_status=stop_while_the_first_runs, stop=stop)
    assert summary.interrupted
    assert 1 <= summary.done < 4
    return config, summary


def identities(config: RunConfig) -> dict[str, int]:
    """Each output's inode: another one means another file."""
    return {path.name: path.stat().st_ino for path in config.output.path.glob("*.ome.tif")}


def attempts(run_dir: str) -> dict[str, int]:
    return {job.job_id: job.attempts for job in Journal.open_readonly(Path(run_dir, "journal.sqlite")).jobs()}


def test_the_rest_is_done_and_the_done_is_kept(interrupted: tuple[RunConfig, RunSummary]) -> None:
    config, first = interrupted
    kept = identities(config)
    second = resume(first.run_dir)
    assert (second.jobs, second.done, second.failed, second.exit_status) == (4, 4, 0, 0)
    assert second.devices["cpu"]["jobs"] == 4
    after = identities(config)
    assert len(after) == 4
    assert {name: after[name] for name in kept} == kept
    states = [job.state for job in Journal.open_readonly(Path(first.run_dir, "journal.sqlite")).jobs()]
    assert states == ["done"] * 4


def test_resuming_a_finished_run_does_nothing(make_config: MakeConfig) -> None:
    config = make_config()
    first = run(config)
    before = identities(config)
    again = resume(first.run_dir)
    assert (again.jobs, again.done, again.exit_status) == (4, 4, 0)
    assert identities(config) == before
    assert set(attempts(first.run_dir).values()) == {1}


def test_outputs_that_are_gone_or_damaged_are_made_again(make_config: MakeConfig) -> None:
    config = make_config(steps=NUMPY_GAUSSIAN)
    first = run(config)
    expected = {path.name: tifffile.imread(path) for path in config.output.path.glob("*.ome.tif")}
    gone, damaged = sorted(config.output.path.glob("*.ome.tif"))[:2]
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-500])
    before = identities(config)
    assert resume(first.run_dir).done == 4
    assert {path.name for path in config.output.path.glob("*.ome.tif")} == set(expected)
    for name, stack in expected.items():
        np.testing.assert_array_equal(tifffile.imread(config.output.path / name), stack, strict=True)
    untouched = set(before) - {gone.name, damaged.name}
    assert {name: identities(config)[name] for name in untouched} == {n: before[n] for n in untouched}
    assert sorted(attempts(first.run_dir).values()) == [1, 1, 2, 2]


def test_a_failed_job_is_tried_again_once_its_input_is_mended(plate: Path, make_config: MakeConfig) -> None:
    whole = (plate / "A01_z01_c1.tif").read_bytes()
    (plate / "A01_z01_c1.tif").write_bytes(whole[:600])
    first = run(make_config())
    assert (first.done, first.failed) == (3, 1)
    (plate / "A01_z01_c1.tif").write_bytes(whole)
    second = resume(first.run_dir)
    assert (second.done, second.failed, second.exit_status) == (4, 0, 0)


def test_an_input_that_is_gone_is_named(plate: Path, interrupted: tuple[RunConfig, RunSummary]) -> None:
    _, first = interrupted
    for path in plate.glob("B02_*_c2.tif"):
        path.unlink()
    with pytest.raises(InputError, match="well-B02_channel-2"):
        resume(first.run_dir)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="no run"):
        resume(tmp_path)


def test_a_config_that_is_being_run_is_refused(make_config: MakeConfig) -> None:
    config = make_config()
    with run_lock(config, "first"):
        with pytest.raises(OutputError, match=f"run first, process {os.getpid()}"):
            run(config)
        other = make_config(steps=NUMPY_GAUSSIAN)
        with run_lock(other, "another config"):
            pass
    with run_lock(config, "second"):
        pass


@pytest.mark.parametrize("format", ["tiff", "ome-tiff", "ome-zarr"])
def test_the_results_of_another_run_or_job_dont_count_as_done(tmp_path: Path, format: str) -> None:
    path = write_stack(
        tmp_path / f"a{SUFFIXES[format]}",
        np.zeros((2, 4, 5), "uint8"),
        format=format,
        provenance={"run": "first", "job": "a", "steps": []},
    )
    row = JournalJob(
        "a", "done", "", str(path), (2, 4, 5), "uint8", 1, None,
        (OutputRecord("stack", str(path), (2, 4, 5), "uint8"),),
    )  # fmt: skip
    assert is_done(row, "first")
    assert not is_done(row, "second")
    assert not is_done(replace(row, job_id="b"), "first")
    assert not is_done(replace(row, outputs=()), "first")


def test_the_channel_of_another_run_doesnt_count_as_done(tmp_path: Path) -> None:
    fields = (("well", "A01"), ("channel", "1"))
    source = StackSource(fields, (PlaneRef("x"),), (2, 4, 5), "uint8")
    (target,) = prepare_output(tmp_path, "p.zarr/{well}/1", [source], "ome-zarr")
    for run_id in ("first", "second"):
        write_stack(
            target.path,
            np.zeros((2, 4, 5), "uint8"),
            format="ome-zarr",
            provenance={"run": run_id, "job": "a"},
            overwrite=True,
            channel=0,
        )
        output = OutputRecord("stack", str(target.path), (2, 4, 5), "uint8", channel=0)
        row = JournalJob("a", "done", "", str(target.path), (2, 4, 5), "uint8", 1, None, (output,))
        assert [is_done(row, each) for each in ("first", "second")] == [
            run_id == "first",
            run_id == "second",
        ]


def test_a_table_that_has_changed_doesnt_count_as_done(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", {"label": [1, 2]}, fields={})
    output = OutputRecord("seg", str(path), (2, 1), digest=table_digest(path))
    row = JournalJob("a", "done", "", None, (2, 4, 5), "uint8", 1, None, (output,))
    assert is_done(row, "first")
    write_table(path, {"label": [1, 3]}, fields={}, overwrite=True)
    assert not is_done(row, "first")


@pytest.mark.parametrize("outputs_before_the_kill", [0, 1, 3])
def test_a_killed_driver_loses_nothing(
    tmp_path: Path,
    write_config: Callable[..., Path],
    make_config: MakeConfig,
    outputs_before_the_kill: int,
) -> None:
    unharmed = make_config(steps=NUMPY_GAUSSIAN, output={"path": "unharmed", "name": "{well}_c{channel}"})
    assert run(unharmed).done == 4
    path = write_config("killed.yaml", steps=NUMPY_GAUSSIAN)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "scheduler.screens", "run", str(path), "--quiet"]
    with subprocess.Popen(command, start_new_session=True) as driver:
        deadline = time.monotonic() + 120
        while not list(out.glob(".stackyard/*/journal.sqlite")) or (
            len(list(out.glob("*.ome.tif"))) < outputs_before_the_kill
        ):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(driver.pid, signal.SIGKILL)
    (run_dir,) = (journal.parent for journal in out.glob(".stackyard/*/journal.sqlite"))
    summary = resume(run_dir)
    assert (summary.jobs, summary.done, summary.failed, summary.lost) == (4, 4, 0, 0)
    assert sorted(item.name for item in out.iterdir() if item.name != ".stackyard") == sorted(
        item.name for item in unharmed.output.path.glob("*.ome.tif")
    )
    for item in unharmed.output.path.glob("*.ome.tif"):
        np.testing.assert_array_equal(tifffile.imread(out / item.name), tifffile.imread(item), strict=True)
