"""What every worker of a run is told."""

from dataclasses import dataclass

from scheduler.core.model import Device, DeviceKind


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker of a run is told.

    Attributes
    ----------
    run
        What it is called among others on its hosts: `devices.run_label`.
    run_dir
        Its folder, absolute.
    topic
        The Dask topic on which workers tell the driver what happens.
    devices
        The run's devices, where the driver has started the workers itself; each finds its own by the
        environment variable STACKYARD_DEVICE. Empty on other clusters, whose workers look around.
    virtual_tag
        Names the run's virtual devices.
    host_share, host_limit, headroom_bytes
        For workers that look around: how much of the host's memory may be used (a share, and bytes; 0 is no
        limit), and what stays free on a GPU.
    drain_s
        How long a worker that is being closed waits for its attempts to end.
    versions
        The driver's, see `workplace.versions`.
    """

    run: str
    run_dir: str
    devices: tuple[Device, ...] = ()
    virtual_tag: str = ""
    topic: str = ""
    host_share: float = 1.0
    host_limit: int = 0
    headroom_bytes: int = 0
    drain_s: float = 0.0
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def virtual(self) -> tuple[Device, ...]:
        """The virtual GPUs in the order of their numbers."""
        return tuple(device for device in self.devices if device.kind is DeviceKind.VIRTUAL)
