"""Virtual GPUs: capacities of bytes that pools charge, for multi-GPU runs and tests without a GPU."""

from collections.abc import Sequence

from pools.virtual import VirtualDeviceMemory
from scheduler.core.model import Device, DeviceKind
from scheduler.host.reading import Probe, Reading


class VirtualProbe(Probe):
    """Devices whose memory is a `VirtualDeviceMemory` named by the device's uuid.

    Parameters
    ----------
    capacities
        Bytes of each device.
    tag
        Distinguishes the devices of runs that mustn't share them; processes with the same tag share.
    lasting
        Leave the files behind at `close`, for other runs that share the devices.
    """

    def __init__(self, capacities: Sequence[int], tag: str, *, lasting: bool = False) -> None:
        self._lasting = lasting
        self._devices = tuple(
            Device(f"VIRTUAL-{tag}-{index}", f"virtual{index}", DeviceKind.VIRTUAL, capacity, model="virtual")
            for index, capacity in enumerate(capacities)
        )
        self._memories = {
            device.uuid: VirtualDeviceMemory(device.uuid, device.total_bytes) for device in self._devices
        }

    def devices(self) -> tuple[Device, ...]:
        return self._devices

    def memory(self, uuid: str) -> VirtualDeviceMemory:
        """The account that allocations on this device are charged to."""
        return self._memories[uuid]

    def read(self, uuid: str) -> Reading:
        memory = self._memories[uuid]
        try:
            return Reading(uuid, memory.capacity, memory.used())
        except OSError as error:
            return Reading(uuid, memory.capacity, None, f"virtual memory {uuid} can't be read: {error}")

    def close(self) -> None:
        """Remove the files, unless they are lasting.

        Call it where the devices were made, at the run's end.
        """
        if self._lasting:
            return
        for memory in self._memories.values():
            memory.unlink()
