"""Runs on a Dask cluster of separate programs: who joins it, what it lacks, what is left there afterwards."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tifffile

from scheduler.execution.environment import THREAD_VARIABLES
from scheduler.execution.resume import resume
from tests.scheduler.dask_programs import DaskPrograms, kill_with_children, names_of, wait_for
from tests.scheduler.execution.gated_runs import (
    GatedRun,
    outcomes,
    release,
    wait_until_begun,
    write_gated,
)


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[DaskPrograms]:
    """A scheduler without workers."""
    (tmp_path / "programs").mkdir()
    with DaskPrograms(tmp_path / "programs") as programs:
        programs.scheduler()
        yield programs


def stackyard(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The command, as in a terminal."""
    command = [sys.executable, "-m", "scheduler.screens", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def results(folder: Path) -> dict[str, int]:
    return {path.name: int(tifffile.imread(path).max()) for path in (folder / "out").glob("*.tif")}


def test_workers_of_both_kinds_with_different_threads_do_every_job(
    tmp_path: Path, dask: DaskPrograms
) -> None:
    dask.worker(name="one")
    dask.worker("--no-nanny", name="two", threads=2)
    with dask.client() as client:
        wait_for("workers", lambda: names_of(client) == {"one", "two"})
    hold = ("n-0", "n-1", "n-2")
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=6, hold=hold))
    processes = [wait_until_begun(tmp_path, job) for job in hold]
    for job in hold:
        release(tmp_path, job)
    summary = run.summary()
    assert (summary.done, summary.failed, summary.lost) == (6, 0, 0)
    assert sorted(processes.count(process) for process in set(processes)) == [1, 2]
    assert results(tmp_path) == {f"n{number}.ome.tif": number for number in range(6)}


def test_what_a_workers_environment_lacks_is_named_once(tmp_path: Path, dask: DaskPrograms) -> None:
    # Dask sets these in any process that has started workers, such as this one.
    unset = dict.fromkeys(THREAD_VARIABLES, "")
    dask.worker("--no-nanny", name="two", threads=2, environment=unset)
    with dask.client() as client:
        wait_for("worker", lambda: names_of(client) == {"two"})
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=1))
    assert run.summary().remarks == (
        "worker two: OMP_NUM_THREADS isn't set: 2 attempts at a time each use every core",
    )


def test_a_worker_that_comes_late_is_used(tmp_path: Path, dask: DaskPrograms) -> None:
    dask.worker(name="first")
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=2, hold=("n-0",)))
    first = wait_until_begun(tmp_path, "n-0")
    dask.worker(name="late")
    second = wait_until_begun(tmp_path, "n-1")
    release(tmp_path, "n-0")
    assert run.summary().done == 2
    assert first != second


def test_a_cluster_without_workers_is_waited_for_with_the_reason(tmp_path: Path, dask: DaskPrograms) -> None:
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=1))
    run.wait_for_reason("no worker")
    dask.worker(name="a")
    assert run.summary().done == 1


def test_waiting_for_workers_can_be_interrupted(tmp_path: Path, dask: DaskPrograms) -> None:
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=1))
    run.wait_for_reason("no worker")
    run.stop.set()
    assert run.summary().exit_status == 130


def test_jobs_wait_for_a_worker_to_come_when_all_have_gone(tmp_path: Path, dask: DaskPrograms) -> None:
    program = dask.worker(name="a")
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=2, hold=("n-0",)))
    wait_until_begun(tmp_path, "n-0")
    kill_with_children(program)
    run.wait_for_reason("its worker process has gone")
    release(tmp_path, "n-0")
    dask.worker(name="b")
    summary = run.summary()
    assert (summary.done, summary.failed) == (2, 0)
    assert outcomes(summary, "n-0") == ["worker_died", "done"]


def test_a_lost_scheduler_ends_the_run_to_be_resumed_on_another(tmp_path: Path, dask: DaskPrograms) -> None:
    scheduler = dask.scheduler("--port", "0")
    dask.worker(name="a")
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=3, hold=("n-1",)))
    wait_until_begun(tmp_path, "n-1")
    kill_with_children(scheduler)
    summary = run.summary()
    assert (summary.exit_status, summary.failed, summary.lost) == (130, 0, 0)
    assert summary.remarks == (
        "the connection to the Dask scheduler is lost; resume the run when it is back",
    )
    release(tmp_path, "n-1")
    port = dask.address.rpartition(":")[2]
    dask.scheduler("--port", port)
    dask.worker(name="b")
    finished = resume(summary.run_dir)
    assert (finished.done, finished.exit_status) == (3, 0)
    assert results(tmp_path) == {f"n{number}.ome.tif": number for number in range(3)}
