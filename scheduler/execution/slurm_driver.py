"""The driver of a run as a Slurm job: its scripts, its submission, and how it stands until the run begins."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scheduler.config.cluster import SlurmCluster
from scheduler.config.model import DevicesConfig, RunConfig
from scheduler.execution.slurm_commands import (
    SlurmError,
    cancel_job,
    check_script,
    job_states,
    sbatch,
)
from scheduler.execution.slurm_scripts import driver_script, job_script, srun_command

JOB_FILE = "slurm-driver.json"
DRIVER_LOG = "driver-%j.log"
# Stand-ins, where a script is shown before there is a run.
_RUN_FOLDER = Path("RUN_FOLDER")
_ADDRESS = "SCHEDULER"


@dataclass(frozen=True, slots=True)
class DriverJob:
    """The Slurm job that a run's driver was submitted as; `log` is the file with the driver's words."""

    job_id: str
    log: str


@dataclass(frozen=True, slots=True)
class Queued:
    """How a driver stands that hasn't begun its run.

    `state` is queued, starting (its job runs), ended (its job is over), or unknown where Slurm can't be
    asked; `reason` is what it waits for, in Slurm's words, or why Slurm can't be asked.
    """

    state: str
    reason: str


def run_scripts(config: RunConfig, cluster: SlurmCluster) -> dict[str, str]:
    """What a run of this config asks Slurm for, as text: "driver" of `submit`, and "workers" of the driver.

    Workers start by a job's script, or inside by a command.

    Raises
    ------
    SlurmError
        dask-jobqueue isn't installed, or the devices can't be had on Slurm.
    """
    command = driver_command(config.config_file or Path("CONFIG"), _RUN_FOLDER)
    return {
        "driver": _script(cluster, command, _RUN_FOLDER),
        "workers": _workers(cluster, config.devices),
    }


def driver_command(
    config_file: Path,
    run_dir: Path,
    *,
    overwrite: bool = False,
    log_json: bool = False,
    debug: bool = False,
) -> list[str]:
    """The command that carries out the run in `run_dir`, by the Python of this process."""
    command = [sys.executable, "-m", "scheduler.screens", "run", str(config_file.absolute())]
    command += ["--run-id", run_dir.name, *["--overwrite"] * overwrite, *["--log-json"] * log_json]
    return command + ["--debug"] * debug


def submit_driver(
    cluster: SlurmCluster, devices: DevicesConfig, command: Sequence[str], run_dir: Path
) -> DriverJob:
    """Make the run's folder and submit `command` as its driver, once Slurm has looked at the workers' script.

    Raises
    ------
    SlurmError
        Slurm or dask-jobqueue isn't here, or Slurm refuses one of the jobs; then there is no folder.
    """
    workers = _workers(cluster, devices)
    if not cluster.inside:
        # Otherwise it would be refused when the driver has waited for its turn.
        check_script(workers)
    logs = run_dir / "logs"
    logs.mkdir(parents=True)
    try:
        job_id = sbatch(_script(cluster, command, run_dir))
    except SlurmError:
        logs.rmdir()
        run_dir.rmdir()
        raise
    job = DriverJob(job_id, str(logs / DRIVER_LOG.replace("%j", job_id)))
    partial = run_dir / f".{JOB_FILE}.part"
    partial.write_text(json.dumps(asdict(job)), encoding="utf-8")
    os.replace(partial, run_dir / JOB_FILE)
    return job


def read_driver_job(run_dir: Path) -> DriverJob | None:
    """The Slurm job of the run's driver; None if it wasn't submitted to Slurm.

    Raises
    ------
    ValueError
        The file that tells is damaged.
    """
    path = run_dir / JOB_FILE
    try:
        record: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return DriverJob(record["job_id"], record["log"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def queued(job: DriverJob) -> Queued:
    """Ask Slurm how the driver's job stands."""
    try:
        states = job_states(job_id=job.job_id)
    except SlurmError as error:
        return Queued("unknown", str(error))
    if not states or states[0].ending:
        return Queued("ended", "")
    return Queued("queued" if states[0].pending else "starting", states[0].reason)


def cancel_queued(job: DriverJob) -> Queued:
    """Cancel the driver's job unless it runs, and ask how it stands now.

    Raises
    ------
    SlurmError
        There is no scancel here, or it refuses.
    """
    cancel_job(job.job_id, only_pending=True)
    return queued(job)


def _workers(cluster: SlurmCluster, devices: DevicesConfig) -> str:
    if cluster.inside:
        return shlex.join(srun_command(cluster, devices, _ADDRESS, run_dir=_RUN_FOLDER)) + "\n"
    return job_script(cluster, devices)


def _script(cluster: SlurmCluster, command: Sequence[str], run_dir: Path) -> str:
    return driver_script(cluster, command, log=run_dir / "logs" / DRIVER_LOG, folder=Path.cwd())
