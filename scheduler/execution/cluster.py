"""The embedded cluster: one worker process for each GPU, CPU workers beside them, loopback only."""

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import current_process, resource_tracker
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.comm import CommClosedError

from scheduler.core.model import Device, DeviceKind
from scheduler.execution.devices import usable_cores
from scheduler.execution.environment import thread_environment, worker_environment
from scheduler.execution.errors import ClusterError
from scheduler.execution.worker_settings import worker_settings

LOOPBACK = "127.0.0.1"
WRITERS = 4
MAIN_REMEDY = 'put what it does below `if __name__ == "__main__":`'


def worker_specification(
    devices: Sequence[Device], *, cores: int, memory_limit: int
) -> dict[str, dict[str, Any]]:
    """Nannies for `SpecCluster`: one process with some threads for a GPU, one for each slot of the CPU.

    Parameters
    ----------
    cores
        Cores that this process may use; they are shared evenly among the worker processes.
    memory_limit
        Bytes of host memory at which a worker process is ended before the kernel ends something else.
    """
    processes = [
        (device, f"{device.name}-{number}" if device.kind is DeviceKind.CPU else device.name)
        for device in devices
        for number in range(device.slots if device.kind is DeviceKind.CPU else 1)
    ]
    virtual_devices = sum(device.kind is DeviceKind.VIRTUAL for device in devices)
    threads = max(1, cores // max(1, len(processes)))
    specification = {}
    for device, name in processes:
        # On a GPU, what is admitted beyond the slots reads while the others compute, and what has left it
        # writes meanwhile.
        at_once = 1 if device.kind is DeviceKind.CPU else device.window + WRITERS
        specification[name] = {
            "cls": Nanny,
            "options": {
                "nthreads": at_once,
                "host": LOOPBACK,
                "dashboard": False,
                "silence_logs": logging.ERROR,
                "memory_limit": memory_limit,
                "env": worker_environment(device, threads=threads, virtual_devices=virtual_devices),
            },
        }
    return specification


@contextlib.contextmanager
def local_cluster(
    devices: Sequence[Device], *, host_limit: int, metrics_port: int | None = None
) -> Iterator[Client]:
    """Start worker processes for `devices` on this machine and connect to them.

    `metrics_port` is for the pages of Dask's scheduler, /metrics among them; None takes any free one.

    The processes are spawned, listen on loopback only, and end with the block.

    Raises
    ------
    ClusterError
        They don't start, or `metrics_port` is taken.
    """
    if metrics_port is not None:
        _check_port(metrics_port)
    cores = usable_cores()
    specification = worker_specification(devices, cores=cores, memory_limit=host_limit)
    threads = thread_environment(max(1, cores // max(1, len(specification))))
    logging.getLogger("asyncio").addFilter(tells_news)
    # A Nanny puts these into its own process, which is this one, to hand them on.
    with dask.config.set(worker_settings(threads)), _restored_environment(threads):
        with _ctrl_c_held_back(), _told_as_cluster_error():
            cluster = SpecCluster(
                workers=specification,
                scheduler={
                    "cls": Scheduler,
                    # A job that ends its worker is ours to judge, so Dask must not try it again by itself.
                    "options": {
                        "host": LOOPBACK,
                        "port": 0,
                        # Any free port: on its usual one another run may listen, and Dask would warn of that.
                        "dashboard_address": f"{LOOPBACK}:{metrics_port or 0}",
                        "dashboard": False,
                        "allowed_failures": 0,
                    },
                },
                silence_logs=logging.CRITICAL,
            )
        with _quiet_scheduler(), cluster, Client(cluster) as client:
            client.wait_for_workers(len(specification))
            yield client


def check_main() -> None:
    """Raise ClusterError in a worker process that is still starting: it imports the program that started it.

    Spawning does that. A program that does its work when it is imported would start workers in each worker.
    """
    if getattr(current_process(), "_inheriting", False):  # by which multiprocessing itself tells
        raise ClusterError(f"each worker process imports the program that starts it: {MAIN_REMEDY}")


@contextlib.contextmanager
def _told_as_cluster_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ClusterError(
            f"the worker processes don't start, each has said why: {error} If this program starts them when "
            f"it is imported: {MAIN_REMEDY}"
        ) from error


def tells_news(record: logging.LogRecord) -> bool:
    """False for what asyncio says of a task of Dask's that was reading as its connection was closed.

    Nobody waits for such a task, and it is collected at any time, after the cluster's end too.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], CommClosedError))


def _check_port(port: int) -> None:
    """Raise ClusterError for a port that is taken: Dask would take another one, where nobody looks."""
    with socket.socket() as probe:
        # As Dask's server does, for a port whose last connections are still being closed.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ClusterError(
                f"cluster.metrics_port: {port} can't be listened at ({error.strerror}); take another, or "
                "leave it out for any that is free"
            ) from error


@contextlib.contextmanager
def _quiet_scheduler() -> Iterator[None]:
    """Keep Dask's word on tasks whose worker died off the screen: each is an outcome, which the run tells.

    The scheduler sets its logger's level when it starts, so `silence_logs` is undone by then.
    """
    logger = logging.getLogger("distributed.scheduler")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Block SIGINT in this thread, and so for good in the threads and processes that are started by it.

    A terminal's Ctrl-C reaches every process of its group, and a worker that is still importing would end by
    it and take the start of the cluster with it. Here it takes effect when the block ends.
    """
    # It is started with the first process else, and unblocks SIGINT in the thread that starts it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _restored_environment(names: Iterable[str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
