"""The devices that a config names, found on this host."""

import hashlib
import os
import socket
from pathlib import Path

from scheduler.config.model import DevicesConfig, MemoryConfig, VirtualGpus
from scheduler.host.memory import HostProbe
from scheduler.host.probes import Discovery, discover


class DevicesError(ValueError):
    """The config names a device that isn't there, or leaves nothing to run on."""


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shared_name(devices: DevicesConfig) -> str | None:
    return devices.gpus.name if isinstance(devices.gpus, VirtualGpus) else None


def run_label(run_dir: Path) -> str:
    """What a run is called among others on its hosts: folders of one name in different places are different.

    The same when the run goes on, on the same host.
    """
    place = os.fsencode(run_dir.resolve()) + socket.gethostname().encode()
    name = run_dir.name[:40].encode(errors="replace").decode()
    return f"{name}-{hashlib.blake2b(place, digest_size=4).hexdigest()}"


def virtual_tag(devices: DevicesConfig, run_dir: Path) -> str:
    """What the run's virtual GPUs are called: the name that it shares with other runs, or one of its own."""
    return _shared_name(devices) or run_label(run_dir)


def open_devices(wanted: DevicesConfig, memory: MemoryConfig, *, run_dir: Path, jobs: int) -> Discovery:
    """Find the devices of a run: its GPUs, then this host's CPU with a slot for each core, or job if fewer.

    Raises
    ------
    DevicesError
        A GPU that isn't there, or none at all where `cpu: false`.
    """
    virtual = wanted.gpus.virtual if isinstance(wanted.gpus, VirtualGpus) else ()
    host_limit = memory.host_limit_bytes(HostProbe().devices()[0].total_bytes)
    try:
        found = discover(
            wanted.gpus if not isinstance(wanted.gpus, VirtualGpus) else (),
            virtual=[int(capacity) for capacity in virtual],
            virtual_tag=virtual_tag(wanted, run_dir),
            virtual_lasting=_shared_name(wanted) is not None,
            cpu_slots=max(1, min(usable_cores(), jobs)) if wanted.cpu else 0,
            headroom_bytes=0 if virtual else int(wanted.headroom),
            # One is ready when the one before it leaves the GPU, and another gets ready meanwhile.
            prefetch=2,
            host_limits=(host_limit,),
        )
    except ValueError as error:
        raise DevicesError(f"devices.gpus: {error}") from error
    if not wanted.cpu and len(found.devices) == 1:
        problem = "; ".join(found.problems) or "no NVIDIA driver is installed"
        found.close()
        raise DevicesError(f"devices: no GPU is there ({problem}), and cpu: false leaves nothing to run on")
    return found
