"""`stackyard submit`: the same run by a driver of its own, which outlives the terminal, or as a Slurm job."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import typer

from scheduler.config import ConfigError, RunConfig, load_config
from scheduler.config.cluster import SlurmCluster
from scheduler.execution.prepare import prepare
from scheduler.execution.run_lock import new_run_id
from scheduler.execution.slurm_commands import SlurmError
from scheduler.execution.slurm_driver import driver_command, submit_driver
from scheduler.images.errors import InputError, OutputError
from scheduler.images.outputs import check_output_folder
from scheduler.screens.check import check_steps
from scheduler.screens.exits import errors_as_messages, print_json
from scheduler.screens.words import path_text, printable
from scheduler.steps.errors import StepError

POLL_S = 0.1
UNUSABLE = (ConfigError, InputError, OutputError, StepError, SlurmError)


def submit_command(path: Path, *, overwrite: bool, as_json: bool, log_json: bool, debug: bool) -> None:
    """Start the config at `path` in a process of its own, and return as soon as its jobs are under way."""
    with errors_as_messages(debug=debug, unusable=UNUSABLE):
        config = load_config(path)
        check_steps(config)
        if isinstance(config.cluster, SlurmCluster):
            options = {"overwrite": overwrite, "log_json": log_json, "debug": debug}
            _submit_to_slurm(config, config.cluster, options, as_json=as_json)
            return
        folder = check_output_folder(config.output.path) / ".stackyard"
        folder.mkdir(exist_ok=True)
        name = f"driver-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        log, told = folder / f"{name}.log", folder / f".{name}.run"
        command = [sys.executable, "-m", "scheduler.screens", "run", str(path), "--tell-run", str(told)]
        command += ["--overwrite"] * overwrite + ["--debug"] * debug
        command += ["--log-json"] * log_json
        with log.open("w") as output:
            driver = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        run_dir = _wait_for_run(driver, told)
    if run_dir is None:
        # It could not start a single job: its own words, and its own exit status.
        print(printable(log.read_text(errors="replace").strip()), file=sys.stderr)
        log.unlink()
        raise typer.Exit(driver.returncode)
    if as_json:
        print_json({"run_dir": str(run_dir), "pid": driver.pid, "log": str(log)})
    else:
        print(f"{path_text(run_dir)}: under way, process {driver.pid}; its words are in {path_text(log)}")
        print(f"stackyard status {path_text(run_dir)} tells how it stands, stackyard cancel stops it")


def _submit_to_slurm(
    config: RunConfig, cluster: SlurmCluster, options: Mapping[str, bool], *, as_json: bool
) -> None:
    """Submit the driver as a batch job, with all that can be found out now found out before."""
    output = prepare(config, overwrite=options["overwrite"]).config.output.path
    run_dir = output.absolute() / ".stackyard" / new_run_id()
    assert config.config_file is not None
    command = driver_command(config.config_file, run_dir, **options)
    job = submit_driver(cluster, config.devices, command, run_dir)
    if as_json:
        print_json({"run_dir": str(run_dir), "slurm_job": job.job_id, "log": job.log})
        return
    shown = path_text(run_dir)
    print(f"{shown}: submitted to Slurm as job {job.job_id}; its words will be in {path_text(job.log)}")
    print(f"stackyard status {shown} tells how it stands, stackyard cancel stops it")


def tell_run(told: Path, run_dir: str) -> None:
    """Leave the run's folder where `submit` looks for it, whole."""
    partial = told.with_name(f"{told.name}.part")
    partial.write_text(run_dir, encoding="utf-8")
    os.replace(partial, told)


def _wait_for_run(driver: "subprocess.Popen[bytes]", told: Path) -> Path | None:
    """The run's folder once the driver has told it; None if the driver ended before."""
    while True:
        ended = driver.poll() is not None
        try:
            run_dir = Path(told.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if ended:
                return None
            time.sleep(POLL_S)
            continue
        told.unlink()
        return run_dir
