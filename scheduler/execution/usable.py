"""Which memory types work on which kind of device, asked where the devices are."""

from collections.abc import Iterable

from memcore import BackendUnavailableError, backend_of
from scheduler.core.model import DeviceKind
from scheduler.execution.worker import current_worker


def installed(memory_types: Iterable[str], kind: DeviceKind) -> tuple[str, ...]:
    """The memory types that are installed here and may work on a device of that kind; imports none of them.

    A virtual GPU is host memory by another name: NumPy is what would run without it, and CuPy has nothing but
    CUDA to run on.
    """
    found = []
    for name in memory_types:
        backend = backend_of(name)
        if kind is DeviceKind.CPU:
            fits = "cpu" in backend.device_kinds
        elif kind is DeviceKind.VIRTUAL:
            fits = name not in ("numpy", "cupy")
        else:
            fits = "gpu" in backend.device_kinds
        if fits and backend.installed():
            found.append(name)
    return tuple(found)


def problems_here(memory_types: Iterable[str]) -> dict[str, str]:
    """Run in a worker: why installed memory types don't work on its device, by name; imports them."""
    worker = current_worker()
    wanted = "gpu" if worker.device.kind in (DeviceKind.CUDA, DeviceKind.OPENCL) else None
    problems = {}
    for name in memory_types:
        try:
            kinds = {device.gpu_id: device.kind for device in backend_of(name).devices()}
        except BackendUnavailableError as error:
            problems[name] = str(error)
            continue
        place = worker.gpu_id(name)
        if place not in kinds or wanted not in (None, kinds[place]):
            problems[name] = f"{name} sees no such device in the worker of {worker.device.name}"
    return problems
