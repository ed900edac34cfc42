"""Turns Dask worker processes into a run's workers, and lets them and the scheduler tell the driver."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from distributed import Scheduler, SchedulerPlugin, Status, Worker, WorkerPlugin

from scheduler.core.events import Cancelled, WorkerDied
from scheduler.core.model import Device, DeviceKind, DeviceSnapshot
from scheduler.execution.activity import BEHIND
from scheduler.execution.capture import redirect_worker_output, restore_output, route_attempts_output
from scheduler.execution.departure import drain_on_signals, ignore_signals
from scheduler.execution.environment import DEVICE_VARIABLE, LEAVE_VARIABLE
from scheduler.execution.heap import keep_freed_memory
from scheduler.execution.messages import Ended, Evicted, Hello, Leaving, Left, Pulse, Readings, packed, tell
from scheduler.execution.metrics import withdraw
from scheduler.execution.run_settings import WorkerSettings
from scheduler.execution.runs_here import set_worker, state_of, states_here, unset_worker
from scheduler.execution.task import AttemptKey, AttemptReport
from scheduler.execution.worker import WorkerState
from scheduler.execution.workplace import (
    check_versions,
    find_workplace,
    installed_here,
    named_for_cluster,
    process_limit,
)

WORKER_PIDS = "worker-pids"
PULSE_S = 0.5
IDLE_PULSE_S = 2.0
READING_S = 0.25


def read_worker_pids(run_dir: Path) -> list[int]:
    """Every process of this host that has ever worked for a run, those that died included."""
    path = run_dir / WORKER_PIDS
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


class StackyardWorker(WorkerPlugin):  # type: ignore[misc]  # distributed's types are not followed
    """Makes a Dask worker one of a run's; Dask sets it up in every worker, late and restarted ones too."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        # Runs in folders of one name, with one cluster, are two runs.
        self.name = f"{settings.topic}-worker"

    def setup(self, worker: Worker) -> None:
        """Bind the process to its device, and say hello."""
        settings = self.settings
        if worker.nanny is not None:  # else it may be the process of a user's own program
            keep_freed_memory(worker.memory_manager.memory_limit or 0)
        if settings.devices:
            hello, state = self._ours(worker)
        else:
            hello, state = self._foreign(worker)
            drain_on_signals(worker, settings.topic, partial(self._drain, worker, state))
        set_worker(worker.id, state)
        state.report_memory()
        tell(worker, settings.topic, hello)

    def _ours(self, worker: Worker) -> tuple[Hello, WorkerState]:
        """A process that the driver started: its environment names its device."""
        settings = self.settings
        uuid = os.environ[DEVICE_VARIABLE]
        device = next(device for device in settings.devices if device.uuid == uuid)
        host = next(device for device in settings.devices if device.kind is DeviceKind.CPU)
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches every process of the terminal; the driver alone decides what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        redirect_worker_output(Path(settings.run_dir, "logs", f"worker-{worker.name}.log"))
        with Path(settings.run_dir, WORKER_PIDS).open("a") as file:
            file.write(f"{os.getpid()}\n")
        # A CPU worker process computes one attempt at a time; the device has as many processes as slots.
        own = replace(device, slots=1) if device.kind is DeviceKind.CPU else device
        reporter = _Reporter(worker, settings, device.uuid, ())
        state = WorkerState(settings, own, host, on_tick=reporter.look, on_evicted=reporter.evicted)
        return self._hello(worker, own, host, (), 1), state

    def _foreign(self, worker: Worker) -> tuple[Hello, WorkerState]:
        """A process of a cluster that we didn't start: it looks around."""
        settings = self.settings
        threads = worker.state.nthreads
        told = worker.memory_manager.memory_limit or 0
        limit = process_limit(told)
        found = find_workplace(
            host_share=settings.host_share,
            memory_limits=(settings.host_limit, 0 if limit.attempts_bytes else told),
            headroom_bytes=settings.headroom_bytes,
            threads=threads,
        )
        problems = [*found.problems, *check_versions(dict(settings.versions))]
        route_attempts_output()
        device, host = named_for_cluster(found.device), named_for_cluster(found.host)
        reporter = _Reporter(worker, settings, device.uuid, (found.device, found.host))
        state = WorkerState(
            settings,
            found.device,
            found.host,
            on_tick=reporter.look,
            on_evicted=reporter.evicted,
            limit=limit,
        )
        if not state.keeps_logs:
            problems.append(
                f"it doesn't see the run folder {settings.run_dir}: its attempts' output isn't kept"
            )
        slots = device.slots if device.kind is DeviceKind.CPU else 1
        hello = self._hello(worker, device, host, tuple(problems), slots)
        return replace(hello, process_bytes=limit.attempts_bytes), state

    @staticmethod
    def _hello(worker: Worker, device: Device, host: Device, problems: tuple[str, ...], slots: int) -> Hello:
        return Hello(
            address=worker.address,
            worker_id=worker.id,
            name=str(worker.name),
            pid=os.getpid(),
            device=device,
            host=host,
            slots=slots,
            has_nanny=worker.nanny is not None,
            installed=installed_here(),
            problems=problems,
        )

    async def teardown(self, worker: Worker) -> None:
        """Give back what the process holds, once its attempts have ended or their time is over."""
        topic = self.settings.topic
        state = state_of(worker.id, topic)
        if state is None:
            return
        ignore_signals(worker, topic)
        if worker.status is Status.running:
            # The run is over, and the worker goes on: an attempt that is still here ends when it can.
            state.attempts.cancel_all()
            threading.Thread(
                target=_close_when_idle, args=(worker.id, state), name="stackyard-close", daemon=True
            ).start()
            return
        await self._drain(worker, state, "it is being closed", False)
        await asyncio.to_thread(_close, worker.id, state)

    async def _drain(self, worker: Worker, state: WorkerState, reason: str, outgrown: bool) -> None:
        """Say that the process is about to go, and let it end what it has begun."""
        begun = state.attempts.leave(reason)
        tell(worker, self.settings.topic, Leaving(worker.address, reason, begun, outgrown=outgrown))
        await asyncio.to_thread(state.attempts.wait_for_none, self.settings.drain_s)


def _close_when_idle(worker_id: str, state: WorkerState) -> None:
    state.attempts.wait_for_none(None)
    _close(worker_id, state)


def _close(worker_id: str, state: WorkerState) -> None:
    unset_worker(worker_id, state.settings.topic)
    state.close()
    if not states_here():
        restore_output()


class _Reporter:
    """Tells the driver now and then that a worker is alive, what it works at, and what its memory is like.

    `device` is the worker's as the driver calls it. `local` are the devices to read for the driver, which
    can't read them itself; under their local names.
    """

    def __init__(
        self, worker: Worker, settings: WorkerSettings, device: str, local: tuple[Device, ...]
    ) -> None:
        self._device = device
        self._worker = worker
        self._settings = settings
        self._names = {device.uuid: named_for_cluster(device).uuid for device in local}
        self._leave_at = float(os.environ.get(LEAVE_VARIABLE, "inf"))
        self._pulse_at = self._read_at = self._told_at = float("-inf")
        self._told: list[DeviceSnapshot] = []
        self._left = False

    def look(self, now: float) -> None:
        """Tell what is due."""
        state = state_of(self._worker.id, self._settings.topic)
        if state is None:
            return
        if now - self._pulse_at >= PULSE_S:
            attempts = state.attempts.pulse(older_than_s=PULSE_S)
            if attempts or now - self._pulse_at >= IDLE_PULSE_S:
                self._pulse_at = now
                tell(self._worker, self._settings.topic, Pulse(self._worker.address, attempts))
        if self._names and now - self._read_at >= READING_S:
            self._read_at = now
            self._tell_readings(state, now)
        if not self._left and time.time() >= self._leave_at:
            self._left = True
            reason = "its time on the cluster is nearly over"
            begun = state.attempts.leave(reason)
            leaving = Leaving(self._worker.address, reason, begun, let_go=True)
            tell(self._worker, self._settings.topic, leaving)

    def evicted(self, name: str, why: str) -> None:
        """Tell that a step's state had to make room."""
        tell(self._worker, self._settings.topic, Evicted(self._device, name, why))

    def _tell_readings(self, state: WorkerState, now: float) -> None:
        snapshots = [replace(each, uuid=self._names[each.uuid]) for each in state.snapshots()]
        if snapshots != self._told or now - self._told_at >= IDLE_PULSE_S:
            self._told, self._told_at = snapshots, now
            tell(self._worker, self._settings.topic, Readings(tuple(snapshots)))


class StackyardScheduler(SchedulerPlugin):  # type: ignore[misc]  # distributed's types are not followed
    """Tells the driver which workers have left: what was pinned to them would wait for good.

    Parameters
    ----------
    client
        The driver's, by its id: without it the plugins of its run go too.
    worker_plugin
        The name of the run's plugin in the workers and nannies.
    """

    idempotent: ClassVar[bool] = True

    def __init__(self, topic: str, client: str, worker_plugin: str) -> None:
        self.topic = topic
        self.name = topic
        self.client = client
        self.worker_plugin = worker_plugin
        self._tidying: asyncio.Task[Any] | None = None
        self._ids: dict[str, str] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Called by Dask when the plugin comes to the scheduler."""
        for address in scheduler.workers:
            self.add_worker(scheduler, address)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Called by Dask once a worker has joined."""
        self._ids[worker] = scheduler.workers[worker].server_id

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Called by Dask once a worker is removed."""
        removals = [told for _, told in scheduler.get_events(worker) if _is_removal(told)]
        expected = bool(removals and removals[-1].get("expected"))
        scheduler.log_event(self.topic, packed(Left(worker, self._ids.pop(worker, ""), expected)))

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Called by Dask once a client is removed: by its own wish, or since its connection is lost."""
        if client == self.client:
            withdraw(client)
            scheduler.remove_plugin(self.name)
            self._tidying = asyncio.get_running_loop().create_task(self._tidy(scheduler))

    async def _tidy(self, scheduler: Scheduler) -> None:
        # A worker that goes just now, as all do on a cluster that ends with its client, needs no telling; and
        # the driver may have come so far by itself.
        if self.worker_plugin in scheduler.worker_plugins:
            with contextlib.suppress(OSError):
                await scheduler.unregister_worker_plugin(None, self.worker_plugin)
        if self.worker_plugin in scheduler.nanny_plugins:
            with contextlib.suppress(OSError):
                await scheduler.unregister_nanny_plugin(None, self.worker_plugin)


def _is_removal(told: object) -> bool:
    return isinstance(told, dict) and told.get("action") == "remove-worker"


# What is sent to a worker without waiting for it must be a coroutine: Dask refuses anything else there, where
# nobody hears of it. What takes its time goes into a thread: the worker's loop answers for its life.


async def reclaim_here(nbytes: int, topic: str, dask_worker: Worker) -> None:
    """Give back idle memory of a worker's device."""
    state = state_of(dask_worker.id, topic)
    if state is not None:
        await asyncio.to_thread(state.reclaim, nbytes)


async def request_here(nbytes: int, topic: str, dask_worker: Worker) -> None:
    """Ask other runs for what they don't use on a worker's device."""
    state = state_of(dask_worker.id, topic)
    if state is not None:
        await asyncio.to_thread(state.yielding.request, nbytes)


async def hurry_here(topic: str, dask_worker: Worker) -> None:
    """Have a worker that is about to be ended wait for none of its attempts."""
    state = state_of(dask_worker.id, topic)
    if state is not None:
        state.attempts.abandon("it is being restarted")


async def evict_here(device: str, name: str, topic: str, dask_worker: Worker) -> None:
    """Tear down what a step's `setup` keeps in a worker, if no attempt uses it, and tell the driver."""
    state = state_of(dask_worker.id, topic)
    if state is not None and await asyncio.to_thread(_evict, state, name):
        tell(dask_worker, topic, Evicted(device, name))


def _evict(state: WorkerState, name: str) -> bool:
    gone = state.residents.evict(name)
    if gone:
        state.report_memory()
    return gone


async def give_back_here(keys: list[AttemptKey], topic: str, dask_worker: Worker) -> None:
    """Compute none of these attempts that doesn't yet, and tell which come back by that."""
    state = state_of(dask_worker.id, topic)
    if state is None:
        return
    back = [key for key in keys if state.attempts.give_back(*key)]
    await asyncio.sleep(0)  # the end of one that has just gone is told by its thread, and comes first
    for key in back:
        tell(dask_worker, topic, Ended(*key, AttemptReport(WorkerDied(BEHIND, blame=False), os.getpid())))


async def cancel_here(job_id: str, number: int, topic: str, dask_worker: Worker) -> None:
    """End an attempt: one that runs stops before its next step, one that hasn't begun never does."""
    state = state_of(dask_worker.id, topic)
    if state is not None and not state.attempts.cancel(job_id, number):
        await asyncio.sleep(0)  # as above
        report = AttemptReport(Cancelled("it was cancelled before it began"), os.getpid())
        tell(dask_worker, topic, Ended(job_id, number, report))
