"""The worker processes of a run: who is there, what is in flight in each, and how work reaches them."""

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import dask
from distributed import Client, Future, Scheduler
from distributed.protocol.pickle import dumps

from scheduler.core.events import Outcome, Refused, WorkerDied
from scheduler.core.model import Device, DeviceKind, gib
from scheduler.execution.batch import Batch, run_batch
from scheduler.execution.messages import Hello
from scheduler.execution.task import AttemptKey, AttemptTask, named_stacks
from scheduler.execution.worker_plugin import (
    cancel_here,
    evict_here,
    give_back_here,
    hurry_here,
    reclaim_here,
    request_here,
)
from scheduler.execution.worker_process import WorkerProcess
from scheduler.images.stack import StackSource

LARGE_BYTES = 1 << 20
NEVER = 1 << 60
# A process that can still hear does so at once.
HURRY_S = 1.0
# So many short jobs at most wait in a CPU worker's process for each of its slots.
READY = 8


class Fleet:
    """Sends attempts to worker processes, each pinned to one by its address.

    Dask would keep a task that is pinned to a worker which has left waiting for good: whoever uses this hears
    of each departure by the scheduler's plugin, and calls `remove`.

    Notes
    -----
    Used by the driver's thread, but for `run_on` and `processes_of`, which any thread may call.
    """

    def __init__(self, client: Client, topic: str) -> None:
        self.client = client
        self.topic = topic
        self._connection = client.scheduler_comm
        self._processes: dict[str, WorkerProcess] = {}
        self._where: dict[AttemptKey, WorkerProcess] = {}
        self._to_send: set[WorkerProcess] = set()
        self._lock = threading.Lock()

    def add(self, hello: Hello) -> WorkerProcess:
        """A worker process has said hello."""
        process = WorkerProcess(hello)
        with self._lock:
            self._processes[hello.address] = process
        return process

    @property
    def connected(self) -> bool:
        """False once the connection to the Dask scheduler was lost, even if the client has made another one.

        Subscriptions and tasks are gone with the first.
        """
        return self.client.status == "running" and self.client.scheduler_comm is self._connection

    def get(self, address: str) -> WorkerProcess | None:
        """The process at an address, if it has said hello and not left."""
        return self._processes.get(address)

    def remove(self, process: WorkerProcess) -> None:
        """Forget a process that is gone; another may have its address by now, and stays."""
        with self._lock:
            if self._processes.get(process.address) is process:
                del self._processes[process.address]

    @property
    def processes(self) -> tuple[WorkerProcess, ...]:
        """Every process that is there, those that are leaving included."""
        with self._lock:
            return tuple(self._processes.values())

    def processes_of(self, device: str) -> tuple[WorkerProcess, ...]:
        """The processes of a device, by its uuid, that may be given work."""
        with self._lock:
            return tuple(
                process
                for process in self._processes.values()
                if process.hello.device.uuid == device and process.usable
            )

    def devices(self) -> dict[str, Device]:
        """The devices as they can be used now, by uuid, with the slots of all their processes.

        A device none of whose processes may be given work has no slots; a host whose CPU has no process is
        there for its memory, without slots. A CPU's processes keep short jobs ready for each slot.
        """
        found: dict[str, Device] = {}
        slots: dict[str, int] = {}
        limits: dict[str, list[int]] = {}
        for process in self.processes:
            hello = process.hello
            found.setdefault(hello.host.uuid, hello.host)
            if hello.device.kind is not DeviceKind.CPU:
                found[hello.device.uuid] = hello.device
            if process.usable:
                slots[hello.device.uuid] = slots.get(hello.device.uuid, 0) + hello.slots
                limits.setdefault(hello.device.uuid, []).append(hello.process_bytes)
        return {
            uuid: _as_used(device, slots.get(uuid, 0), limits.get(uuid, [0]))
            for uuid, device in found.items()
        }

    def give(self, task: AttemptTask, *, device: str) -> Outcome | None:
        """Give an attempt to the process of the device that has the least to do; if there is none, say why.

        `send` has to be called afterwards. What can't be pickled raises.
        """
        process = self._choose(device, task.host_bytes)
        if not isinstance(process, WorkerProcess):
            return process
        key = task.job_id, task.number
        process.outbox[key] = dumps(task) if _is_small(task) else task
        process.in_flight[key] = None
        process.host_bytes[key] = task.host_bytes
        self._where[key] = process
        self._to_send.add(process)
        return None

    def send(self) -> list[tuple[WorkerProcess, AttemptKey, Future | Exception]]:
        """Send what is due: where each attempt went, with its Dask task or the error if it can't go."""
        sent: list[tuple[WorkerProcess, AttemptKey, Future | Exception]] = []
        for process in [process for process in self._to_send if process.usable]:
            for keys in process.due():
                batch = Batch({key: process.outbox.pop(key) for key in keys})
                try:
                    future = self._submit(process, batch)
                    process.in_flight.update(dict.fromkeys(keys, future))
                except Exception as error:  # noqa: BLE001  what one job holds may be what can't be sent
                    future = error
                sent += [(process, key, future) for key in keys]
        self._to_send = {process for process in self._to_send if process.outbox}
        return sent

    @property
    def unsent(self) -> list[tuple[WorkerProcess, AttemptKey]]:
        """What was given to processes and isn't sent yet."""
        return [(process, key) for process in self._to_send for key in process.outbox]

    def take_back(self, process: WorkerProcess, keys: Iterable[AttemptKey]) -> None:
        """Ask a process for attempts that it hasn't begun; a message tells of each that comes back."""
        asked = [key for key in keys if key not in process.asked_back]
        process.asked_back.update(asked)
        if asked:
            self._tell([process], give_back_here, asked, self.topic)

    def _submit(self, process: WorkerProcess, batch: Batch) -> Future:
        with contextlib.ExitStack() as quietly:
            if any(isinstance(task, AttemptTask) for task in batch.attempts.values()):
                # An array is sent with its attempt, and again with the next one: that is meant.
                quietly.enter_context(
                    dask.config.set({"distributed.admin.large-graph-warning-threshold": NEVER})
                )
            job_id, number = next(iter(batch.attempts))
            return self.client.submit(
                run_batch,
                batch,
                self.topic,
                key=f"{self.topic}-{job_id}-{number}",
                workers=[process.address],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )

    def _choose(self, device: str, nbytes: int) -> WorkerProcess | Outcome:
        processes = self.processes_of(device)
        if not processes:
            # The dispatcher is about to hear that the device's last process has gone.
            return WorkerDied("its worker process has gone", blame=False)
        able = [process for process in processes if process.holds(nbytes)]
        if not able:
            # The process that it was meant for has just left: the dispatcher hears what those here may take.
            most = max(process.hello.process_bytes for process in processes)
            return Refused(
                f"it needs {gib(nbytes)} of host memory, and no worker process there may take more than "
                f"{gib(most)}"
            )
        free = [process for process in able if process.holds_beside(nbytes)]
        if not free:
            return Refused(f"no worker process has {gib(nbytes)} of its memory limit left")
        return min(free, key=lambda process: len(process.in_flight) / process.hello.slots)

    def cancel(self, key: AttemptKey) -> bool:
        """Ask for an attempt to end: it isn't begun, or stops before its next step; a message tells which.

        False if it was never sent: no message will come.
        """
        process = self.process_of(key)
        if process is None or key in process.outbox:
            return False
        self._drop(process, key)
        self._tell([process], cancel_here, *key, self.topic)
        return True

    @staticmethod
    def _drop(process: WorkerProcess, key: AttemptKey) -> None:
        """Have Dask forget the attempt's task, unless others that are in flight are a part of it too."""
        future = process.in_flight[key]
        if future is not None and sum(each is future for each in process.in_flight.values()) == 1:
            future.cancel(force=True)

    def ended(self, key: AttemptKey, *, unheard: bool = False) -> None:
        """An attempt is over: its process has one less to do. `unheard`: not by the process's own word."""
        process = self._where.pop(key, None)
        if process is not None:
            if unheard:
                self._drop(process, key)
            process.outbox.pop(key, None)
            process.asked_back.discard(key)
            process.unfetched.discard(key)
            del process.in_flight[key], process.host_bytes[key]

    def process_of(self, key: AttemptKey) -> WorkerProcess | None:
        """The process that an attempt is in."""
        return self._where.get(key)

    def run_on(
        self, process: WorkerProcess, function: Callable[..., Any], *arguments: Any, timeout_s: float
    ) -> Any:
        """Call a function in a process, beside its attempts, and return its result.

        Raises
        ------
        TimeoutError
            There is none after `timeout_s` seconds.
        OSError
            The process has gone, or went by it.
        """
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def ask() -> None:
            try:
                found = self.client.run(function, *arguments, workers=[process.address])
                answer.set_result(found[process.address])
            except Exception as error:  # noqa: BLE001  raised again by whoever asked
                answer.set_exception(error)

        threading.Thread(target=ask, name="stackyard-ask", daemon=True).start()
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            raise TimeoutError(f"no answer within {timeout_s:g} s") from None

    def reclaim(self, device: str, nbytes: int) -> None:
        """Have every process of the device give back idle memory; doesn't wait for it."""
        self._tell(self.processes_of(device), reclaim_here, nbytes, self.topic)

    def evict(self, device: str, name: str) -> None:
        """Have every process of the device tear down a step's idle state; each answers by a message."""
        self._tell(self.processes_of(device), evict_here, device, name, self.topic)

    def request(self, device: str, nbytes: int) -> None:
        """Have the processes of the device ask other runs for what they don't use; doesn't wait for it."""
        self._tell(self.processes_of(device), request_here, nbytes, self.topic)

    def _tell(
        self, processes: Iterable[WorkerProcess], function: Callable[..., Any], *arguments: Any
    ) -> threading.Thread | None:
        """Have processes run a function; a process that is held up doesn't hold up who asks it."""
        addresses = [process.address for process in processes]
        if not addresses or not self.connected:
            return None
        # One that has just died has given everything back; its end is told elsewhere.
        run = partial(self.client.run, function, *arguments, workers=addresses, wait=False, on_error="ignore")
        return self._aside(run)

    def restart(self, process: WorkerProcess) -> None:
        """End a process, whatever is in it; its nanny, if it has one, starts a fresh one."""
        process.ended_by_us, process.retired = True, False
        process.leaving = process.leaving or "it is being restarted"
        self._aside(self._restart, process)

    def let_go(self, process: WorkerProcess) -> None:
        """Close a process and its nanny; none comes in its place."""
        process.let_go = False
        self._aside(self.client.run_on_scheduler, close_there, process.address)

    def _restart(self, process: WorkerProcess) -> None:
        hurried = self._tell([process], hurry_here, self.topic)
        if hurried is not None:
            hurried.join(HURRY_S)
        if process.hello.has_nanny:
            self.client.restart_workers([process.address], raise_for_error=False)
        else:
            self.client.retire_workers([process.address], close_workers=True)

    def _aside(self, do: Callable[..., Any], *arguments: Any) -> threading.Thread:
        """Do what takes seconds, which nobody else should have to wait."""

        def run() -> None:
            # The run may be over, and its cluster closed, before that is done, which is a RuntimeError where
            # a connection was about to be made; or the process has gone by itself, a KeyError (distributed
            # 2026.8).
            with contextlib.suppress(OSError, KeyError, RuntimeError):
                do(*arguments)

        thread = threading.Thread(target=run, name="stackyard-aside", daemon=True)
        thread.start()
        return thread


def close_there(address: str, dask_scheduler: Scheduler) -> None:
    """Have a worker and its nanny close; retiring would keep one that has a task's result and no heir."""
    dask_scheduler.close_worker(address)


def _as_used(device: Device, slots: int, limits: list[int]) -> Device:
    """The device with the slots of its processes, and the largest of their limits if each has one."""
    prefetch = slots * READY if device.kind is DeviceKind.CPU else device.prefetch
    limit = max(limits) if all(limits) else 0
    return replace(device, slots=slots, prefetch=prefetch, attempt_host_bytes=limit)


def _is_small(task: AttemptTask) -> bool:
    """False if large arrays travel with the attempt, or may come back by its Dask task."""
    stacks = [stack for stack in named_stacks(task.source).values() if not isinstance(stack, StackSource)]
    return not task.returns_array and sum(stack.nbytes for stack in stacks) < LARGE_BYTES
