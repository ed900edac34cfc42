"""Where a worker process is: the device that it serves, its host's memory, and what its environment lacks."""

import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import dask
import psutil

from memcore import backend_of
from memcore.memory_type import GpuId
from memcore.registry import memory_type_names
from pools.cgroup import Cgroup
from pools.pressure import host_free
from scheduler.core.model import Device, DeviceKind
from scheduler.execution.environment import THREAD_VARIABLES
from scheduler.execution.run_settings import WorkerSettings
from scheduler.host.memory import SHARE_VARIABLE, HostProbe
from scheduler.host.nvml import NvmlProbe
from scheduler.host.reading import Probe
from scheduler.host.timed import TimedProbe
from scheduler.host.virtual import VirtualProbe

EXPECTED_ON_GPU = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}


@dataclass(frozen=True, slots=True)
class Workplace:
    """What a worker process of a cluster that we didn't start finds around it.

    `device` and `host` are named as this host's probes name them; `problems` are in words.
    """

    device: Device
    host: Device
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProcessLimit:
    """What Dask lets a worker process have of its host's memory, in bytes; 0 is no limit.

    `attempts_bytes` is what attempts may take before the nanny ends the process. Above `idle_bytes` in all
    Dask pauses the worker: it begins nothing more, until idle arrays have gone.
    """

    attempts_bytes: int = 0
    idle_bytes: int = 0

    def of(self, total: int) -> int:
        """As much of `total` as attempts may take."""
        return min(total, self.attempts_bytes or total)

    def headroom(self, usual: int) -> int:
        """What idle arrays make room for, `usual` where there is no limit."""
        return min(usual, self.idle_bytes // 8 or usual)

    def readers(self) -> dict[GpuId, Callable[[], int | None]]:
        """For the pools' watcher: how much is free before the worker is paused, if it may be."""
        return {"cpu": self._free} if self.idle_bytes else {}

    def _free(self) -> int:
        below_pause = self.idle_bytes - int(psutil.Process().memory_info().rss)
        return min(host_free(Cgroup.of_this_process()), below_pause)


def process_limit(memory_limit: int) -> ProcessLimit:
    """What Dask's limit for this worker process, of so many bytes, leaves for attempts; 0 is no limit.

    Asked before the first attempt: what the process has by then stays. In a job of a cluster that has a limit
    for all its processes there is none for each.
    """
    if not memory_limit or os.environ.get(SHARE_VARIABLE):
        return ProcessLimit()
    # A share of the limit, or False where it is switched off (Dask's configuration reference).
    terminate = dask.config.get("distributed.worker.memory.terminate") or 1.0
    pause = dask.config.get("distributed.worker.memory.pause") or terminate
    resident = int(psutil.Process().memory_info().rss)
    return ProcessLimit(max(1, int(terminate * memory_limit) - resident), int(pause * memory_limit))


def find_workplace(
    *, host_share: float, memory_limits: Sequence[int], headroom_bytes: int, threads: int
) -> Workplace:
    """Look which GPU this process is bound to, if any, and how much host memory it may use.

    A process is bound to the first GPU of its CUDA_VISIBLE_DEVICES, as dask-cuda starts its workers, or to
    the only GPU that there is. One that sees several GPUs and was told none serves the CPU: which of them it
    would use is anybody's guess.

    Parameters
    ----------
    host_share
        The share of the host's memory that may be used, up to 1.
    memory_limits
        Further limits in bytes for all processes of the host; 0 is none.
    threads
        Attempts that may compute in a CPU worker at one time.
    """
    problems: list[str] = []
    total = HostProbe().devices()[0].total_bytes
    host = HostProbe((int(total * host_share), *memory_limits)).devices()[0]
    probe = NvmlProbe()
    try:
        gpus = probe.devices()
        problems += [probe.problem] if probe.problem else []
    finally:
        probe.close()
    told = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpus and not told and len(gpus) > 1:
        problems.append(
            f"it sees {len(gpus)} GPUs and is bound to none, so it serves the CPU: start it with one GPU in "
            "CUDA_VISIBLE_DEVICES, or by dask cuda worker"
        )
        gpus = ()
    # One that doesn't tell its memory, which is a problem already, has no room; and the next isn't ours.
    gpus = tuple(gpu for gpu in gpus[:1] if gpu.total_bytes > 0)
    problems += [
        f"{name} isn't set to {value}, which has to happen before the worker starts"
        for name, value in (EXPECTED_ON_GPU.items() if gpus else ())
        if os.environ.get(name) != value
    ]
    if threads > 1 and not any(os.environ.get(name) for name in THREAD_VARIABLES):
        problems.append(f"OMP_NUM_THREADS isn't set: {threads} attempts at a time each use every core")
    device = (
        replace(gpus[0], headroom_bytes=headroom_bytes, prefetch=1) if gpus else replace(host, slots=threads)
    )
    return Workplace(device, host, tuple(problems))


def worker_probes(settings: WorkerSettings, device: Device, host: Device) -> Mapping[str, Probe]:
    """What reads a worker's device and its host, by uuid."""
    probes: dict[str, Probe] = {host.uuid: HostProbe((host.total_bytes,), slots=host.slots)}
    if device.kind is DeviceKind.CUDA:
        probes[device.uuid] = TimedProbe(NvmlProbe(), 1.0)
    elif device.kind is DeviceKind.VIRTUAL:
        capacities = [each.total_bytes for each in settings.virtual]
        probes[device.uuid] = VirtualProbe(capacities, settings.virtual_tag)
    return probes


def named_for_cluster(device: Device) -> Device:
    """The device as a driver of several hosts knows it: each host's CPU has the same name on its own host."""
    host = socket.gethostname()
    if device.kind is not DeviceKind.CPU:
        return replace(device, host=host)
    return replace(device, uuid=f"{device.uuid}@{host}", name=f"{device.name}@{host}", host=host)


def installed_here() -> tuple[str, ...]:
    """The memory types whose library is installed in this environment; imports none of them."""
    return tuple(str(name) for name in memory_type_names() if backend_of(name).installed())


def check_versions(there: Mapping[str, str]) -> Iterable[str]:
    """What differs between this process's Python and Stackyard and the driver's, in words."""
    for name, theirs in versions().items():
        if there.get(name) != theirs:
            yield f"it has {name} {theirs}, and the driver {there.get(name)}"


def versions() -> dict[str, str]:
    """What must be the same in the driver and its workers for them to understand one another."""
    from importlib.metadata import version

    python = ".".join(map(str, sys.version_info[:2]))
    return {"Python": python, "stackyard": version("stackyard")}
