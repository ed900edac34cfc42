"""What one worker process keeps for all its attempts: its device, its pools, its steps."""

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
from distributed import Worker, WorkerPlugin

from memcore.memory_type import GpuId
from pools import PoolSet, PressureWatcher
from scheduler.core.model import Device, DeviceKind
from scheduler.execution.capture import redirect_worker_output
from scheduler.execution.environment import DEVICE_VARIABLE
from scheduler.host.memory import HostProbe
from scheduler.host.nvml import NvmlProbe
from scheduler.host.reading import Probe, Reading
from scheduler.host.reservations import Denial, Reservations
from scheduler.host.timed import TimedProbe
from scheduler.host.virtual import VirtualProbe
from scheduler.steps.resolve import ResolvedStep, StepSpec

WORKER_PIDS = "worker-pids"
MEASURED_ATTEMPTS = 2
REPORT_S = 0.1
HOST_HEADROOM = 512 << 20
# Resident memory is never quite still: by less than this it isn't reported anew.
NOTICEABLE_BYTES = 1 << 20


def read_worker_pids(run_dir: Path) -> list[int]:
    """Every process that has ever worked for a run, those that died included."""
    path = run_dir / WORKER_PIDS
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker of a run is told.

    `host` is the device that stands for this host's memory. `virtual_tag` names the run's virtual devices.
    """

    run_id: str
    run_dir: str
    devices: tuple[Device, ...]
    virtual_tag: str = ""

    @property
    def host(self) -> Device:
        """The CPU workers of this host, whose memory every job needs."""
        return next(device for device in self.devices if device.kind is DeviceKind.CPU)

    @property
    def virtual(self) -> tuple[Device, ...]:
        """The virtual GPUs in the order of their numbers."""
        return tuple(device for device in self.devices if device.kind is DeviceKind.VIRTUAL)


class RefusedError(Exception):
    """The reservation found less memory than the dispatcher had believed."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.reason)
        self.denial = denial


class WorkerState:
    """One worker process of a run, bound to one device.

    Notes
    -----
    Attempts of several threads share it; steps are resolved once, under a lock. `_accounting` is held from
    looking at what the process holds until the table knows it: an older figure never follows a newer one.
    """

    def __init__(self, settings: WorkerSettings, device: Device) -> None:
        self.settings = settings
        self.device = device
        self.run_dir = Path(settings.run_dir)
        self.pools = PoolSet(
            host_limit=settings.host.total_bytes,
            device_limits=self._device_limits(),
        )
        # More attempts may be admitted than compute at once: the others read or write meanwhile.
        self.compute = threading.BoundedSemaphore(max(1, device.slots if self.on_gpu else 1))
        self._reservations = Reservations(run=settings.run_id)
        self._probes = _worker_probes(settings, device)
        self._steps: dict[StepSpec, ResolvedStep] = {}
        self._lock = threading.Lock()
        self._accounting = threading.Lock()
        self._reported: dict[str, tuple[int, int]] = {}
        self._attempts = 0
        self._overlaps = 0
        self._measured: Counter[str] = Counter()
        self._closing = threading.Event()
        self._reporter = threading.Thread(target=self._keep_reporting, name="stackyard-memory", daemon=True)
        self._reporter.start()
        self._watcher = PressureWatcher(self.pools, self._headroom(), {0: self._free_on_device})

    @property
    def on_gpu(self) -> bool:
        """False in a CPU worker."""
        return self.device.kind is not DeviceKind.CPU

    def _device_limits(self) -> dict[int, int]:
        """Bytes by the numbers that this worker's device goes by: 0, and for a virtual one its place."""
        if not self.on_gpu:
            return {}
        virtual = self.device.kind is DeviceKind.VIRTUAL
        stand_in = self.settings.virtual.index(self.device) if virtual else 0
        return {0: self.device.total_bytes, stand_in: self.device.total_bytes}

    def _headroom(self) -> dict[GpuId, int]:
        """Bytes that idle arrays of ours make room for when somebody else takes them."""
        rooms: dict[GpuId, int] = {"cpu": HOST_HEADROOM}
        if self.device.kind is DeviceKind.CUDA:
            rooms[0] = self.device.headroom_bytes
        return rooms

    def _free_on_device(self) -> int | None:
        with self._accounting:  # a probe serves one thread at a time
            reading = self.read(self.device.uuid)
        return None if reading.used_bytes is None else reading.total_bytes - reading.used_bytes

    def gpu_id(self, memory_type: str) -> GpuId:
        """Where this worker's arrays of a memory type live.

        A CUDA worker sees its own device only, as 0. For virtual GPU i torch arrays live in host memory,
        those of libraries with several logical devices on number i.
        """
        match self.device.kind:
            case DeviceKind.CPU:
                return "cpu"
            case DeviceKind.VIRTUAL if memory_type in ("numpy", "torch"):
                return "cpu"
            case DeviceKind.VIRTUAL:
                return self.settings.virtual.index(self.device)
            case _:
                return 0

    def step(self, spec: StepSpec) -> ResolvedStep:
        """The step behind a description, resolved once for each process."""
        with self._lock:
            if spec not in self._steps:
                self._steps[spec] = spec.resolve()
            return self._steps[spec]

    @contextlib.contextmanager
    def reserved(self, job_id: str, *, device_bytes: int, host_bytes: int) -> Iterator[None]:
        """Hold the bytes of an attempt while the block runs.

        Raises
        ------
        RefusedError
            They aren't there; nothing was reserved.
        """
        needs = {self.settings.host.uuid: host_bytes}
        if self.on_gpu:
            needs[self.device.uuid] = device_bytes
        with self._accounting:
            self._reported = self.held()
            answer = self._reservations.reserve(
                job_id,
                needs,
                read=self.read,
                headroom={self.device.uuid: self.device.headroom_bytes},
                held=self._reported,
            )
        if isinstance(answer, Denial):
            raise RefusedError(answer)
        try:
            for uuid, nbytes in answer.trim.items():
                self.pools.reclaim("cpu" if uuid == self.settings.host.uuid else 0, nbytes)
            with self._charged(device_bytes, job_id):
                yield
        finally:
            self._reservations.release(answer)
            self.report_memory()

    def report_memory(self) -> None:
        """Tell the reservation table what this process holds now, if that is news."""
        with self._accounting:
            for uuid, (held, reclaimable) in self.held().items():
                told = self._reported.get(uuid)
                still = NOTICEABLE_BYTES if uuid == self.settings.host.uuid else 1
                if told is None or abs(held - told[0]) >= still or abs(reclaimable - told[1]) >= still:
                    self._reservations.measure(uuid, held, reclaimable)
                    self._reported[uuid] = held, reclaimable

    def _keep_reporting(self) -> None:
        """What attempts allocate must not look like a stranger's for long, nor what has gone like ours.

        The second goes for an idle process too: a failed attempt's arrays live as long as its traceback, and
        nothing would be admitted beside the last figure of a worker that waits for work.
        """
        shown: list[tuple[str | None, str | None, int]] = []
        while not self._closing.wait(REPORT_S):
            self.report_memory()
            leases = self.pools.leases()
            held = [(lease.job, lease.step, lease.nbytes) for lease in leases]
            if held != shown:
                self._reservations.note_leases(leases)
                shown = held

    def held(self) -> dict[str, tuple[int, int]]:
        """(held, reclaimable) bytes of this process, by device."""
        resident = psutil.Process().memory_info().rss
        found = {self.settings.host.uuid: (resident, min(resident, self.pools.memory("cpu").idle))}
        if self.device.kind is DeviceKind.CUDA:
            memory = self.pools.memory(0)
            held = sum(framework.held for framework in memory.frameworks.values())
            found[self.device.uuid] = (held, min(held, memory.reclaimable))
        elif self.device.kind is DeviceKind.VIRTUAL:
            charged = self._virtual_memory().used_by(os.getpid())
            found[self.device.uuid] = (charged, 0)
        return found

    def reached_on_device(self) -> int:
        """Bytes that this process holds on its device, while a failed attempt's arrays are still there."""
        held, _ = self.held()[self.device.uuid]
        return held

    def read(self, uuid: str) -> Reading:
        """A device's memory now, as this process's probes see it."""
        return self._probes[uuid].read(uuid)

    @contextlib.contextmanager
    def attempt(self) -> Iterator["Company"]:
        """Counts the attempts of this process, to tell which were alone from begin to end."""
        with self._lock:
            self._attempts += 1
            if self._attempts > 1:
                self._overlaps += 1
            company = Company(self, alone_at_start=self._attempts == 1, overlaps=self._overlaps)
        try:
            yield company
        finally:
            with self._lock:
                self._attempts -= 1

    def measures(self, kind: str) -> bool:
        """True for the first attempts of a kind: measuring costs fresh memory, and soon tells no news."""
        with self._lock:
            self._measured[kind] += 1
            return self._measured[kind] <= MEASURED_ATTEMPTS

    @property
    def overlaps(self) -> int:
        """How often an attempt has begun beside another one."""
        return self._overlaps

    def close(self) -> None:
        """Tear the steps down and give the pools back."""
        self._watcher.stop()
        self._closing.set()
        self._reporter.join()
        for step in self._steps.values():
            step.close()
        self.pools.close()
        self._reservations.note_leases(())
        self._reservations.close()

    @contextlib.contextmanager
    def _charged(self, nbytes: int, job_id: str) -> Iterator[None]:
        """On a virtual device the reserved bytes are charged, as a real allocation would take them."""
        if self.device.kind is not DeviceKind.VIRTUAL:
            yield
            return
        memory, uuid = self._virtual_memory(), self.device.uuid
        with contextlib.ExitStack() as charge:
            with self._accounting:
                # Noted before it is taken: else a probe in between would see a stranger's bytes.
                self._reservations.measure(uuid, memory.used_by(os.getpid()) + nbytes, 0)
                self._reported.pop(uuid, None)
                charge.enter_context(memory.charge(nbytes, job_id))
            yield

    def _virtual_memory(self) -> Any:
        probe = self._probes[self.device.uuid]
        assert isinstance(probe, VirtualProbe)
        return probe.memory(self.device.uuid)


@dataclass(frozen=True, slots=True)
class Company:
    """Whether an attempt has had its process to itself so far."""

    state: WorkerState
    alone_at_start: bool
    overlaps: int

    @property
    def alone(self) -> bool:
        """True while no other attempt has run beside this one."""
        return self.alone_at_start and self.state.overlaps == self.overlaps


def _worker_probes(settings: WorkerSettings, device: Device) -> Mapping[str, Probe]:
    host = settings.host
    probes: dict[str, Probe] = {host.uuid: HostProbe((host.total_bytes,), slots=host.slots)}
    if device.kind is DeviceKind.CUDA:
        probes[device.uuid] = TimedProbe(NvmlProbe(), 1.0)
    elif device.kind is DeviceKind.VIRTUAL:
        capacities = [each.total_bytes for each in settings.virtual]
        probes[device.uuid] = VirtualProbe(capacities, settings.virtual_tag)
    return probes


_current: WorkerState | None = None


def current_worker() -> WorkerState:
    """The state of the worker process that this code runs in."""
    if _current is None:
        raise RuntimeError("this process is no Stackyard worker: the run's worker plugin hasn't set it up")
    return _current


def reclaim_here(nbytes: int) -> int:
    """Give back idle memory of this worker's device; returns the bytes that came back."""
    state = current_worker()
    freed = state.pools.reclaim(0 if state.on_gpu else "cpu", nbytes)
    state.report_memory()
    return freed


class StackyardWorker(WorkerPlugin):  # type: ignore[misc]  # distributed's types are not followed
    """Turns a Dask worker process into a worker of a run; Dask sets it up again after each restart."""

    name: ClassVar[str] = "stackyard"

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings

    def setup(self, worker: Worker) -> None:
        """Bind the process to its device and send its output to the run folder."""
        global _current
        uuid = os.environ[DEVICE_VARIABLE]
        device = next(device for device in self.settings.devices if device.uuid == uuid)
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches every process of the terminal; the driver alone decides what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        redirect_worker_output(Path(self.settings.run_dir, "logs", f"worker-{worker.name}.log"))
        with Path(self.settings.run_dir, WORKER_PIDS).open("a") as file:
            file.write(f"{os.getpid()}\n")
        _current = WorkerState(self.settings, device)
        _current.report_memory()

    def teardown(self, worker: Any) -> None:  # noqa: ARG002
        """Give back what the process holds."""
        global _current
        if _current is not None:
            _current.close()
            _current = None
