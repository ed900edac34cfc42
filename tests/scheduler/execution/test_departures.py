"""Worker processes of a cluster that runs already die, leave or are cut off in the middle of a run."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.scheduler.dask_programs import DaskPrograms, names_of
from tests.scheduler.execution.gated_runs import (
    GatedRun,
    began,
    ended,
    outcomes,
    release,
    wait_until_begun,
    write_gated,
)

NANNY = pytest.mark.parametrize("nanny", [("--nanny",), ("--no-nanny",)], ids=["nanny", "no nanny"])


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[DaskPrograms]:
    """A scheduler without workers."""
    (tmp_path / "programs").mkdir()
    with DaskPrograms(tmp_path / "programs") as programs:
        programs.scheduler()
        yield programs


def two_hours_later() -> Callable[[], None]:
    """Sets the clock that workers look at forward; a function within a function travels as code."""

    def let_time_pass() -> None:
        from scheduler.execution import worker_plugin

        later = time.time() + 7200
        worker_plugin.time = SimpleNamespace(time=lambda: later)

    return let_time_pass


def processes_of(program: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return [psutil.Process(program.pid), *psutil.Process(program.pid).children(recursive=True)]


def test_a_killed_worker_comes_back_by_its_nanny_and_its_job_runs_again(
    tmp_path: Path, dask: DaskPrograms
) -> None:
    dask.worker(name="a")
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=2, hold=("n-0",)))
    first = wait_until_begun(tmp_path, "n-0")
    os.kill(first, signal.SIGKILL)
    killed = time.time()
    second = wait_until_begun(tmp_path, "n-0", attempts=2)
    print(f"from the kill to the next attempt: {began(tmp_path, 'n-0')[1][1] - killed:.2f} s")
    release(tmp_path, "n-0")
    summary = run.summary()
    assert first != second
    assert (summary.done, summary.failed) == (2, 0)
    assert outcomes(summary, "n-0") == ["worker_died", "done"]


def test_the_job_of_a_worker_that_is_gone_runs_on_another(tmp_path: Path, dask: DaskPrograms) -> None:
    dask.worker("--no-nanny", name="a")
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=1, hold=("n-0",)))
    first = wait_until_begun(tmp_path, "n-0")
    os.kill(first, signal.SIGKILL)
    run.wait_for_reason("its worker process has gone")
    dask.worker("--no-nanny", name="late")
    wait_until_begun(tmp_path, "n-0", attempts=2)
    release(tmp_path, "n-0")
    summary = run.summary()
    assert (summary.done, summary.failed) == (1, 0)
    assert outcomes(summary, "n-0") == ["worker_died", "done"]


@NANNY
def test_sigterm_lets_the_attempt_end_and_nothing_new_begin(
    tmp_path: Path, dask: DaskPrograms, nanny: tuple[str, ...]
) -> None:
    program = dask.worker(*nanny, name="a")
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=2, hold=("n-0",)))
    wait_until_begun(tmp_path, "n-0")
    program.send_signal(signal.SIGTERM)
    run.wait_for_reason("it is being closed" if nanny == ("--nanny",) else "asked to end by SIGTERM")
    if nanny == ("--nanny",):
        # By itself a nanny ends its process after eight seconds.
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(9)
    release(tmp_path, "n-0")
    program.wait(60)
    assert (ended(tmp_path, "n-0"), began(tmp_path, "n-1")) == (1, [])
    dask.worker(name="b")
    summary = run.summary()
    assert (summary.done, summary.failed) == (2, 0)
    assert (outcomes(summary, "n-0"), outcomes(summary, "n-1")) == (["done"], ["done"])


@NANNY
def test_a_retired_worker_ends_what_it_has(
    tmp_path: Path, dask: DaskPrograms, nanny: tuple[str, ...]
) -> None:
    program = dask.worker(*nanny, name="a")
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=2, hold=("n-0",)))
    wait_until_begun(tmp_path, "n-0")
    with dask.client() as client:
        client.retire_workers(names=["a"], close_workers=True)
    run.wait_for_reason("its worker process has gone")
    release(tmp_path, "n-0")
    program.wait(60)
    assert (ended(tmp_path, "n-0"), began(tmp_path, "n-1")) == (1, [])
    dask.worker(name="b")
    summary = run.summary()
    assert (summary.done, summary.failed) == (2, 0)
    assert (outcomes(summary, "n-0"), outcomes(summary, "n-1")) == (["done"], ["done"])


def test_a_worker_whose_time_is_over_ends_its_attempt_and_is_let_go(
    tmp_path: Path, dask: DaskPrograms
) -> None:
    program = dask.worker(name="a", environment={"STACKYARD_LEAVE_AT": f"{time.time() + 3600:.0f}"})
    run = GatedRun(write_gated(tmp_path, dask.address, jobs=2, hold=("n-0",)))
    wait_until_begun(tmp_path, "n-0")
    with dask.client() as client:
        client.run(two_hours_later())
        run.wait_for_reason("its time on the cluster is nearly over")
        assert names_of(client) == {"a"}
    release(tmp_path, "n-0")
    assert program.wait(60) == 0
    assert began(tmp_path, "n-1") == []
    dask.worker(name="b")
    summary = run.summary()
    assert (summary.done, summary.failed) == (2, 0)
    assert (outcomes(summary, "n-0"), outcomes(summary, "n-1")) == (["done"], ["done"])
