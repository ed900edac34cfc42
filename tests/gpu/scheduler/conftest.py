"""The GPU under test, and nothing cached on it by an earlier test."""

import gc
from collections.abc import Iterator

import pytest

from pools.oom import loaded_backends
from scheduler.host.nvml import NvmlProbe
from tests.gpu.scheduler.nvml import GpuUnderTest
from tests.scheduler.execution.conftest import (  # noqa: F401  fixtures of the runs here too
    _own_estimates,
    _own_modules,
    make_config,
    plate,
    write_config,
)


def give_back_caches() -> None:
    """Free what the libraries of this process keep unused."""
    gc.collect()
    for backend in loaded_backends():
        if any(device.gpu_id == 0 and device.kind == "gpu" for device in backend.known_devices()):
            backend.synchronize(0)
            backend.drain(0)


@pytest.fixture
def gpu() -> Iterator[GpuUnderTest]:
    """The first GPU, with the caches of this process emptied; skips without one."""
    probe = NvmlProbe()
    if not probe.devices():
        probe.close()
        pytest.skip(f"needs a GPU that NVML sees: {probe.problem or 'there is none'}")
    give_back_caches()
    yield GpuUnderTest(probe)
    give_back_caches()
    probe.close()
