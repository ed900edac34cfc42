"""Workers on a real Slurm: in jobs by dask-jobqueue, and by srun within one allocation."""

import json
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import Client, WorkerPlugin

from scheduler.config.cluster import SlurmCluster
from scheduler.config.model import DevicesConfig
from scheduler.execution.slurm import slurm_cluster
from scheduler.execution.slurm_commands import SlurmError, cancel_job, job_states, sbatch
from scheduler.execution.slurm_scripts import WORKER_JOB, driver_script
from tests.scheduler.host import fake_nvml
from tests.scheduler.slurm_node import inside_child
from tests.scheduler.slurm_node.waiting import DEADLINE_S, wait_until

VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "STACKYARD_LEAVE_AT", "SLURM_JOB_ID", "MARK")


def variables() -> list[str | None]:
    return [os.environ.get(name) for name in VARIABLES]


def small(**keys: object) -> SlurmCluster:
    """Jobs that find room on the nodes of the tests, which talk over loopback."""
    return SlurmCluster.model_validate(
        {"cores": 1, "memory": 512 << 20, "processes": 1, "interface": "lo", "walltime": "00:10:00", **keys}
    )


class Farewell(WorkerPlugin):
    """Leaves a file when its worker closes in good order."""

    name = "farewell"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def teardown(self, worker) -> None:
        (self.folder / f"closed-{worker.name}").touch()


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which a process sees two GPUs by a fake NVML."""
    folder = tmp_path_factory.mktemp("nvml")
    try:
        fake_nvml.build(folder)
    except FileNotFoundError as error:
        pytest.skip(f"needs a C compiler: {error}")
    fake_nvml.new_state(folder / "state", count=2)
    return {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML_STATE": str(folder / "state")}


def names(client: Client) -> list[str]:
    return [worker["name"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]


def fake_uuid(number: int) -> str:
    return f"GPU-{number:08x}-aaaa-bbbb-cccc-000000000000"


def knock(address: str) -> bytes:
    """Connect to a scheduler as somebody who doesn't care who answers, and has no key."""
    host, port = address.removeprefix("tls://").split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=30) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        return wrapped.recv(1)


def test_jobs_of_workers_from_their_start_to_their_end(slurm, two_gpus, tmp_path):
    """One start for several looks, since each takes seconds."""
    cluster = small(gpus=2, drain_s=60, env={**two_gpus, "MARK": "a b"}, directives=["--comment=mine"])
    run_dir = tmp_path / "run-7"
    with slurm_cluster(cluster, DevicesConfig(), run_dir=run_dir, remark=print) as workers:
        client = workers.client
        client.wait_for_workers(3, timeout=DEADLINE_S)
        (job,) = job_states(name=f"{WORKER_JOB}-run-7")
        assert job.end_time is not None

        # Each GPU has a worker of its own, bound by UUID; the CPU worker sees none.
        said = {name: client.submit(variables, workers=[name], pure=False).result() for name in names(client)}
        node = "n1" if f"n1-{job.job_id}-gpu0" in said else "n2"
        leave_at = f"{job.end_time - 60:.0f}"
        assert said == {
            f"{node}-{job.job_id}-gpu0": [fake_uuid(0), "PCI_BUS_ID", leave_at, job.job_id, "a b"],
            f"{node}-{job.job_id}-gpu1": [fake_uuid(1), "PCI_BUS_ID", leave_at, job.job_id, "a b"],
            f"{node}-{job.job_id}-cpu-0": ["", "PCI_BUS_ID", leave_at, job.job_id, "a b"],
        }
        # The job has what the config's lines ask for, and its workers keep to its memory.
        show = ["scontrol", "show", "job", job.job_id]
        assert "Comment=mine" in subprocess.run(show, capture_output=True, text=True, check=True).stdout
        there = client.scheduler_info(n_workers=-1)["workers"].values()
        assert {worker["memory_limit"] for worker in there} == {512 << 20}

        # Nobody else on the network gets in.
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
        key = run_dir / "tls/key.pem"
        assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        with pytest.raises(ssl.SSLError, match="certificate required"):
            knock(client.scheduler.address)

        client.register_plugin(Farewell(tmp_path))
    assert {path.name for path in tmp_path.glob("closed-*")} == {f"closed-{name}" for name in said}
    assert all(state.ending for state in job_states(name=f"{WORKER_JOB}-run-7"))
    assert not (run_dir / "tls").exists()
    assert (run_dir / f"logs/slurm-{job.job_id}.log").is_file()


def test_a_job_that_is_gone_is_replaced(slurm, tmp_path):
    cluster = small(encrypt=False)
    with slurm_cluster(
        cluster, DevicesConfig(gpus=()), run_dir=tmp_path, remark=print, watch_s=0.2
    ) as workers:
        client = workers.client
        client.wait_for_workers(1, timeout=DEADLINE_S)
        (first,) = names(client)
        (job,) = job_states(name=f"{WORKER_JOB}-{tmp_path.name}")
        cancel_job(job.job_id)
        wait_until(lambda: names(client) and first not in names(client), "another worker")
        assert client.submit(sum, [1, 2]).result() == 3
        assert workers.expected()


def test_a_job_that_slurm_refuses_is_an_error_at_once(slurm, tmp_path):
    cluster = small(partition="no-such")
    with (
        pytest.raises(SlurmError, match=r"sbatch: .*invalid partition"),
        slurm_cluster(cluster, DevicesConfig(), run_dir=tmp_path, remark=print),
    ):
        pytest.fail("the block began")
    assert job_states(name=f"{WORKER_JOB}-{tmp_path.name}") == ()


def test_inside_is_refused_outside(monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with (
        pytest.raises(SlurmError, match="this is no Slurm allocation"),
        slurm_cluster(small(inside=True), DevicesConfig(), run_dir=tmp_path, remark=print),
    ):
        pytest.fail("the block began")


def test_inside_an_allocation_each_node_has_its_workers(slurm, tmp_path):
    """A driver's job of two nodes, as `submit` asks for it."""
    cluster = small(inside=True, nodes=2, walltime="00:05:00")
    command = [sys.executable, inside_child.__file__, str(tmp_path)]
    script = driver_script(cluster, command, log=tmp_path / "driver.log", folder=Path.cwd(), name="inside")
    job_id = sbatch(script)
    wait_until(lambda: [state for state in job_states(job_id=job_id) if state.end_time], "start")
    (job,) = job_states(job_id=job_id)
    wait_until((tmp_path / "said.json").exists, "workers' words", (tmp_path / "driver.log").read_text)
    said = json.loads((tmp_path / "said.json").read_text())
    leave_at = f"{job.end_time - 30:.0f}"
    assert said == {
        "workers": [["n1", "here", leave_at], ["n2", "here", leave_at]],
        "remarks": [],
        "expected": [True, False],
    }
