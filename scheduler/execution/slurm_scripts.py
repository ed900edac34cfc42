"""What Slurm is asked for: the scripts of workers and driver, and the command that starts workers inside."""

import asyncio
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scheduler.config.cluster import SlurmCluster, seconds_of
from scheduler.config.model import DevicesConfig, VirtualGpus
from scheduler.core.model import Device, DeviceKind
from scheduler.execution.environment import worker_environment
from scheduler.execution.slurm_commands import SlurmError
from scheduler.execution.slurm_tls import security_in, tls_arguments

NODE_PROGRAM = "scheduler.execution.slurm_node"
WORKER_JOB = "stackyard-workers"
DRIVER_JOB = "stackyard-driver"
JOB_LOG = "slurm-%j.log"
STEP_LOG = "slurm-%j-%n.log"
# Seconds before the end of its job at which the driver is told to stop; Slurm may be a minute early.
DRIVER_NOTICE_S = 60
# Bound to a device, or to the driver's machine: these are set for each worker process, not for their job.
_OF_ONE_PROCESS = ("STACKYARD_DEVICE", "CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "XLA_FLAGS", "POCL_DEVICES")
# sbatch hands the driver's environment on, in which these tell of the driver's own job.
_OF_THIS_JOB = (
    "CUDA_VISIBLE_DEVICES",
    "SLURM_GPUS_ON_NODE",
    "SLURM_JOB_GPUS",
    "SLURM_MEM_PER_CPU",
    "SLURM_MEM_PER_NODE",
)


def job_script(cluster: SlurmCluster, devices: DevicesConfig) -> str:
    """The batch script of a job for workers, as dask-jobqueue submits it, with stand-ins for what a run adds.

    Raises
    ------
    SlurmError
        dask-jobqueue isn't installed, or the devices can't be had on Slurm.
    """
    jobqueue = import_jobqueue()
    run_dir = Path("RUN_FOLDER")
    keywords = jobqueue_keywords(cluster, devices, name=WORKER_JOB, run_dir=run_dir)
    security = security_in(run_dir / "tls") if cluster.encrypt else None

    async def written() -> str:
        # Asynchronous, it starts no scheduler before it is awaited.
        script: str = jobqueue.SLURMCluster(asynchronous=True, security=security, **keywords).job_script()
        return script

    return asyncio.run(written())


def driver_script(
    cluster: SlurmCluster, command: Sequence[str], *, log: Path, folder: Path, name: str = DRIVER_JOB
) -> str:
    """The batch script with which the driver itself becomes a Slurm job.

    Outside, the job is as `cluster.driver` says; inside, it is the allocation that the workers share. Slurm
    sends it SIGTERM a while before its time is over, and it isn't requeued: the run is to be resumed.

    Parameters
    ----------
    command
        What starts the driver, with the paths that a node can use too.
    log
        Where its output goes; %j stands for the job's id.
    folder
        The working directory.
    """
    inside, driver = cluster.inside, cluster.driver
    walltime = cluster.walltime if inside else driver.walltime or cluster.walltime
    partition = cluster.partition if inside else driver.partition or cluster.partition
    notice_s = min(DRIVER_NOTICE_S, seconds_of(walltime) // 4)
    header = [
        f"--job-name={name}",
        f"--output={log}",
        *([f"--partition={partition}"] if partition else []),
        *([f"--account={cluster.account}"] if cluster.account else []),
        *(_allocation(cluster) if inside else _one_task(driver.cores, driver.memory)),
        f"--time={walltime}",
        # To the driver alone, which execs in place of the shell; it says what happens to everything else.
        f"--signal=B:TERM@{notice_s}",
        "--no-requeue",
    ]
    lines = [
        "#!/usr/bin/env bash",
        *directives(cluster, header),
        *(f"#SBATCH {directive}" for directive in (cluster if inside else driver).directives),
        "",
        *([] if inside else [f"unset {' '.join(_OF_THIS_JOB)}"]),
        *exports(cluster.env),
        *cluster.prologue,
        f"cd {shlex.quote(str(folder))}",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def jobqueue_keywords(
    cluster: SlurmCluster, devices: DevicesConfig, *, name: str, run_dir: Path
) -> dict[str, Any]:
    """The keywords of dask-jobqueue's SLURMCluster for these jobs, except for the scheduler's.

    Raises
    ------
    SlurmError
        The devices can't be had on Slurm.
    """
    # The config has seen to it.
    assert cluster.cores is not None
    assert cluster.memory is not None
    own = [f"--output={run_dir}/logs/{JOB_LOG}", "--no-requeue", *_gres(cluster)]
    kept = [directive for directive in own if not _skipped(cluster, directive)]
    return {
        "cores": cluster.cores,
        "memory": f"{int(cluster.memory)}B",
        "job_mem": _mebibytes(cluster.memory),
        # One program for each node, which starts as many processes as the node has devices.
        "processes": 1,
        "worker_command": NODE_PROGRAM,
        "python": _python(cluster),
        "queue": cluster.partition,
        "account": cluster.account,
        "walltime": cluster.walltime,
        "job_name": name,
        "interface": cluster.interface,
        "job_extra_directives": [*kept, *cluster.directives],
        "job_directives_skip": list(cluster.skip_directives),
        "job_script_prologue": prologue(cluster, devices),
        "worker_extra_args": node_arguments(cluster, devices),
    }


def srun_command(cluster: SlurmCluster, devices: DevicesConfig, address: str, *, run_dir: Path) -> list[str]:
    """The command that starts the workers on every node of the allocation that this process is in.

    One task for each node, beside whatever else runs in the allocation (`--overlap`); the end of one task
    leaves the others alone.
    """
    options = ["--interface", cluster.interface] if cluster.interface else []
    if cluster.encrypt:
        options += ["--protocol", "tls://", *tls_arguments(run_dir / "tls")]
    program = f"{_python(cluster)} -m {NODE_PROGRAM} {shlex.quote(address)}"
    start = f"exec {program} {' '.join(node_arguments(cluster, devices))} {shlex.join(options)}"
    return [
        "srun",
        "--ntasks-per-node=1",
        "--overlap",
        "--cpu-bind=none",
        "--mpi=none",
        "--input=none",
        "--kill-on-bad-exit=0",
        "--wait=0",
        "--export=ALL",
        f"--output={run_dir}/logs/{STEP_LOG}",
        "bash",
        "-c",
        "\n".join([*prologue(cluster, devices), start]),
    ]


def node_arguments(cluster: SlurmCluster, devices: DevicesConfig) -> list[str]:
    """The arguments of the program that starts a node's workers, quoted for a shell.

    Raises
    ------
    SlurmError
        Virtual GPUs, which are accounts of one host.
    """
    if isinstance(devices.gpus, VirtualGpus):
        raise SlurmError("devices.gpus: virtual GPUs are there with cluster.kind local only")
    gpus = "auto" if devices.gpus == "auto" else ",".join(map(str, devices.gpus)) or "none"
    processes = cluster.processes if devices.cpu else 0
    if processes == 0 and gpus == "none":
        raise SlurmError("cluster.processes: no GPUs and no CPU processes leave nothing to run on")
    return [
        f"--gpus={gpus}",
        *([] if processes is None else [f"--processes={processes}"]),
        *([f"--memory={int(cluster.memory)}"] if cluster.memory is not None else []),
        f"--walltime-s={seconds_of(cluster.walltime)}",
        f"--drain-s={cluster.drain_s:g}",
    ]


def prologue(cluster: SlurmCluster, devices: DevicesConfig) -> list[str]:
    """Shell lines before a node's workers start: our variables, the config's, the config's lines."""
    cpu = Device("CPU-localhost", "cpu", DeviceKind.CPU, 0)
    processes = cluster.gpus + (cluster.processes or cluster.cores or 1) * devices.cpu
    ours = worker_environment(cpu, threads=max(1, (cluster.cores or 1) // max(1, processes)))
    shared = {name: value for name, value in ours.items() if name not in _OF_ONE_PROCESS}
    return [*exports(shared), *exports(cluster.env), *cluster.prologue]


def directives(cluster: SlurmCluster, options: Sequence[str]) -> list[str]:
    """#SBATCH lines for `options`, without those that the config leaves out."""
    return [f"#SBATCH {option}" for option in options if not _skipped(cluster, option)]


def exports(variables: Mapping[str, str]) -> list[str]:
    """Shell lines that set variables to exactly these values."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def import_jobqueue() -> Any:
    """dask-jobqueue, imported when it is needed.

    Raises
    ------
    SlurmError
        It isn't installed.
    """
    try:
        import dask_jobqueue
    except ImportError as error:
        raise SlurmError("cluster.kind slurm needs dask-jobqueue: pip install 'stackyard[slurm]'") from error
    return dask_jobqueue


def _python(cluster: SlurmCluster) -> str:
    return cluster.python or shlex.quote(sys.executable)


def _allocation(cluster: SlurmCluster) -> list[str]:
    """Options for an allocation that workers share with the driver."""
    return [
        f"--nodes={cluster.nodes}",
        "--ntasks-per-node=1",
        *([f"--cpus-per-task={cluster.cores}"] if cluster.cores is not None else []),
        *([f"--mem={_mebibytes(cluster.memory)}"] if cluster.memory is not None else []),
        *_gres(cluster),
    ]


def _one_task(cores: int, memory: int) -> list[str]:
    return ["--ntasks=1", f"--cpus-per-task={cores}", f"--mem={_mebibytes(memory)}"]


def _gres(cluster: SlurmCluster) -> list[str]:
    return [f"--gres=gpu:{cluster.gpus}"] if cluster.gpus else []


def _mebibytes(nbytes: int) -> str:
    return f"{-(-nbytes // (1 << 20))}M"


def _skipped(cluster: SlurmCluster, directive: str) -> bool:
    # The same rule as dask-jobqueue's for the lines that it writes.
    return any(word in f"#SBATCH {directive}" for word in cluster.skip_directives)
