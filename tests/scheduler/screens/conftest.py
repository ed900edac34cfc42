"""One moment of a run, as the screens get it."""

from dataclasses import replace

import pytest

from scheduler.execution.status import DeviceStatus, RunStatus, WaitingJob
from tests.scheduler.host.conftest import nvml, nvml_libraries

__all__ = ["nvml", "nvml_libraries"]

GIB = 1 << 30


@pytest.fixture
def gpu() -> DeviceStatus:
    return DeviceStatus(
        name="gpu0",
        uuid="GPU-1",
        kind="cuda",
        virtual=False,
        total_bytes=24 * GIB,
        free_bytes=10 * GIB,
        reserved_bytes=8 * GIB,
        idle_bytes=2 * GIB,
        external_bytes=4 * GIB,
        running=("a", "b"),
        done=80,
    )


@pytest.fixture
def status(gpu: DeviceStatus) -> RunStatus:
    virtual = replace(gpu, name="gpu1", kind="virtual", virtual=True, running=(), done=40)
    lost = replace(gpu, name="gpu2", free_bytes=None, problem="NVML: GPU is lost")
    return RunStatus(
        run_dir="out/.stackyard/1",
        state="running",
        jobs=480,
        done=120,
        failed=2,
        running=4,
        elapsed_s=83.2,
        rate_per_s=1.44,
        eta_s=251.0,
        devices=(gpu, virtual, lost),
        waiting=(
            WaitingJob("A01_s1", "needs 9 GiB on gpu0, 2 GiB is free", 12.2),
            WaitingJob("A01_s2", "reason two", 9.0),
            WaitingJob("A01_s3", "reason three", 8.0),
            WaitingJob("A01_s4", "reason four", 7.0),
        ),
    )
