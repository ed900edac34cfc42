"""Clusters for tests of the scheduler, and ways to hold jobs and let them go."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from numpy.typing import NDArray

from scheduler.config.model import DevicesConfig
from scheduler.execution.local import local_scheduler
from scheduler.execution.stack_scheduler import StackScheduler
from tests.scheduler.execution import tried_steps

DEADLINE_S = 60.0
STEPS = tried_steps.__name__
WORKERS = 2


@contextlib.contextmanager
def own_estimates(folder: Path) -> Iterator[None]:
    """What is learned stays in `folder`; and no GPU that this machine may have is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@contextlib.contextmanager
def dask_cluster(*, processes: bool, workers: int = WORKERS) -> Iterator[Client]:
    """A plain cluster of Dask's own, each worker with one thread."""
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=processes, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextlib.contextmanager
def scheduler_on(cluster: str, folder: Path) -> Iterator[StackScheduler]:
    """A scheduler with two CPU slots: on the embedded cluster, or on Dask's with processes or threads."""
    if cluster == "embedded":
        with local_scheduler(
            run_dir=folder / "run", devices=DevicesConfig(gpus=()), expected_jobs=WORKERS
        ) as scheduler:
            yield scheduler
        return
    with (
        dask_cluster(processes=cluster == "processes") as client,
        StackScheduler(client, devices={"gpus": []}) as scheduler,
    ):
        yield scheduler


def step(name: str, **keywords: Any) -> Mapping[str, Any]:
    """A step of the tests' own, as in YAML."""
    return {"use": f"{STEPS}:{name}", "with": keywords}


def stack(value: float = 1.0, shape: tuple[int, int, int] = (2, 3, 5)) -> NDArray[np.float32]:
    """A stack of one value and its index."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + np.float32(value)


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Gate:
    """Jobs whose step `held` waits in this folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def step(self) -> Mapping[str, Any]:
        """The step that waits."""
        return step("held", folder=str(self.folder))

    def wait_for(self, *names: str) -> None:
        """Wait until jobs have begun."""
        until(lambda: all((self.folder / f"{name}.began").exists() for name in names))

    def begun(self, name: str) -> bool:
        """Whether a job has begun."""
        return (self.folder / f"{name}.began").exists()

    def let_go(self, *names: str) -> None:
        """Let jobs go on, whether they have begun or not."""
        for name in names:
            (self.folder / f"{name}.go").touch()
