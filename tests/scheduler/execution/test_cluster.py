"""The embedded cluster: what its processes are told, and whom it listens to."""

import contextlib
import ipaddress
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from distributed.comm import CommClosedError

from scheduler.core.model import Device, DeviceKind
from scheduler.execution.cluster import WRITERS, local_cluster, tells_news, worker_specification
from scheduler.execution.environment import worker_environment

GIB = 1 << 30
CPU = Device("CPU-localhost", "cpu", DeviceKind.CPU, 8 * GIB, slots=2)
GPU = Device("GPU-5", "gpu0", DeviceKind.CUDA, 16 * GIB, slots=1, prefetch=1)
VIRTUAL = tuple(Device(f"VIRTUAL-{n}", f"virtual{n}", DeviceKind.VIRTUAL, GIB) for n in range(2))


def seen_by_worker() -> tuple[str, ...]:
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "JAX_PLATFORMS", "STACKYARD_DEVICE")
    return tuple(os.environ[name] for name in names)


def test_a_gpu_gets_one_process_and_the_cpu_one_for_each_slot() -> None:
    specification = worker_specification((GPU, CPU), cores=8, memory_limit=GIB)
    assert {name: each["options"]["nthreads"] for name, each in specification.items()} == {
        "gpu0": 2 + WRITERS,  # one computes while another reads, and others write
        "cpu-0": 1,
        "cpu-1": 1,
    }


def test_a_cpu_without_slots_gets_no_process() -> None:
    accounted = Device("CPU-localhost", "cpu", DeviceKind.CPU, GIB, slots=0)
    assert list(worker_specification((GPU, accounted), cores=4, memory_limit=GIB)) == ["gpu0"]


def test_cores_are_shared_evenly_among_the_processes() -> None:
    specification = worker_specification((GPU, CPU), cores=8, memory_limit=GIB)
    assert {each["options"]["env"]["OMP_NUM_THREADS"] for each in specification.values()} == {"2"}


def test_a_gpu_worker_sees_its_own_device_and_a_cpu_worker_none() -> None:
    on_gpu = worker_environment(GPU, threads=2)
    assert on_gpu["CUDA_VISIBLE_DEVICES"] == "GPU-5"
    assert on_gpu["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert on_gpu["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert on_gpu["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert worker_environment(CPU, threads=2)["CUDA_VISIBLE_DEVICES"] == ""
    assert worker_environment(CPU, threads=2)["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("XLA_CLIENT_MEM_FRACTION", "0.4", "0.4"),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.3", "0.3"),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "", "0.75"),
    ],
)
def test_a_users_bound_for_jax_stays_under_one_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    # With both names set JAX refuses to start.
    monkeypatch.setenv(name, value)
    found = worker_environment(GPU, threads=2)
    assert found["XLA_CLIENT_MEM_FRACTION"] == expected
    assert not found["XLA_PYTHON_CLIENT_MEM_FRACTION"]


def test_virtual_gpus_get_as_many_logical_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    flags = worker_environment(VIRTUAL[1], threads=4, virtual_devices=2)["XLA_FLAGS"].split()
    assert flags == ["--xla_dump_to=here", "--xla_force_host_platform_device_count=2"]


def listeners() -> set[tuple[int, str, int]]:
    """Process, address and port of whatever this process and those below it listen on."""
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # a test's of Slurm, say, which ends by itself
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((process.pid, *connection.laddr))
    return found


def test_processes_have_their_environment_and_listen_on_loopback_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = listeners()  # a test of Slurm has daemons here, for one
    with local_cluster((VIRTUAL[0], CPU), host_limit=2 * GIB) as client:
        found = set(client.run(seen_by_worker).values())
        listening = {address for _, address, _ in listeners() - before}
    assert found == {("", "1", "cpu", "VIRTUAL-0"), ("", "1", "cpu", "CPU-localhost")}
    assert listening
    assert all(ipaddress.ip_address(address).is_loopback for address in listening)
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_ctrl_c_while_workers_start_does_not_end_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if any('spawn_main' in argument for argument in sys.orig_argv):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with local_cluster((CPU,), host_limit=2 * GIB) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == CPU.slots
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_program_that_works_when_it_is_imported_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "careless.py").write_text(
        "from pathlib import Path\n"
        "from scheduler.config.model import DevicesConfig\n"
        "from scheduler.execution.local import local_scheduler\n"
        "with local_scheduler(run_dir=Path('run'), devices=DevicesConfig(gpus=[])):\n"
        "    print('started')\n"
    )
    command = [sys.executable, "careless.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    said = "ClusterError: each worker process imports the program that starts it: put what it does below"
    assert said in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "ClusterError: the worker processes don't start" in last
    assert last.endswith('when it is imported: put what it does below `if __name__ == "__main__":`')


@pytest.mark.parametrize(
    ("error", "told"), [(CommClosedError("in <TCP>: Stream is closed"), False), (OSError(), True)]
)
def test_a_connection_that_is_closed_while_somebody_reads_is_no_news(error: Exception, told: bool) -> None:
    what = (type(error), error, None)
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "never retrieved", (), what)
    assert tells_news(record) is told
