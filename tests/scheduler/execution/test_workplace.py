"""What a worker of a cluster that we didn't start finds around it: GPUs by a fake NVML, memory, variables."""

import ctypes
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pynvml
import pytest

from scheduler.core.model import Device, DeviceKind
from scheduler.execution.environment import THREAD_VARIABLES
from scheduler.execution.workplace import (
    EXPECTED_ON_GPU,
    Workplace,
    check_versions,
    find_workplace,
    named_for_cluster,
    versions,
)
from scheduler.host.memory import HostProbe
from tests.scheduler.host import fake_nvml

GIB = 1 << 30
FIRST, SECOND = (f"GPU-{number:08x}-aaaa-bbbb-cccc-000000000000" for number in range(2))
HOST_TOTAL = HostProbe().devices()[0].total_bytes


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a person may have set in this shell; what is expected beside a GPU is set."""
    for name in ("CUDA_VISIBLE_DEVICES", *THREAD_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    for name, value in EXPECTED_ON_GPU.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], fake_nvml.State]:
    """So many GPUs of 8 GiB in this process's NVML."""
    try:
        library = fake_nvml.build(tmp_path)
    except FileNotFoundError as error:
        pytest.skip(f"needs a C compiler: {error}")
    state = tmp_path / "nvml-state"
    monkeypatch.setenv("FAKE_NVML_STATE", str(state))
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return lambda count: fake_nvml.new_state(state, count)


def find(*, host_share: float = 1.0, limits: tuple[int, ...] = (), threads: int = 1) -> Workplace:
    return find_workplace(host_share=host_share, memory_limits=limits, headroom_bytes=7, threads=threads)


@pytest.mark.usefixtures("no_driver")
def test_without_a_gpu_it_serves_the_cpu_with_a_slot_for_each_thread() -> None:
    found = find(threads=3)
    assert (found.device.kind, found.device.slots) == (DeviceKind.CPU, 3)
    assert found.device.uuid == found.host.uuid
    assert found.host.total_bytes == HOST_TOTAL


@pytest.mark.usefixtures("no_driver")
def test_host_memory_is_bounded_by_the_share_and_by_every_limit() -> None:
    assert find(host_share=0.5).host.total_bytes == HOST_TOTAL // 2
    assert find(host_share=0.5, limits=(0, GIB, 2 * GIB)).host.total_bytes == GIB
    assert find(limits=(0, 0)).host.total_bytes == HOST_TOTAL
    assert find(host_share=0.5, limits=(GIB,)).device.total_bytes == GIB


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize(("threads", "bounded", "problems"), [(1, False, 0), (2, True, 0), (2, False, 1)])
def test_threads_that_each_use_every_core_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, threads: int, bounded: bool, problems: int
) -> None:
    if bounded:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = find(threads=threads)
    assert len(found.problems) == problems
    assert all("OMP_NUM_THREADS isn't set: 2 attempts" in problem for problem in found.problems)


def test_the_only_gpu_is_the_workers_own(gpus: Callable[[int], fake_nvml.State]) -> None:
    gpus(1)
    found = find()
    assert (found.device.uuid, found.device.kind, found.device.total_bytes) == (
        FIRST,
        DeviceKind.CUDA,
        8 * GIB,
    )
    assert (found.device.headroom_bytes, found.device.prefetch) == (7, 1)
    assert found.host.kind is DeviceKind.CPU
    assert found.problems == ()


@pytest.mark.parametrize(
    ("visible", "uuid"), [("0", FIRST), ("1", SECOND), ("1,0", SECOND), ("0,1", FIRST), (SECOND, SECOND)]
)
def test_of_several_gpus_it_is_bound_to_the_first_that_it_is_told(
    gpus: Callable[[int], fake_nvml.State], monkeypatch: pytest.MonkeyPatch, visible: str, uuid: str
) -> None:
    gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find().device.uuid == uuid


def test_several_gpus_and_no_word_which_leave_it_to_the_cpu(gpus: Callable[[int], fake_nvml.State]) -> None:
    gpus(2)
    found = find()
    assert found.device.kind is DeviceKind.CPU
    (problem,) = found.problems
    assert "it sees 2 GPUs and is bound to none" in problem
    assert "CUDA_VISIBLE_DEVICES" in problem


@pytest.mark.parametrize("visible", ["", "-1"])
def test_gpus_that_are_hidden_from_it_are_not_there(
    gpus: Callable[[int], fake_nvml.State], monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find()
    assert found.device.kind is DeviceKind.CPU
    assert found.problems == ()


def test_a_gpu_that_does_not_tell_its_memory_is_not_replaced_by_the_next(
    gpus: Callable[[int], fake_nvml.State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's number 0 in this process is the GPU that it was told first, whatever NVML thinks of it."""
    state = gpus(2)
    state.gpus[0].error = pynvml.NVML_ERROR_GPU_IS_LOST
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = find()
    assert found.device.kind is DeviceKind.CPU
    assert any("memory" in problem for problem in found.problems)


def test_a_driver_that_does_not_work_is_a_problem(gpus: Callable[[int], fake_nvml.State]) -> None:
    gpus(1).init_error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    found = find()
    assert found.device.kind is DeviceKind.CPU
    (problem,) = found.problems
    assert problem.startswith("the NVIDIA driver doesn't work")


@pytest.mark.parametrize("name", sorted(EXPECTED_ON_GPU))
def test_what_should_be_set_before_a_gpu_worker_starts_is_named(
    gpus: Callable[[int], fake_nvml.State], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gpus(1)
    monkeypatch.delenv(name)
    (problem,) = find().problems
    assert problem.startswith(f"{name} isn't set to {EXPECTED_ON_GPU[name]}")


@pytest.mark.usefixtures("no_driver")
def test_without_a_gpu_none_of_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EXPECTED_ON_GPU:
        monkeypatch.delenv(name)
    assert find().problems == ()


def test_each_hosts_cpu_has_its_own_name_in_a_cluster_and_a_gpu_keeps_its_uuid() -> None:
    host = socket.gethostname()
    cpu = Device("CPU-localhost", "cpu", DeviceKind.CPU, GIB)
    assert named_for_cluster(cpu) == replace(cpu, uuid=f"CPU-localhost@{host}", name=f"cpu@{host}", host=host)
    gpu = Device(FIRST, "gpu0", DeviceKind.CUDA, GIB)
    assert named_for_cluster(gpu) == replace(gpu, host=host)


def test_the_same_python_and_stackyard_are_no_problem() -> None:
    assert list(check_versions(versions())) == []


def test_another_version_is_named_on_both_sides() -> None:
    driver = {**versions(), "Python": "2.7"}
    assert list(check_versions(driver)) == [f"it has Python {versions()['Python']}, and the driver 2.7"]
    assert list(check_versions({})) == [
        f"it has {name} {here}, and the driver None" for name, here in versions().items()
    ]


def test_what_is_installed_is_found_without_importing_it() -> None:
    code = (
        "import sys; from scheduler.execution.workplace import installed_here; found = installed_here(); "
        "assert 'numpy' in found; print(sorted({'torch', 'tensorflow', 'jax', 'cupy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_the_whole_machine_is_the_most_that_there_can_be() -> None:
    assert psutil.virtual_memory().total >= HOST_TOTAL > 0
