"""The worker processes of a Slurm node: which there are, and what each is told."""

import pytest

from scheduler.core.model import Device, DeviceKind
from scheduler.execution import slurm_node
from scheduler.execution.devices import usable_cores
from scheduler.execution.slurm_node import (
    cores_of_node,
    leave_at,
    memory_of_node,
    node_specification,
    restrict_gpus,
)

GPUS = [
    Device(f"GPU-{letter}", f"gpu{number}", DeviceKind.CUDA, 8 << 30) for number, letter in enumerate("ab")
]


def test_a_process_for_each_gpu_and_the_cpu_workers():
    workers = node_specification(GPUS, 2, threads=3, name="n1-7", common={}, leave_at=1790000000.4)
    assert list(workers) == ["n1-7-gpu0", "n1-7-gpu1", "n1-7-cpu-0", "n1-7-cpu-1"]
    seen = [worker["opts"]["env"]["CUDA_VISIBLE_DEVICES"] for worker in workers.values()]
    assert seen == ["GPU-a", "GPU-b", "", ""]
    for name, worker in workers.items():
        assert worker["cls"] == "distributed.Nanny"
        assert worker["opts"]["name"] == name
        assert worker["opts"]["env"]["OMP_NUM_THREADS"] == "3"
        assert worker["opts"]["env"]["STACKYARD_LEAVE_AT"] == "1790000000"


def test_cpu_workers_compute_one_attempt_at_a_time_and_gpu_workers_read_beside_it():
    workers = node_specification(GPUS[:1], 1, threads=1, name="n", common={})
    assert workers["n-gpu0"]["opts"]["nthreads"] > 1
    assert workers["n-cpu-0"]["opts"]["nthreads"] == 1


def test_without_an_end_nobody_leaves():
    workers = node_specification([], 1, threads=1, name="n", common={})
    assert "STACKYARD_LEAVE_AT" not in workers["n-cpu-0"]["opts"]["env"]


@pytest.mark.parametrize(("limit", "share"), [(1 << 30, "n1-7"), (0, None)])
def test_only_a_job_with_memory_of_its_own_has_a_share_of_the_host(limit, share):
    workers = node_specification(GPUS[:1], 1, threads=1, name="n1-7", common={"memory_limit": limit})
    told = [worker["opts"]["env"].get("STACKYARD_HOST_SHARE") for worker in workers.values()]
    assert told == [share, share]


def test_options_that_are_not_given_are_left_to_dask():
    workers = node_specification([], 1, threads=1, name="n", common={"interface": None, "protocol": "tls://"})
    assert "interface" not in workers["n-cpu-0"]["opts"]
    assert workers["n-cpu-0"]["opts"]["protocol"] == "tls://"


@pytest.mark.parametrize(
    ("wanted", "environment", "visible"),
    [
        ("auto", {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "2"}, "0,1"),
        ("auto", {"CUDA_VISIBLE_DEVICES": "1", "SLURM_STEP_GPUS": "1"}, "1"),
        # A node whose GPUs Slurm doesn't hide, and a job that was given none: they are somebody else's.
        ("auto", {}, ""),
        # sbatch handed on what the driver's shell had set.
        ("auto", {"CUDA_VISIBLE_DEVICES": "0"}, ""),
        ("none", {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "1"}, ""),
        ("0,1", {}, None),
    ],
)
def test_gpus_that_the_job_was_not_given_are_hidden(wanted, environment, visible):
    restrict_gpus(wanted, environment)
    assert environment.get("CUDA_VISIBLE_DEVICES") == visible


def test_cores_are_those_of_the_job():
    assert cores_of_node({"SLURM_CPUS_ON_NODE": "1"}) == 1
    assert cores_of_node({"SLURM_CPUS_ON_NODE": "100000"}) == usable_cores()
    assert cores_of_node({}) == usable_cores()


@pytest.mark.parametrize(
    ("environment", "nbytes"),
    [
        ({"SLURM_MEM_PER_NODE": "512"}, 512 << 20),
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "3"}, 300 << 20),
        ({}, 4 << 30),
    ],
)
def test_memory_is_that_of_the_job(environment, nbytes):
    assert memory_of_node(environment, 4 << 30) == nbytes


def test_workers_leave_before_the_end_that_slurm_tells():
    assert leave_at({"SLURM_JOB_END_TIME": "1000"}, 60, 30, now=0) == 970


def test_workers_leave_before_the_end_of_their_wall_time_where_slurm_tells_nothing(monkeypatch):
    monkeypatch.setattr(slurm_node, "end_of_job", lambda environment: None)
    assert leave_at({}, 600, 120, now=1000) == 1480
    assert leave_at({}, 0, 120, now=1000) is None


def test_the_program_starts_what_the_job_was_given(monkeypatch):
    """From its command line to what Dask is asked to start."""
    asked = []
    probed = []

    class Probe:
        problem = ""

        def __init__(self, environment):
            probed.append(environment["CUDA_VISIBLE_DEVICES"])

        def devices(self):
            return GPUS if probed[-1] else []

        def close(self):
            pass

    monkeypatch.setattr(slurm_node, "NvmlProbe", Probe)
    monkeypatch.setattr(
        slurm_node, "start", lambda scheduler, workers, threads: asked.append((scheduler, workers, threads))
    )
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE", "SLURM_MEM_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1790000000")
    own = ["tls://10.0.0.1:5", "--processes=2", "--drain-s=60", f"--memory={1 << 30}"]
    theirs = ["--name", "x-0", "--nthreads", "4", "--memory-limit", "1GiB", "--protocol", "tls://"]
    keys = ["--tls-ca-file", "ca.pem", "--tls-cert", "cert.pem", "--tls-key", "key.pem"]
    slurm_node.main([*own, *theirs, *keys])
    ((scheduler, workers, threads),) = asked
    assert (scheduler, threads, probed) == ("tls://10.0.0.1:5", 1, [""])
    assert list(workers) == ["n7-12-cpu-0", "n7-12-cpu-1"]
    options = workers["n7-12-cpu-0"]["opts"]
    assert options["env"]["STACKYARD_LEAVE_AT"] == "1789999940"
    assert (options["memory_limit"], options["protocol"]) == (1 << 30, "tls://")
    assert options["security"] == {
        "require_encryption": True,
        "tls_ca_file": "ca.pem",
        "tls_worker_cert": "cert.pem",
        "tls_worker_key": "key.pem",
    }

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    slurm_node.main(["tcp://10.0.0.1:5", "--gpus=1", "--processes=0"])
    assert list(asked[-1][1]) == ["n7-12-gpu1"]
    with pytest.raises(SystemExit, match="GPU 2 is not there; this node gives 2 to the job"):
        slurm_node.main(["tcp://10.0.0.1:5", "--gpus=2"])
