"""Which memory types work on which kind of device, asked where the devices are."""

from collections.abc import Callable, Iterable, Mapping

from memcore import BackendUnavailableError, backend_of
from scheduler.core.model import DeviceKind, JobPlan
from scheduler.execution.fleet import Fleet
from scheduler.execution.jobs import Form, plans_by_form
from scheduler.execution.prepare import PreparedRun
from scheduler.execution.worker import current_worker
from scheduler.steps.errors import StepError
from scheduler.steps.resolve import StepSpec

Usable = Mapping[DeviceKind, tuple[str, ...]]
Plans = dict[Form, tuple[JobPlan, ...]]


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


def problems_here(specs: Iterable[StepSpec], memory_types: Iterable[str]) -> dict[str, str]:
    """Run in a worker: why installed memory types don't work on its device, by name; imports them."""
    worker = current_worker()
    for spec in specs:
        worker.step(spec)  # its module may register a memory type
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


def working_plans(
    prepared: PreparedRun, plans: Plans, usable: Usable, fleet: Fleet, *, remark: Callable[[str], None]
) -> Plans:
    """Plans whose memory types work in the GPUs' workers; `remark` is told of those that don't, and why.

    Only what the plans use is tried there, since a framework takes seconds to import.

    Raises
    ------
    StepError
        Without the memory types that don't work, no device can run the chain.
    """
    usable = dict(usable)
    checked: set[tuple[str, str]] = set()
    problems: list[str] = []
    while True:
        wanted = {
            (device.uuid, name)
            for device in fleet.devices.values()
            if device.kind is not DeviceKind.CPU
            for plan in {plan for each in plans.values() for plan in each}
            if device.kind in plan.device_kinds
            for name in plan.memory_types
            if name != "numpy"
        }
        if wanted <= checked:
            return plans
        for uuid in sorted({uuid for uuid, _ in wanted - checked}):
            device = fleet.devices[uuid]
            names = sorted(name for each, name in wanted - checked if each == uuid)
            if "tensorflow" in names and "pyclesperanto" in usable[device.kind]:
                # PoCL must be loaded before TensorFlow, and later on it may be the next best.
                names = ["pyclesperanto", *(name for name in names if name != "pyclesperanto")]
            key = f"check-{uuid}-{'-'.join(names)}"
            broken = fleet.submit(problems_here, prepared.specs, names, device=uuid, key=key).result()
            usable[device.kind] = tuple(name for name in usable[device.kind] if name not in broken)
            problems += broken.values()
        checked |= wanted
        for problem in problems:
            remark(problem)
        try:
            plans = plans_by_form(prepared, usable)
        except StepError as error:
            raise StepError(f"{error} ({'; '.join(problems)})") from error
