"""OpenCL devices for pyclesperanto where there is no NVIDIA driver: totals only, strangers can't be seen."""

from collections.abc import Sequence

from scheduler.core.model import Device, DeviceKind
from scheduler.host.reading import Probe, Reading


class OpenCLProbe(Probe):
    """OpenCL devices that somebody has listed: (name, total bytes) each, in the order of the library's
    numbers.

    OpenCL has no call for used memory, so what other programs hold stays unknown and counts as nothing: free
    is the total less what is ours. `note` says so on the screens. The listing is done elsewhere, in a process
    of its own, since loading an OpenCL driver after TensorFlow can crash a process.
    """

    note = "OpenCL tells totals only: what other programs use isn't seen"

    def __init__(self, listed: Sequence[tuple[str, int]]) -> None:
        self._devices = tuple(
            Device(f"OPENCL-{index}", f"opencl{index}", DeviceKind.OPENCL, total, model=name)
            for index, (name, total) in enumerate(listed)
        )

    def devices(self) -> tuple[Device, ...]:
        return self._devices

    def read(self, uuid: str) -> Reading:
        total = {device.uuid: device.total_bytes for device in self._devices}[uuid]
        return Reading(uuid, total, 0, self.note)
