"""What one worker process keeps for all its attempts: its device, its pools, its steps."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from memcore.memory_type import GpuId
from pools import PoolSet, PressureWatcher
from pools.stats import LeaseInfo
from pools.virtual import VirtualDeviceMemory
from scheduler.core.model import Device, DeviceKind, DeviceSnapshot
from scheduler.execution.activity import Attempts
from scheduler.execution.array_files import ArrayFiles
from scheduler.execution.growth import Growth
from scheduler.execution.heap import FreedMemory, trim_heap
from scheduler.execution.holding import Holding, RefusedError
from scheduler.execution.idle_host import NOTHING, IdleHost, OwnIdle
from scheduler.execution.kinds import Kinds
from scheduler.execution.regularly import Regularly
from scheduler.execution.residents import Residents
from scheduler.execution.run_settings import WorkerSettings
from scheduler.execution.runs_here import states_here
from scheduler.execution.workplace import ProcessLimit, worker_probes
from scheduler.execution.yielding import Yielding
from scheduler.host.reading import Reading
from scheduler.host.requests import Requests
from scheduler.host.reservations import Denial, Grant, Reservations
from scheduler.host.virtual import VirtualProbe
from scheduler.steps.resolve import ResolvedStep, StepSpec

REPORT_S = 0.1
HOST_HEADROOM = 512 << 20
# How far a process may grow beyond its pools before it is replaced: this, or a share of the host's memory.
GROWTH_BYTES = 256 << 20
GROWTH_SHARE = 0.125
# `stackyard devices` shows leases that last so long: each change costs a turn at the table of all runs.
SHOWN_LEASE_S = 0.5
NOTICEABLE_BYTES = 1 << 20  # resident memory is never quite still: less isn't reported anew


class WorkerState:
    """One worker process of a run, bound to one device.

    Parameters
    ----------
    host
        The device that stands for this host's memory.
    on_tick
        Called with `time.monotonic()` each tenth of a second, in the thread that reports memory.
    on_evicted
        Told the name of a step's state that had to make room here, and why, if a person should know.
    limit
        What Dask lets this process have of the host's memory.

    Notes
    -----
    Attempts of several threads share it; steps are resolved once, under a lock. `_accounting` is held from
    looking at what the process holds until the table knows it: an older figure never follows a newer one.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        device: Device,
        host: Device,
        *,
        on_tick: Callable[[float], None] | None = None,
        on_evicted: Callable[[str, str], None] = lambda _name, _why: None,
        limit: ProcessLimit | None = None,
    ) -> None:
        self.settings = settings
        self.device = device
        self.host = host
        self.run_dir = Path(settings.run_dir)
        self.keeps_logs = self.run_dir.is_dir()
        self._limit = limit = limit or ProcessLimit()
        self.pools = PoolSet(host_limit=limit.of(host.total_bytes), device_limits=self._device_limits())
        # More attempts may be admitted than compute at once: the others read or write meanwhile.
        self.attempts = Attempts(max(1, device.slots))
        self.array_files = ArrayFiles()
        self.kinds = Kinds()
        self.residents = Residents(
            self._hold_resident,
            on_gpu=self.on_gpu,
            device_in_host=device.kind is DeviceKind.VIRTUAL,
            refused=RefusedError,
            measured=self._kept_on_device,
            measured_on_host=self._kept_on_host,
            reclaim=lambda nbytes: self.pools.reclaim(0 if self.on_gpu else "cpu", nbytes),
            on_evicted=lambda name: on_evicted(name, ""),
        )
        self.idle_host = IdleHost(self.pools, self.residents, self.array_files)
        self._reservations = Reservations(run=settings.run)
        self._probes = worker_probes(settings, device, host)
        self._steps: dict[StepSpec, ResolvedStep] = {}
        self._lock = threading.Lock()
        self._accounting = threading.Lock()
        self._reported: dict[str, tuple[int, int]] = {}
        self._growth = Growth(max(GROWTH_BYTES, int(GROWTH_SHARE * host.total_bytes)))
        self._freed = FreedMemory()
        self._shown: list[tuple[str | None, str | None, int]] | None = []
        self._process = psutil.Process()
        self.held_on_host = (0, 0)
        tasks = {"report its memory": self._report}
        self.yielding = Yielding(
            device,
            self.residents,
            Requests(self._reservations),
            read=self.read,
            accounting=self._accounting,
            on_evicted=on_evicted,
        )
        if self.on_gpu:
            tasks["give other runs what it doesn't use"] = lambda: self.yielding.look(time.monotonic())
        if on_tick is not None:
            tasks["tell the driver that it lives"] = lambda: on_tick(time.monotonic())
        # Without this thread the process would seem to be dead.
        self._reporter = Regularly(REPORT_S, tasks, name="stackyard-memory")
        free = {0: self._free_on_device, **limit.readers()}
        self._watcher = PressureWatcher(self.pools, self._headroom(), free, reclaim=self._give_back)

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
        rooms: dict[GpuId, int] = {"cpu": self._limit.headroom(HOST_HEADROOM)}
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
            found = self._steps.get(spec)  # its hash is looked up once: it goes through all keywords
            if found is None:
                found = self._steps[spec] = spec.resolve()
            return found

    @contextlib.contextmanager
    def reserved(
        self, job_id: str, *, device_bytes: int, host_bytes: int, own: OwnIdle = NOTHING
    ) -> Iterator[Holding]:
        """Hold the bytes of an attempt while the block runs; `own` is what it may find here already.

        Raises
        ------
        RefusedError
            They aren't there; nothing was reserved.
        """
        needs = {self.host.uuid: host_bytes}
        if self.on_gpu:
            needs[self.device.uuid] = device_bytes
        answer = self._reserve_or_evict(job_id, needs, own.state)
        on_host, on_device = Grant(answer.ids[:1], {}), Grant(answer.ids[1:], {})
        with contextlib.ExitStack() as device, contextlib.ExitStack() as host:
            host.callback(self.report_memory)
            host.callback(self._reservations.release, on_host)
            if self.on_gpu:
                device.callback(self.report_memory)
                device.callback(self._reservations.release, on_device)
            for uuid, nbytes in answer.trim.items():
                self._give_back("cpu" if uuid == self.host.uuid else 0, nbytes, but=own)
            device.enter_context(self.charged(device_bytes, job_id))
            yield Holding(device.close)

    def _reserve(self, what: str, needs: Mapping[str, int]) -> Grant:
        with self._accounting:
            news = self._news()
            answer = self._reservations.reserve(
                what,
                needs,
                read=self.read,
                headroom={self.device.uuid: self.device.headroom_bytes},
                held=news,
            )
            self._reported |= news
        if isinstance(answer, Denial):
            raise RefusedError(answer)
        return answer

    def _reserve_or_evict(self, what: str, needs: Mapping[str, int], own_state: str) -> Grant:
        """Idle state goes before an attempt is turned away, but for its own, which it would need at once."""
        trimmed = False
        while True:
            try:
                return self._reserve(what, needs)
            except RefusedError:
                if trimmed and self.residents.make_room(but=own_state) is None:
                    raise
                trim_heap()
                trimmed = True

    def _kept_on_device(self) -> int | None:
        """Bytes that can't be given back; None while another attempt's may be among them."""
        if not self.on_gpu or self.attempts.count > 1:
            return None
        held, reclaimable = self.held()[self.device.uuid]
        return held - reclaimable

    def _kept_on_host(self) -> int | None:
        """The same for host memory, where libraries and contexts of a GPU take some for good too."""
        if self.on_gpu or self.attempts.count > 1:
            return None
        resident, idle = self.held()[self.host.uuid]
        return resident - idle

    @contextlib.contextmanager
    def _hold_resident(self, name: str, nbytes: int) -> Iterator[None]:
        """Hold what a step's `setup` keeps on this worker's device."""
        grant = self._reserve_or_evict(name, {self.device.uuid: nbytes}, name)
        try:
            for each in grant.trim.values():
                self.pools.reclaim(0 if self.on_gpu else "cpu", each)
            with self.charged(nbytes, name):
                yield
        finally:
            self._reservations.release(grant)
            self.report_memory()

    @contextlib.contextmanager
    def charged(self, nbytes: int, what: str) -> Iterator[None]:
        """On a virtual device `nbytes` are charged, as a real allocation takes them; else nothing happens.

        Raises
        ------
        OutOfDeviceMemoryError
            The virtual device is full.
        """
        if self.device.kind is not DeviceKind.VIRTUAL:
            yield
            return
        memory, uuid = self.virtual_memory(), self.device.uuid
        with contextlib.ExitStack() as charge:
            with self._accounting:
                # At once: noted before it is taken it would hide a stranger's bytes, and after it be some.
                held = memory.used_by(os.getpid()) + nbytes
                with self._reservations.measuring(uuid, held, 0):
                    charge.enter_context(memory.charge(nbytes, what))
                self._reported.pop(uuid, None)
            yield

    def virtual_memory(self) -> VirtualDeviceMemory:
        """The account of this worker's virtual device."""
        probe = self._probes[self.device.uuid]
        assert isinstance(probe, VirtualProbe)
        return probe.memory(self.device.uuid)

    def reclaim(self, nbytes: int) -> None:
        """Give back idle bytes of this worker's device, and tell the reservation table."""
        self._give_back(0 if self.on_gpu else "cpu", nbytes)
        self.report_memory()

    def _give_back(self, gpu_id: GpuId, nbytes: int, *, but: OwnIdle = NOTHING) -> int:
        if gpu_id == "cpu":
            return self.idle_host.reclaim(nbytes, but=but)
        return self.pools.reclaim(gpu_id, nbytes)

    def report_memory(self) -> None:
        """Tell the reservation table what this process holds now, if that is news."""
        with self._accounting:
            for uuid, figures in self._news().items():
                self._reservations.measure(uuid, *figures)
                self._reported[uuid] = figures

    def _news(self) -> dict[str, tuple[int, int]]:
        """What this process holds now where the reservation table doesn't know it; as `held`."""
        news = {}
        for uuid, figures in self.held().items():
            told = self._reported.get(uuid)
            still = NOTICEABLE_BYTES if uuid == self.host.uuid else 1
            if told is None or any(abs(a - b) >= still for a, b in zip(figures, told, strict=True)):
                news[uuid] = figures
        return news

    def _report(self) -> None:
        """What attempts allocate must not look like a stranger's for long, nor what has gone like ours.

        The second goes for an idle process too: a failed attempt's arrays live as long as its traceback, and
        nothing would be admitted beside the last figure of a worker that waits for work.
        """
        self.report_memory()
        resident, idle = self.held_on_host
        self._freed.look(time.monotonic(), busy=self.attempts.count > 0, unmanaged_bytes=resident - idle)
        leases = _lasting_leases([self, *self._others()])
        held = [(lease.job, lease.step, lease.nbytes) for lease in leases]
        if held != self._shown:
            self._reservations.note_leases(leases)
            self._shown = held

    def _others(self) -> "list[WorkerState]":
        """What other runs have here: the table knows one figure for each process."""
        return [state for state in states_here() if state is not self]

    def held(self) -> dict[str, tuple[int, int]]:
        """(held, reclaimable) bytes of this process, by device."""
        resident = self._process.memory_info().rss
        idle = sum(state.idle_host.nbytes for state in (self, *self._others()))
        self.held_on_host = resident, min(resident, idle)
        found = {self.host.uuid: self.held_on_host}
        if self.device.kind is DeviceKind.CUDA:
            memory = self.pools.memory(0)
            held = sum(framework.held for framework in memory.frameworks.values())
            found[self.device.uuid] = (held, min(held, memory.reclaimable))
        elif self.device.kind is DeviceKind.VIRTUAL:
            charged = self.virtual_memory().used_by(os.getpid())
            found[self.device.uuid] = (charged, 0)
        return found

    def reached_on_device(self) -> int:
        """Bytes that attempts hold on the device here, while a failed one's arrays are still there.

        Without what steps keep there between jobs, which has a reservation of its own.
        """
        held, _ = self.held()[self.device.uuid]
        return max(0, held - self.residents.nbytes)

    def read(self, uuid: str) -> Reading:
        """A device's memory now, as this process's probes see it."""
        return self._probes[uuid].read(uuid)

    def snapshots(self) -> list[DeviceSnapshot]:
        """The device and its host, with what every process of ours here has reserved and holds."""
        with self._accounting:
            readings = [self.read(uuid) for uuid in self._probes]
        return self._reservations.snapshots(readings)

    def reason_to_retire(self) -> str:
        """Why this process should be replaced before it is given more; "" if it needn't be.

        Asked after an attempt. While any other is in the process, of another run too, there is no telling.
        """
        if any(state.attempts.count for state in (self, *self._others())):
            return ""
        # As it was told at the end of the attempt, a moment ago: asking costs as much as a small step.
        resident, idle = self.held_on_host
        return self._growth.look(resident - idle, trimmed=self._trimmed_host)

    def _trimmed_host(self) -> int:
        trim_heap()
        resident, idle = self.held()[self.host.uuid]
        return resident - idle

    def close(self) -> None:
        """Tear the steps down and give the pools back."""
        self._watcher.stop()
        self._reporter.close()
        self.yielding.close()
        self.residents.close()
        for step in self._steps.values():
            step.close()
        self.pools.close()
        self.yielding.withdraw()
        self._reservations.note_leases(_lasting_leases(self._others()))
        for state in self._others():
            state._shown = None  # what they have shown is gone
        if not self._others():
            self._reservations.withdraw()
        self._reservations.close()


def _lasting_leases(states: Iterable[WorkerState]) -> list[LeaseInfo]:
    leases = [lease for state in states for lease in state.pools.leases()]
    return [lease for lease in leases if lease.age_s >= SHOWN_LEASE_S]
