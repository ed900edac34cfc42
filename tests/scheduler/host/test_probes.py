import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psutil
import pynvml
import pytest

from scheduler.core.model import DeviceKind
from scheduler.host.memory import HostProbe
from scheduler.host.nvml import NvmlProbe
from scheduler.host.opencl import OpenCLProbe
from scheduler.host.probes import discover
from scheduler.host.reading import Probe, Reading
from scheduler.host.timed import TimedProbe
from scheduler.host.virtual import VirtualProbe
from tests.scheduler.host import fake_nvml
from tests.scheduler.host.contract import ProbeContract

GIB = 1 << 30
FIRST, SECOND = (f"GPU-{number:08x}-aaaa-bbbb-cccc-000000000000" for number in range(2))
ALL = {}


class TestNvmlContract(ProbeContract):
    @pytest.fixture
    def probe(self, nvml):
        return NvmlProbe(ALL)


class TestTimedContract(ProbeContract):
    @pytest.fixture
    def probe(self, nvml):
        timed = TimedProbe(NvmlProbe(ALL), timeout_s=30)
        yield timed
        timed.close()


class TestVirtualContract(ProbeContract):
    @pytest.fixture
    def probe(self):
        virtual = VirtualProbe([GIB, 2 * GIB], f"test-{uuid.uuid4().hex[:8]}")
        yield virtual
        virtual.close()


class TestOpenCLContract(ProbeContract):
    @pytest.fixture
    def probe(self):
        return OpenCLProbe([("a device", GIB)])


class TestHostContract(ProbeContract):
    @pytest.fixture
    def probe(self):
        return HostProbe(slots=2)


def test_memory_that_others_take_is_seen(nvml):
    probe = NvmlProbe(ALL)
    assert probe.read(FIRST).used_bytes == 256 << 20
    nvml.gpus[0].memory.used = 3 * GIB
    assert probe.read(FIRST) == Reading(FIRST, 8 * GIB, 3 * GIB + (256 << 20))
    assert probe.read(SECOND).used_bytes == 256 << 20


@pytest.mark.parametrize("nvml", [False], indirect=True)
def test_a_driver_without_memory_v2_gives_the_same_figures(nvml):
    nvml.gpus[0].memory.used = 3 * GIB
    assert NvmlProbe(ALL).read(FIRST) == Reading(FIRST, 8 * GIB, 3 * GIB + (256 << 20))


@pytest.mark.parametrize(
    "error",
    [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_TIMEOUT,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_IRQ_ISSUE,
        pynvml.NVML_ERROR_MEMORY,
        pynvml.NVML_ERROR_UNKNOWN,
    ],
)
def test_an_error_is_unknown_and_the_device_comes_back(nvml, error):
    probe = NvmlProbe(ALL)
    nvml.gpus[0].error = error
    reading = probe.read(FIRST)
    assert reading.used_bytes is None
    assert "NVML" in reading.problem
    # one device's fault is not the other's
    assert probe.read(SECOND).used_bytes == 256 << 20
    nvml.gpus[0].error = 0
    assert probe.read(FIRST).used_bytes == 256 << 20


def test_a_driver_that_is_reloaded_is_initialised_again(nvml):
    probe = NvmlProbe(ALL)
    before = nvml.initialised
    nvml.gpus[0].error = pynvml.NVML_ERROR_UNINITIALIZED
    assert probe.read(FIRST).used_bytes is None
    nvml.init_error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert "Driver Not Loaded" in probe.read(FIRST).problem
    nvml.init_error = nvml.gpus[0].error = 0
    assert probe.read(FIRST).used_bytes == 256 << 20
    assert nvml.initialised > before


@pytest.mark.parametrize(
    "error", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH]
)
def test_a_broken_driver_is_named(nvml, error):
    nvml.init_error = error
    probe = NvmlProbe(ALL)
    assert probe.devices() == ()
    assert "driver doesn't work" in probe.problem


def test_no_driver_is_a_normal_state(monkeypatch):
    def absent():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    probe = NvmlProbe(ALL)
    assert probe.devices() == ()
    assert probe.problem == ""


def test_a_gpu_that_is_lost_at_start_does_not_hide_the_others(nvml):
    nvml.gpus[0].handle_error = pynvml.NVML_ERROR_GPU_IS_LOST
    probe = NvmlProbe(ALL)
    assert [device.uuid for device in probe.devices()] == [SECOND]
    assert "GPU 0" in probe.problem


def test_unified_memory_is_the_hosts(nvml):
    nvml.gpus[0].name = b"NVIDIA GB10"
    nvml.gpus[0].error = pynvml.NVML_ERROR_NOT_SUPPORTED
    reading = NvmlProbe(ALL).read(FIRST)
    assert reading.total_bytes == psutil.virtual_memory().total
    assert reading.used_bytes is not None


def test_mig_instances_stand_for_their_gpu(nvml):
    gpu = nvml.gpus[0]
    gpu.mig_error, gpu.mig_mode = 0, pynvml.NVML_DEVICE_MIG_ENABLE
    for number in (0, 2):
        gpu.instances[number].exists = 1
        gpu.instances[number].uuid = f"MIG-{number}".encode()
        gpu.instances[number].memory = fake_nvml.Memory(GIB, 0, number << 20)
    probe = NvmlProbe(ALL)
    assert [device.uuid for device in probe.devices()] == ["MIG-0", "MIG-2", SECOND]
    assert probe.read("MIG-2") == Reading("MIG-2", GIB, 2 << 20)
    assert [device.uuid for device in NvmlProbe({"CUDA_VISIBLE_DEVICES": "MIG-2"}).devices()] == ["MIG-2"]
    assert [device.uuid for device in NvmlProbe({"CUDA_VISIBLE_DEVICES": "0"}).devices()] == [
        "MIG-0",
        "MIG-2",
    ]


@pytest.mark.parametrize(
    ("variable", "numbers"),
    [
        ("0", [0]),
        ("7,2", [7, 2]),
        ("", []),
        ("-1", []),
        ("1,-1,2", [1]),
        ("3,99,4", [3]),
        ("2,2", [2]),
        ("GPU-00000005", [5]),
        ("GPU-0000000", []),
        (" 1 , 4 ", [1, 4]),
        ("nonsense", []),
    ],
)
def test_cuda_visible_devices_bounds_what_is_seen(nvml, tmp_path, variable, numbers):
    nvml.count = 8
    for number in range(8):
        nvml.gpus[number].uuid = f"GPU-{number:08x}-aaaa".encode()
        nvml.gpus[number].memory = fake_nvml.Memory(GIB, 0, 0)
        nvml.gpus[number].mig_error = 3
    probe = NvmlProbe({"CUDA_VISIBLE_DEVICES": variable})
    assert [device.uuid for device in probe.devices()] == [f"GPU-{number:08x}-aaaa" for number in numbers]


def test_a_slow_answer_is_unknown_until_it_comes(nvml):
    class Slow(Probe):
        def __init__(self):
            self.inner = NvmlProbe(ALL)
            self.go_on = threading.Event()
            self.go_on.set()

        def devices(self):
            return self.inner.devices()

        def read(self, uuid):
            self.go_on.wait()
            return self.inner.read(uuid)

    slow = Slow()
    probe = TimedProbe(slow, timeout_s=0.05)
    slow.go_on.clear()
    late = probe.read(FIRST)
    assert late.used_bytes is None
    assert "didn't answer within 0.05 s" in late.problem
    assert "still waits" in probe.read(SECOND).problem
    slow.go_on.set()
    deadline = time.monotonic() + 30
    while (reading := probe.read(SECOND)).used_bytes is None and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert reading.used_bytes == 256 << 20
    probe.close()


def test_a_fault_in_a_probe_is_an_unknown_device(nvml):
    class Faulty(NvmlProbe):
        def read(self, uuid):
            raise RuntimeError("a fault")

    probe = TimedProbe(Faulty(ALL), timeout_s=30)
    assert probe.read(FIRST).problem == "RuntimeError: a fault"
    probe.close()


def test_pynvml_loads_the_library_by_name_and_sees_another_process_grow(nvml_libraries, tmp_path):
    path = tmp_path / "state"
    state = fake_nvml.new_state(path, count=8)
    script = (
        "import sys; from scheduler.host.nvml import NvmlProbe\n"
        "probe = NvmlProbe({})\n"
        "for line in sys.stdin:\n"
        "    print(probe.read(probe.devices()[int(line)].uuid).used_bytes, flush=True)\n"
    )
    environment = {
        **os.environ, "LD_LIBRARY_PATH": str(nvml_libraries[True].parent), "FAKE_NVML_STATE": str(path)
    }  # fmt: skip
    hog = (
        "import mmap, sys; from pathlib import Path; from tests.scheduler.host.fake_nvml import State\n"
        "file = open(sys.argv[1], 'r+b')\nstate = State.from_buffer(mmap.mmap(file.fileno(), 0))\n"
        "state.gpus[7].memory.used += 5 << 30\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdin=-1, stdout=-1, text=True, cwd=Path.cwd()
    ) as reader:

        def ask(number):
            reader.stdin.write(f"{number}\n")
            reader.stdin.flush()
            return int(reader.stdout.readline())

        assert ask(7) == 256 << 20
        subprocess.run([sys.executable, "-c", hog, str(path)], check=True, cwd=Path.cwd())
        assert ask(7) == (5 << 30) + (256 << 20)
        assert ask(6) == 256 << 20
        reader.stdin.close()
    assert state.gpus[7].memory.used == 5 << 30


def write_cgroup(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(str(text))


def test_cgroup_v2_limit_of_an_ancestor_counts_without_page_cache(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    own.write_text("0::/slice/job\n")
    limits = {
        "memory__max": 4 * GIB,
        "memory__current": 3 * GIB,
        "memory__stat": f"anon 1\ninactive_file {GIB}\n",
    }
    write_cgroup(root / "slice", **limits)
    write_cgroup(root / "slice" / "job", memory__max="max", memory__current=GIB, memory__stat="")
    probe = HostProbe(cgroups=root, self_cgroup=own)
    assert probe.devices()[0].total_bytes == 4 * GIB
    assert probe.read("CPU-localhost").used_bytes == 2 * GIB


def test_cgroup_v1_limit(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    own.write_text("9:cpu,memory:/job\n3:pids:/job\n")
    write_cgroup(
        root / "memory" / "job",
        memory__limit_in_bytes=2 * GIB,
        memory__usage_in_bytes=GIB,
        memory__stat="total_inactive_file 0\n",
    )
    write_cgroup(root / "memory", memory__limit_in_bytes=9223372036854771712)
    probe = HostProbe(cgroups=root, self_cgroup=own)
    assert probe.devices()[0].total_bytes == 2 * GIB
    assert probe.read("CPU-localhost").used_bytes == GIB


def test_a_limit_below_the_machine_absorbs_what_others_use(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    own.write_text("0::/\n")
    write_cgroup(root, memory__max=8 * GIB, memory__current=3 * GIB, memory__stat="")
    probe = HostProbe([6 * GIB], cgroups=root, self_cgroup=own)
    assert probe.devices()[0].total_bytes == 6 * GIB
    # 3 of 8 GiB are used, 2 of them in the part that isn't ours to use
    assert probe.read("CPU-localhost").used_bytes == GIB


def test_a_job_s_share_of_the_host_is_a_device_of_its_own(monkeypatch):
    monkeypatch.setenv("STACKYARD_HOST_SHARE", "n1-7")
    probe = HostProbe([GIB])
    (device,) = probe.devices()
    assert (device.uuid, device.name, device.total_bytes) == ("CPU-n1-7", "cpu-n1-7", GIB)
    assert probe.read("CPU-n1-7").total_bytes == GIB
    with pytest.raises(KeyError):
        probe.read("CPU-localhost")


def test_a_cgroup_that_cannot_be_read_is_unknown(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    own.write_text("0::/\n")
    write_cgroup(root, memory__max=8 * GIB, memory__current=GIB, memory__stat="")
    probe = HostProbe(cgroups=root, self_cgroup=own)
    (root / "memory.current").write_text("")
    reading = probe.read("CPU-localhost")
    assert reading.used_bytes is None
    assert "cgroup" in reading.problem


def test_discover_resolves_numbers_and_names_a_missing_one(nvml, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = discover([1], cpu_slots=2, gpu_slots=3, headroom_bytes=GIB)
    gpu, cpu = found.devices
    assert (gpu.uuid, gpu.slots, gpu.headroom_bytes, gpu.kind) == (SECOND, 3, GIB, DeviceKind.CUDA)
    assert (cpu.kind, cpu.slots, cpu.headroom_bytes) == (DeviceKind.CPU, 2, 0)
    assert [snapshot.uuid for snapshot in found.snapshots()] == [SECOND, cpu.uuid]
    found.close()
    with pytest.raises(ValueError, match=r"GPU 2 is not there; there is 0-1"):
        discover([0, 2])


def test_discover_uses_virtual_gpus_instead():
    tag = f"test-{uuid.uuid4().hex[:8]}"
    found = discover(virtual=[GIB, 2 * GIB], virtual_tag=tag)
    try:
        first, second, _ = found.devices
        assert first.virtual
        assert (first.total_bytes, second.total_bytes) == (GIB, 2 * GIB)
        assert found.read(second.uuid) == Reading(second.uuid, 2 * GIB, 0)
    finally:
        found.close()
