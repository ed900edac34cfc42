"""The devices of a stress test, and what the scheduler is told about them."""

from importlib.util import find_spec

from pydantic import ByteSize

from scheduler.config.model import DevicesConfig, VirtualGpus
from scheduler.core.model import DeviceKind
from scheduler.execution.devices import usable_cores
from scheduler.host.memory import HostProbe
from scheduler.host.probes import Discovery, discover
from scheduler.stress.options import StressError, StressOptions

# Jobs that one device computes at a time: memory shall be what decides.
GPU_SLOTS = 4
MOST_CPU_SLOTS = 4
HOST_SHARE = 0.75
REAL_HEADROOM = 512 << 20


def find_devices(options: StressOptions, tag: str) -> tuple[DevicesConfig, Discovery]:
    """The virtual devices that were asked for, named after `tag`, or the GPUs of this host; and its CPU.

    Raises
    ------
    StressError
        No GPU is here, or no library that could hold memory on it.
    """
    virtual = options.virtual is not None
    needed = ("torch",) if virtual else ("torch", "cupy")
    if not any(find_spec(name) for name in needed):
        names = " or ".join(needed)
        kind = "virtual devices" if virtual else "GPUs"
        raise StressError(
            f"jobs of a stress test need {names} on {kind}, and that isn't installed; try: "
            "pip install 'stackyard[torch]'"
        )
    found = discover(
        () if virtual else "auto",
        virtual=options.virtual or (),
        virtual_tag=tag,
        cpu_slots=max(1, min(usable_cores(), MOST_CPU_SLOTS, options.jobs)),
        gpu_slots=GPU_SLOTS,
        prefetch=1,
        headroom_bytes=0 if virtual else REAL_HEADROOM,
        host_limits=(int(HOST_SHARE * HostProbe().devices()[0].total_bytes),),
    )
    if all(device.kind is DeviceKind.CPU for device in found.devices):
        problem = "; ".join(found.problems) or "no NVIDIA driver is installed"
        found.close()
        raise StressError(f"no GPU is here ({problem}); for virtual ones, add --virtual 2x8GiB")
    if not virtual:
        return DevicesConfig(), found
    capacities = tuple(ByteSize(capacity) for capacity in options.virtual or ())
    return DevicesConfig(gpus=VirtualGpus(virtual=capacities, name=tag), headroom=ByteSize(0)), found


def smallest_gpu(found: Discovery) -> int:
    """Bytes that jobs may have of the smallest GPU."""
    return min(
        device.total_bytes - device.headroom_bytes
        for device in found.devices
        if device.kind is not DeviceKind.CPU
    )
