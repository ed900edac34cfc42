"""Which memory types work on which kind of device, asked where the devices are, and the plans that follow."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from distributed import Worker

from memcore import BackendUnavailableError, MemoryType, backend_of
from scheduler.core.model import DeviceKind, JobPlan
from scheduler.execution.fleet import Fleet
from scheduler.execution.jobs import Chain, Forms
from scheduler.execution.plans import named_job_plans, step_types
from scheduler.execution.runs_here import state_of
from scheduler.execution.worker_process import WorkerProcess
from scheduler.steps.errors import StepError
from scheduler.steps.resolve import StepSpec

# A nanny's process takes this long to be back, at most, on a busy machine.
RETURN_S = 20.0
# Loading a library from a slow disk takes minutes; a driver that hangs takes for ever.
ANSWER_S = 300.0
TURN_S = 0.1

Usable = Mapping[DeviceKind, tuple[str, ...]]


def fitting(memory_types: Iterable[str], kind: DeviceKind) -> tuple[str, ...]:
    """The memory types that may work on a device of that kind; imports none of them.

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
        if fits:
            found.append(name)
    return tuple(found)


def installed(memory_types: Iterable[str], kind: DeviceKind) -> tuple[str, ...]:
    """Those of them whose library is installed here."""
    return tuple(name for name in fitting(memory_types, kind) if backend_of(name).installed())


def problems_here(
    topic: str, specs: Iterable[StepSpec], memory_types: Iterable[str], dask_worker: Worker
) -> dict[str, str]:
    """Run in a worker: why installed memory types don't work on its device, by name; imports them."""
    worker = state_of(dask_worker.id, topic)
    if worker is None:
        return {}
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


class Planner:
    """Plans for chains and the forms of their stacks, of memory types that work in the workers there.

    What a plan uses on GPUs is tried in their workers, once and only then, since a framework takes seconds to
    import. `remark` is told of what doesn't work, and why, and `hint` of what is being tried, for as long as
    that goes on. Workers of the kinds `expected` may come later: there are plans for them too.

    Notes
    -----
    Thread-safe. What was planned for a chain and forms stays: jobs of one kind have equal plans. Workers
    that come later have to have what the plans for their kind use.
    """

    def __init__(
        self,
        fleet: Fleet,
        remark: Callable[[str], None],
        hint: Callable[[str], None] = lambda _: None,
        *,
        expected: Iterable[DeviceKind] = (),
    ) -> None:
        self._fleet = fleet
        self._hint = hint
        self._expected = tuple(expected)
        self._remark = remark
        # Kinds of device that have ever been there: one may just be away, as its process is replaced.
        self._installed: dict[DeviceKind, frozenset[str]] = {}
        self._broken: dict[DeviceKind, dict[str, str]] = {}
        self._checked: set[tuple[str, str]] = set()
        self._plans: dict[tuple[str, Forms, bool], tuple[JobPlan, ...]] = {}
        self._needed: dict[DeviceKind, frozenset[str]] = {}
        self._lock = threading.Lock()

    def plans(self, chain: Chain, forms: Forms, returned: bool = False) -> tuple[JobPlan, ...]:
        """The plans for stacks of these names and forms, best first; as `named_job_plans`.

        Raises
        ------
        StepError
            No kind of device that is there can run the chain.
        """
        with self._lock:
            key = chain.digest, forms, returned
            if key not in self._plans:
                processes = self._fleet.processes
                for process in processes:
                    kind, installed = process.hello.device.kind, frozenset(process.hello.installed)
                    self._installed[kind] = self._installed.get(kind, installed) & installed
                plans = self._plans[key] = self._working(chain, forms, returned, processes)
                for plan in plans:
                    for kind in plan.device_kinds:
                        self._needed[kind] = self.needed(kind).union(plan.memory_types)
            return self._plans[key]

    def needed(self, kind: DeviceKind) -> frozenset[str]:
        """The built-in memory types that plans for a kind of device use; never waits."""
        return self._needed.get(kind, frozenset()).intersection(MemoryType)

    def _working(
        self, chain: Chain, forms: Forms, returned: bool, processes: tuple[WorkerProcess, ...]
    ) -> tuple[JobPlan, ...]:
        while True:
            usable = self._usable(chain)
            problems = [problem for broken in self._broken.values() for problem in broken.values()]
            try:
                plans = named_job_plans(chain.steps, forms, usable, returned=returned)
            except StepError as error:
                raise StepError(f"{error} ({'; '.join(problems)})" if problems else str(error)) from error
            if not self._check(chain, plans, processes, usable):
                return plans

    def _usable(self, chain: Chain) -> Usable:
        names = step_types(step.step for step in chain.steps)
        known = frozenset[str]().union(*self._installed.values())
        found: dict[DeviceKind, tuple[str, ...]] = {}
        for kind in dict.fromkeys((*self._installed, *self._expected)):
            installed = self._installed.get(kind, known)
            # A memory type that a step's own module registers comes with that module.
            there = [name for name in names if name in installed or name not in known]
            broken = self._broken.get(kind, {})
            found[kind] = tuple(name for name in fitting(there, kind) if name not in broken)
        return found

    def _check(
        self, chain: Chain, plans: tuple[JobPlan, ...], processes: tuple[WorkerProcess, ...], usable: Usable
    ) -> bool:
        """Try what the plans use on GPUs and wasn't tried yet; True if something doesn't work."""
        found = False
        for process in processes:
            device = process.hello.device
            if device.kind is DeviceKind.CPU or not process.usable:
                continue
            names = sorted(
                name
                for name in {
                    name for plan in plans if device.kind in plan.device_kinds for name in plan.memory_types
                }
                if name != "numpy" and (process.address, name) not in self._checked
            )
            if not names:
                continue
            self._checked |= {(process.address, name) for name in names}
            if "tensorflow" in names and "pyclesperanto" in usable[device.kind]:
                # PoCL must be loaded before TensorFlow, and later on it may be the next best.
                names = ["pyclesperanto", *(name for name in names if name != "pyclesperanto")]
            self._hint(f"the worker of {device.name} tries {', '.join(names)}")
            try:
                broken = self._try(process, chain, names)
            finally:
                self._hint("")
            for name, problem in broken.items():
                found = True
                self._broken.setdefault(device.kind, {})[name] = problem
                self._remark(problem)
        return found

    def _try(self, process: WorkerProcess, chain: Chain, names: list[str]) -> dict[str, str]:
        """Why some of the memory types don't work in a process; one that died of them twice is believed."""
        what = " or ".join(names)
        for attempt in (1, 2):
            try:
                return dict(
                    self._fleet.run_on(
                        process,
                        problems_here,
                        self._fleet.topic,
                        chain.specs,
                        names,
                        timeout_s=ANSWER_S,
                    )
                )
            except TimeoutError as error:
                self._fleet.restart(process)
                problem = f"the worker of {process.hello.device.name} hung when it loaded {what}: {error}"
                return dict.fromkeys(names, problem)
            except OSError as error:
                problem = f"the worker of {process.hello.device.name} died by using {what}: {error}"
                back = self._next_of(process) if attempt == 1 else None
                if back is None:
                    break
                process = back
        # Without a second opinion it may have been ended from outside: its attempts will tell.
        return dict.fromkeys(names, problem) if attempt == 2 else {}

    def _next_of(self, process: WorkerProcess) -> WorkerProcess | None:
        """The process that takes another's place; None if none has come after a while."""
        deadline = time.monotonic() + RETURN_S
        while time.monotonic() < deadline and self._fleet.connected:
            for other in self._fleet.processes_of(process.hello.device.uuid):
                if other is not process:
                    return other
            time.sleep(TURN_S)
        return None
