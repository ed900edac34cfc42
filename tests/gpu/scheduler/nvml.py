"""The GPU under test, as NVML sees it; and a program of somebody else's that takes memory of it."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from scheduler.core.model import Device
from scheduler.host.nvml import NvmlProbe

MIB, GIB = 1 << 20, 1 << 30
DEADLINE_S = 60.0
# Takes so many bytes by the driver alone, says so, and keeps them until its input is closed.
HOG = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
steps = (
    ("cuInit", lambda: cuda.cuInit(0)),
    ("cuDeviceGet", lambda: cuda.cuDeviceGet(ctypes.byref(device), 0)),
    ("cuDevicePrimaryCtxRetain", lambda: cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)),
    ("cuCtxSetCurrent", lambda: cuda.cuCtxSetCurrent(context)),
    ("cuMemAlloc", lambda: cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(int(sys.argv[1])))),
)
for name, step in steps:
    status = step()
    if status:
        sys.exit(f"{name}: CUDA error {status}")
print("taken", flush=True)
sys.stdin.read()
"""


class GpuUnderTest:
    """The first device that CUDA_VISIBLE_DEVICES leaves."""

    def __init__(self, probe: NvmlProbe) -> None:
        self.probe = probe
        self.device: Device = probe.devices()[0]

    @property
    def uuid(self) -> str:
        return self.device.uuid

    def used(self) -> int:
        """Bytes in use, by everybody."""
        used = self.probe.read(self.uuid).used_bytes
        assert used is not None
        return used

    def free(self) -> int:
        """Bytes that nobody uses."""
        return self.device.total_bytes - self.used()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Memory of a process that has ended comes back a moment later."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"{self.used()} bytes in use"
            time.sleep(0.02)


@contextlib.contextmanager
def hog(nbytes: int) -> Iterator[subprocess.Popen[str]]:
    """A process that is none of ours holds so many bytes of the device while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOG, str(nbytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if said != "taken\n":
            _, errors = process.communicate(timeout=DEADLINE_S)
            pytest.fail(f"the hog took nothing: {errors}")
        yield process
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)
