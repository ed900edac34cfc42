"""What is on this host: every device that a run may use, and how its memory is read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from scheduler.core.model import Device, DeviceSnapshot
from scheduler.host.memory import HostProbe
from scheduler.host.nvml import NvmlProbe
from scheduler.host.opencl import OpenCLProbe
from scheduler.host.reading import Probe, Reading
from scheduler.host.reservations import Reservations
from scheduler.host.timed import TimedProbe
from scheduler.host.virtual import VirtualProbe

__all__ = [
    "Discovery",
    "HostProbe",
    "NvmlProbe",
    "OpenCLProbe",
    "Probe",
    "Reading",
    "TimedProbe",
    "VirtualProbe",
    "discover",
]


@dataclass(frozen=True)
class Discovery:
    """The devices of a run, GPUs first, the CPU last.

    `problems` in words, each worth a line on the screen.
    """

    devices: tuple[Device, ...]
    problems: tuple[str, ...]
    _probes: dict[str, Probe]

    def read(self, uuid: str) -> Reading:
        """One device's memory now."""
        return self._probes[uuid].read(uuid)

    def snapshots(self, reservations: Reservations | None = None) -> list[DeviceSnapshot]:
        """Every device's snapshot, with what the reservation table says of our processes and other runs."""
        readings = [self.read(device.uuid) for device in self.devices]
        if reservations is None:
            return [reading.with_processes(()) for reading in readings]
        return reservations.snapshots(readings)

    def close(self) -> None:
        """Give back what the probes hold."""
        for probe in {id(probe): probe for probe in self._probes.values()}.values():
            probe.close()


def discover(
    gpus: str | Sequence[int] = "auto",
    *,
    virtual: Sequence[int] = (),
    virtual_tag: str = "",
    virtual_lasting: bool = False,
    opencl: Sequence[tuple[str, int]] = (),
    cpu_slots: int = 1,
    gpu_slots: int = 1,
    prefetch: int = 0,
    headroom_bytes: int = 512 << 20,
    host_limits: Iterable[int] = (),
    timeout_s: float = 1.0,
) -> Discovery:
    """Find the devices that a run may use.

    Parameters
    ----------
    gpus
        "auto" for all that CUDA_VISIBLE_DEVICES leaves, or their numbers among these. Ignored with `virtual`.
    virtual
        Capacities in bytes of virtual GPUs to use instead, named after `virtual_tag`. Lasting ones stay after
        this run, for others that use the same tag.
    opencl
        (name, total bytes) of OpenCL devices, used where there is no NVIDIA device.
    cpu_slots
        CPU worker processes; 0 leaves the host's memory accounted and its CPU unused.
    headroom_bytes
        What stays free on each GPU.
    host_limits
        Further bounds of host memory, in bytes.

    Raises
    ------
    ValueError
        A number in `gpus` that isn't there.
    """
    problems: list[str] = []
    probes: list[Probe] = []
    chosen: list[tuple[Device, Probe]] = []
    if virtual:
        probe: Probe = VirtualProbe(virtual, virtual_tag, lasting=virtual_lasting)
        chosen = [(device, probe) for device in probe.devices()]
    elif gpus == "auto" or gpus:
        probe = TimedProbe(NvmlProbe(), timeout_s)
        probes.append(probe)
        found = probe.devices()
        if gpus == "auto":
            chosen = [(device, probe) for device in found if device.total_bytes > 0]
            if not chosen and opencl:
                probe = OpenCLProbe(opencl)
                chosen = [(device, probe) for device in probe.devices()]
        else:
            for number in gpus:
                if not isinstance(number, int) or not 0 <= number < len(found):
                    there = f"0-{len(found) - 1}" if found else "no GPU at all"
                    detail = f": {probe.problem}" if probe.problem else ""
                    raise ValueError(f"GPU {number} is not there; there is {there}{detail}")
                chosen.append((found[number], probe))
        problems += [probe.problem] if probe.problem else []
    devices = {
        replace(device, slots=gpu_slots, prefetch=prefetch, headroom_bytes=headroom_bytes): probe
        for device, probe in chosen
    }
    host = HostProbe(host_limits, slots=cpu_slots)
    devices[host.devices()[0]] = host
    return Discovery(
        tuple(devices), tuple(problems), {device.uuid: probe for device, probe in devices.items()}
    )
