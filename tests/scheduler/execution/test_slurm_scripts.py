"""What Slurm is asked for, as text: no Slurm is needed to check it."""

import shlex
import sys
from pathlib import Path

import pytest

from scheduler.config.cluster import SlurmCluster, SlurmDriver
from scheduler.config.model import DevicesConfig, VirtualGpus
from scheduler.execution.slurm_commands import SlurmError
from scheduler.execution.slurm_scripts import driver_script, job_script, node_arguments, srun_command

GIB = 1 << 30
LEAST = SlurmCluster(cores=4, memory=16 * GIB)
COMMAND = ["python", "-m", "scheduler.screens", "run", "my config.yaml"]


def changed(cluster: SlurmCluster = LEAST, **keys) -> SlurmCluster:
    return SlurmCluster.model_validate({**cluster.model_dump(exclude_unset=True), **keys})


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def driver(cluster: SlurmCluster) -> str:
    return driver_script(cluster, COMMAND, log=Path("/out/driver-%j.log"), folder=Path("/my data"))


def test_the_job_of_workers_asks_for_what_the_config_says():
    cluster = changed(
        gpus=2,
        partition="gpu",
        account="lab7",
        walltime="1-12:00:00",
        memory=GIB + 1,
        directives=["--qos=long"],
    )
    assert directives(job_script(cluster, DevicesConfig())) == [
        "-J stackyard-workers",
        "-p gpu",
        "-A lab7",
        "-n 1",
        "--cpus-per-task=4",
        "--mem=1025M",
        "-t 1-12:00:00",
        "--output=RUN_FOLDER/logs/slurm-%j.log",
        "--no-requeue",
        "--gres=gpu:2",
        "--qos=long",
    ]


def test_any_directive_can_be_left_out_and_replaced():
    cluster = changed(
        gpus=1, skip_directives=["--mem", "--gres", "--no-requeue"], directives=["--gpus=a100:1"]
    )
    asked = directives(job_script(cluster, DevicesConfig()))
    assert not [line for line in asked if line.startswith(("--mem", "--gres", "--no-requeue"))]
    assert asked[-1] == "--gpus=a100:1"


def test_the_environment_is_set_before_the_config_s_lines_and_those_before_the_workers():
    cluster = changed(env={"OMP_NUM_THREADS": "3", "DATA": "a b"}, prologue=["module load cuda"], processes=2)
    lines = job_script(cluster, DevicesConfig()).splitlines()
    at = [
        lines.index(line)
        for line in (
            "export CUDA_DEVICE_ORDER=PCI_BUS_ID",
            "export XLA_PYTHON_CLIENT_PREALLOCATE=false",
            "export TF_FORCE_GPU_ALLOW_GROWTH=true",
            "export OMP_NUM_THREADS=2",
            "export OMP_NUM_THREADS=3",
            "export DATA='a b'",
            "module load cuda",
        )
    ]
    assert at == sorted(at)
    program = next(number for number, line in enumerate(lines) if "scheduler.execution.slurm_node" in line)
    assert program > at[-1]


def test_what_belongs_to_one_process_is_not_set_for_all():
    script = job_script(LEAST, DevicesConfig())
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "STACKYARD_DEVICE", "XLA_FLAGS"):
        assert f"export {name}=" not in script


def test_the_workers_are_told_what_the_config_says():
    cluster = changed(python="singularity exec env.sif python3", interface="ib0", drain_s=90, processes=3)
    (line,) = (
        line for line in job_script(cluster, DevicesConfig(gpus=(0, 2))).splitlines() if "slurm_node" in line
    )
    assert line.startswith("singularity exec env.sif python3 -m scheduler.execution.slurm_node tcp://")
    words = shlex.split(line)
    assert {"--gpus=0,2", "--processes=3", "--walltime-s=3600", "--drain-s=90"} <= set(words)
    assert f"--memory={16 * GIB}" in words
    assert words[words.index("--interface") + 1] == "ib0"
    assert words[words.index("--tls-key") + 1] == "RUN_FOLDER/tls/key.pem"


def test_without_encryption_there_are_no_keys():
    assert "tls" not in job_script(changed(encrypt=False), DevicesConfig())


def test_cpu_false_starts_no_cpu_workers():
    assert "--processes=0" in node_arguments(changed(processes=3, gpus=1), DevicesConfig(cpu=False))


@pytest.mark.parametrize(
    ("cluster", "devices", "problem"),
    [
        (
            LEAST,
            DevicesConfig(gpus=VirtualGpus(virtual=(GIB,))),
            "virtual GPUs are there with cluster.kind local",
        ),
        (changed(processes=0), DevicesConfig(gpus=()), "leave nothing to run on"),
    ],
)
def test_devices_that_slurm_has_not(cluster, devices, problem):
    with pytest.raises(SlurmError, match=problem):
        job_script(cluster, devices)


def test_dask_jobqueue_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(SlurmError, match=r"pip install 'stackyard\[slurm\]'"):
        job_script(LEAST, DevicesConfig())


def test_the_driver_s_job_is_its_own():
    cluster = changed(
        partition="gpu",
        account="lab7",
        gpus=4,
        directives=["--qos=long"],
        env={"A": "b"},
        prologue=["module load python"],
        driver=SlurmDriver(
            partition="short", cores=1, memory=GIB, walltime="12:00:00", directives=("--qos=quick",)
        ),
    )
    script = driver(cluster)
    assert directives(script) == [
        "--job-name=stackyard-driver",
        "--output=/out/driver-%j.log",
        "--partition=short",
        "--account=lab7",
        "--ntasks=1",
        "--cpus-per-task=1",
        "--mem=1024M",
        "--time=12:00:00",
        "--signal=B:TERM@60",
        "--no-requeue",
        "--qos=quick",
    ]
    assert script.splitlines()[-4:] == [
        "export A=b",
        "module load python",
        "cd '/my data'",
        "exec python -m scheduler.screens run 'my config.yaml'",
    ]


def test_the_driver_s_partition_and_wall_time_are_the_workers_where_it_has_none():
    asked = directives(driver(changed(partition="gpu", walltime="03:00:00")))
    assert {"--partition=gpu", "--time=03:00:00"} <= set(asked)


def test_jobs_of_the_driver_don_t_inherit_what_its_own_job_was_given():
    assert "unset CUDA_VISIBLE_DEVICES SLURM_GPUS_ON_NODE" in driver(LEAST)
    assert "unset" not in driver(changed(inside=True))


def test_inside_the_driver_s_job_is_the_allocation_of_the_workers():
    cluster = changed(
        inside=True, nodes=3, gpus=2, partition="gpu", walltime="03:00:00", directives=["--qos=long"]
    )
    assert directives(driver(cluster)) == [
        "--job-name=stackyard-driver",
        "--output=/out/driver-%j.log",
        "--partition=gpu",
        "--nodes=3",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--mem=16384M",
        "--gres=gpu:2",
        "--time=03:00:00",
        "--signal=B:TERM@60",
        "--no-requeue",
        "--qos=long",
    ]


def test_a_short_job_s_driver_is_told_late_enough_to_do_something():
    assert "--signal=B:TERM@15" in directives(driver(changed(walltime="00:01:00", drain_s=5)))


def test_inside_the_workers_start_with_the_same_lines_as_in_jobs():
    cluster = changed(inside=True, interface="ib0", prologue=["module load cuda"], encrypt=False)
    command = srun_command(cluster, DevicesConfig(), "tcp://10.0.0.1:4", run_dir=Path("/run 1"))
    assert command[0] == "srun"
    assert {"--ntasks-per-node=1", "--overlap", "--kill-on-bad-exit=0"} <= set(command)
    assert "--output=/run 1/logs/slurm-%j-%n.log" in command
    *_, bash, option, script = command
    assert (bash, option) == ("bash", "-c")
    lines = script.splitlines()
    assert lines[0] == "export CUDA_DEVICE_ORDER=PCI_BUS_ID"
    assert lines[-2] == "module load cuda"
    assert shlex.split(lines[-1]) == [
        "exec",
        sys.executable,
        "-m",
        "scheduler.execution.slurm_node",
        "tcp://10.0.0.1:4",
        "--gpus=auto",
        f"--memory={16 * GIB}",
        "--walltime-s=3600",
        "--drain-s=120",
        "--interface",
        "ib0",
    ]
