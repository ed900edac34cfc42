"""Starts the worker processes of one Slurm node: `python -m scheduler.execution.slurm_node SCHEDULER …`.

One process for each GPU that Slurm gives to the job, bound to it by UUID, and the CPU workers, all until the
scheduler lets them go or the job ends. Takes the arguments of `dask worker` that dask-jobqueue passes.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import dask
from distributed.cli.dask_spec import main as dask_spec

from scheduler.core.model import Device, DeviceKind
from scheduler.execution.cluster import WRITERS
from scheduler.execution.devices import usable_cores
from scheduler.execution.environment import LEAVE_VARIABLE, thread_environment, worker_environment
from scheduler.execution.slurm_commands import end_of_job
from scheduler.execution.worker_settings import worker_settings
from scheduler.host.memory import SHARE_VARIABLE
from scheduler.host.nvml import NvmlProbe

# One attempt computes, another may read, and those that have left the GPU write.
GPU_THREADS = 2 + WRITERS
_GRANTED = ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS")


def main(arguments: Sequence[str] | None = None) -> None:
    """Start this node's workers, and wait for their end. SIGTERM closes them in good order."""
    options = _parser().parse_args(arguments)
    environment = dict(os.environ)
    restrict_gpus(options.gpus, environment)
    devices = _gpus(options.gpus, environment)
    cores = cores_of_node(environment)
    processes = cores if options.processes is None else options.processes
    threads = max(1, cores // max(1, len(devices) + processes))
    workers = node_specification(
        devices,
        processes,
        threads=threads,
        name=f"{environment.get('SLURMD_NODENAME', 'node')}-{environment.get('SLURM_JOB_ID', os.getpid())}",
        common={
            "memory_limit": memory_of_node(environment, options.memory),
            "dashboard": False,
            "death_timeout": options.death_timeout,
            "interface": options.interface,
            "protocol": options.protocol,
            "local_directory": options.local_directory,
            "security": _security(options),
        },
        leave_at=leave_at(environment, options.walltime_s, options.drain_s, now=time.time()),
    )
    start(options.scheduler, workers, threads)


def start(scheduler: str, workers: Mapping[str, Any], threads: int) -> None:
    """Start Nannies as `dask spec` does, and wait until they are closed."""
    with dask.config.set(worker_settings(thread_environment(threads))):
        dask_spec([scheduler, "--spec", json.dumps(workers)])


def node_specification(
    gpus: Sequence[Device],
    processes: int,
    *,
    threads: int,
    name: str,
    common: Mapping[str, Any],
    leave_at: float | None = None,
) -> dict[str, dict[str, Any]]:
    """A Nanny for each GPU and each CPU process, in the form that `dask spec` reads.

    Parameters
    ----------
    threads
        Threads that libraries may use in each process.
    name
        What the workers' names begin with; no other node or job of the run may have it.
    common
        Options of every Nanny.
    leave_at
        When the workers take nothing more, in seconds since the epoch.
    """
    of_job = {} if leave_at is None else {LEAVE_VARIABLE: f"{leave_at:.0f}"}
    if common.get("memory_limit"):
        # Another job of this node has memory of its own; without a limit they share the host's.
        of_job[SHARE_VARIABLE] = name
    cpu = Device("CPU-localhost", "cpu", DeviceKind.CPU, 0)
    each = [(gpu, gpu.name, GPU_THREADS) for gpu in gpus]
    each += [(cpu, f"cpu-{number}", 1) for number in range(processes)]
    return {
        f"{name}-{suffix}": {
            "cls": "distributed.Nanny",
            "opts": {
                **{key: value for key, value in common.items() if value is not None},
                "name": f"{name}-{suffix}",
                "nthreads": at_once,
                "env": {**worker_environment(device, threads=threads), **of_job},
            },
        }
        for device, suffix, at_once in each
    }


def restrict_gpus(wanted: str, environment: MutableMapping[str, str]) -> None:
    """Hide the GPUs of a node from a job that was given none, where Slurm doesn't do it.

    `wanted` is "auto" for those that Slurm gave, "none", or numbers, which say that whoever wrote them knows.
    """
    granted = "CUDA_VISIBLE_DEVICES" in environment and any(name in environment for name in _GRANTED)
    if wanted == "none" or (wanted == "auto" and not granted):
        environment["CUDA_VISIBLE_DEVICES"] = ""


def cores_of_node(environment: Mapping[str, str]) -> int:
    """Cores that the job has on this node: what Slurm says, where it doesn't bind processes to them."""
    given = environment.get("SLURM_CPUS_ON_NODE", "")
    return min(int(given), usable_cores()) if given.isdecimal() and int(given) else usable_cores()


def memory_of_node(environment: Mapping[str, str], asked: int) -> int:
    """Bytes of host memory that the job has on this node; 0 if nothing but the node itself limits it."""
    per_node = environment.get("SLURM_MEM_PER_NODE", "")
    per_cpu = environment.get("SLURM_MEM_PER_CPU", "")
    if per_node.isdecimal():
        return int(per_node) << 20
    if per_cpu.isdecimal() and environment.get("SLURM_CPUS_ON_NODE", "").isdecimal():
        return int(per_cpu) * int(environment["SLURM_CPUS_ON_NODE"]) << 20
    return asked


def leave_at(
    environment: Mapping[str, str], walltime_s: float, drain_s: float, *, now: float
) -> float | None:
    """When this node's workers take nothing more; None if their job has no end.

    Where Slurm doesn't tell the end it is taken to be `walltime_s` after `now`, which is a little late.
    """
    end = end_of_job(environment)
    if end is None and walltime_s > 0:
        end = now + walltime_s
    return None if end is None else end - drain_s


def _gpus(wanted: str, environment: Mapping[str, str]) -> list[Device]:
    probe = NvmlProbe(environment)
    try:
        found = [gpu for gpu in probe.devices() if gpu.total_bytes > 0]
        if probe.problem:
            print(f"GPUs: {probe.problem}", flush=True)
    finally:
        probe.close()
    if wanted in ("auto", "none"):
        return found
    numbers = [int(number) for number in wanted.split(",")]
    missing = [number for number in numbers if number >= len(found)]
    if missing:
        raise SystemExit(
            f"devices.gpus: GPU {missing[0]} is not there; this node gives {len(found)} to the job"
        )
    return [found[number] for number in numbers]


def _security(options: argparse.Namespace) -> dict[str, Any] | None:
    if not options.tls_ca_file:
        return None
    return {
        "require_encryption": True,
        "tls_ca_file": options.tls_ca_file,
        "tls_worker_cert": options.tls_cert,
        "tls_worker_key": options.tls_key,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scheduler.execution.slurm_node", description=__doc__)
    parser.add_argument("scheduler", help="the Dask scheduler's address")
    parser.add_argument("--gpus", default="auto", help="auto, none, or numbers such as 0,2")
    parser.add_argument("--processes", type=int, help="CPU worker processes; one for each core by default")
    parser.add_argument(
        "--memory", type=int, default=0, help="the job's bytes, where Slurm doesn't tell them"
    )
    parser.add_argument("--walltime-s", type=float, default=0.0)
    parser.add_argument("--drain-s", type=float, default=0.0)
    for option in ("interface", "protocol", "local-directory", "tls-ca-file", "tls-cert", "tls-key"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--death-timeout", default="60")
    # dask-jobqueue divides its job for processes that are all alike, which these are not.
    for option in ("name", "nthreads", "memory-limit"):
        parser.add_argument(f"--{option}", help="ignored")
    return parser


if __name__ == "__main__":
    main()
