"""Dask on Slurm: jobs for workers by dask-jobqueue, or workers by srun within one allocation."""

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, Scheduler, Security, SpecCluster

from scheduler.config.cluster import SlurmCluster
from scheduler.config.model import DevicesConfig
from scheduler.execution.slurm_commands import SlurmError
from scheduler.execution.slurm_jobs import WorkerJobs, let_workers_go
from scheduler.execution.slurm_scripts import (
    WORKER_JOB,
    import_jobqueue,
    jobqueue_keywords,
    srun_command,
)
from scheduler.execution.slurm_tls import temporary_keys

WATCH_S = 15.0
STEP_END_S = 20.0


@dataclass(frozen=True, slots=True)
class SlurmWorkers:
    """A scheduler that workers on Slurm connect to, sooner or later.

    Attributes
    ----------
    expected
        Whether Slurm may still bring workers: jobs wait in its queue or run, or the nodes' program runs.
    """

    client: Client
    expected: Callable[[], bool]


@contextlib.contextmanager
def slurm_cluster(
    cluster: SlurmCluster,
    devices: DevicesConfig,
    *,
    run_dir: Path,
    remark: Callable[[str], None],
    watch_s: float = WATCH_S,
) -> Iterator[SlurmWorkers]:
    """A Dask scheduler in this process, and workers on Slurm's nodes; both end with the block.

    The block begins at once: jobs may wait in Slurm's queue for hours before the first worker joins.

    Parameters
    ----------
    run_dir
        The run's folder, which every node must see. Slurm writes its jobs' output to `logs` in it.
    remark
        Called, in any thread, with what a person should know of Slurm's jobs.
    watch_s
        Seconds between two looks at Slurm's queue.

    Raises
    ------
    SlurmError
        Slurm or dask-jobqueue isn't here, Slurm refuses the jobs, or with `inside` this is no allocation.
    """
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        security = stack.enter_context(temporary_keys(run_dir / "tls")) if cluster.encrypt else None
        if cluster.inside:
            workers = _in_allocation(cluster, devices, run_dir, security, remark)
        else:
            workers = _by_jobs(cluster, devices, run_dir, security, remark, watch_s)
        yield stack.enter_context(workers)


@contextlib.contextmanager
def _by_jobs(
    cluster: SlurmCluster,
    devices: DevicesConfig,
    run_dir: Path,
    security: Security | None,
    remark: Callable[[str], None],
    watch_s: float,
) -> Iterator[SlurmWorkers]:
    """Workers in Slurm jobs of their own."""
    jobqueue = import_jobqueue()
    name = f"{WORKER_JOB}-{run_dir.name}"
    made = jobqueue.SLURMCluster(
        **jobqueue_keywords(cluster, devices, name=name, run_dir=run_dir),
        scheduler_options=_scheduler_options(cluster),
        security=security,
        protocol="tls://" if security else None,
        silence_logs=logging.CRITICAL,
    )
    with (
        _quiet_scheduler(),
        made,
        Client(made) as client,
        WorkerJobs(cluster, name, made, client, remark, watch_s) as jobs,
    ):
        yield SlurmWorkers(client, jobs.expected)


@contextlib.contextmanager
def _in_allocation(
    cluster: SlurmCluster,
    devices: DevicesConfig,
    run_dir: Path,
    security: Security | None,
    remark: Callable[[str], None],
) -> Iterator[SlurmWorkers]:
    """Workers on the nodes of the allocation that this process runs in."""
    if "SLURM_JOB_ID" not in os.environ:
        raise SlurmError(
            "cluster.inside: this is no Slurm allocation; start it within salloc or sbatch, or by "
            "stackyard submit"
        )
    scheduler = {
        "cls": Scheduler,
        "options": {
            **_scheduler_options(cluster),
            "security": security,
            "protocol": "tls://" if security else None,
        },
    }
    made = SpecCluster(scheduler=scheduler, security=security, silence_logs=logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet_scheduler())
        stack.enter_context(made)
        client = stack.enter_context(Client(made))
        command = srun_command(cluster, devices, made.scheduler_address, run_dir=run_dir)
        # The scheduler's end is what ends the workers, so it comes before the step's.
        with _step(command, remark) as running, contextlib.closing(stack.pop_all()):
            try:
                yield SlurmWorkers(client, running)
            finally:
                let_workers_go(client)


@contextlib.contextmanager
def _step(command: list[str], remark: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Run `srun` beside the block, in a session of its own, where no Ctrl-C of the terminal reaches it.

    Its end is waited for, and brought about if it takes longer than that of workers should.
    """
    try:
        srun = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise SlurmError("there is no srun here: cluster.inside needs Slurm's commands") from error
    ending = threading.Event()

    def listen() -> None:
        assert srun.stderr is not None
        said = [line.strip() for line in srun.stderr if line.strip()]
        if not ending.is_set():
            remark(
                f"srun has ended, and the workers that it started: {'; '.join(said[-3:]) or 'without a word'}"
            )

    listener = threading.Thread(target=listen, name="stackyard-srun", daemon=True)
    listener.start()
    try:
        yield lambda: srun.poll() is None
    finally:
        ending.set()
        for last in (None, signal.SIGTERM, signal.SIGKILL):
            if last is not None:
                srun.send_signal(last)
            with contextlib.suppress(subprocess.TimeoutExpired):
                srun.wait(STEP_END_S)
                break
        listener.join()


def _scheduler_options(cluster: SlurmCluster) -> dict[str, Any]:
    return {
        "interface": cluster.driver_interface or cluster.interface,
        "port": 0,
        "dashboard": False,
        # Any free port: on its usual one another run may listen, and Dask would warn of that.
        "dashboard_address": ":0",
        # A job that ends its worker is ours to judge, so Dask must not try it again by itself.
        "allowed_failures": 0,
    }


@contextlib.contextmanager
def _quiet_scheduler() -> Iterator[None]:
    """Keep Dask's word on tasks whose worker has left off the screen: each is an outcome, which is told.

    The scheduler sets its logger's level when it starts, so `silence_logs` is undone by then.
    """
    logger = logging.getLogger("distributed.scheduler")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
