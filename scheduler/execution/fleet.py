"""The worker processes of a run's devices, as Dask knows them."""

import contextlib
import pickle
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any

from distributed import Client, Future

from scheduler.core.model import Device
from scheduler.execution.attempt import AttemptReport, AttemptTask, run_and_tell
from scheduler.execution.cluster import resource_labels
from scheduler.execution.worker import reclaim_here


class Fleet:
    """Sends work to the workers of a device, and ends those that hang.

    Workers are found by their resource label, which a restarted worker has too.
    """

    def __init__(self, client: Client, devices: Mapping[str, Device]) -> None:
        self.client = client
        self.devices = devices
        # Attempts in flight by label: the next one goes where there are fewest.
        self._loads = {uuid: dict.fromkeys(resource_labels(device), 0) for uuid, device in devices.items()}
        self._lock = threading.Lock()
        self._restarted: set[str] = set()
        self._reports: dict[tuple[str, int], AttemptReport] = {}
        self._topic = f"stackyard-reports-{secrets.token_hex(4)}"
        client.subscribe_topic(self._topic, self._told)

    def submit(self, function: Callable[..., Any], *arguments: Any, device: str, key: str) -> Future:
        """Run `function` once, on the worker process of `device` that has the least to do."""
        loads = self._loads[device]
        with self._lock:
            label = min(loads, key=loads.__getitem__)
            loads[label] += 1

        def unload(_: Future) -> None:
            with self._lock:
                loads[label] -= 1

        future = self.client.submit(
            function, *arguments, key=key, resources={label: 1}, pure=False, retries=0
        )
        future.add_done_callback(unload)
        return future

    def addresses(self, device: str) -> list[str]:
        """The addresses of the device's worker processes that are there now."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        labels = self._loads[device].keys()
        return [address for address, worker in workers.items() if labels & worker["resources"].keys()]

    def submit_attempt(self, task: AttemptTask, *, device: str) -> Future:
        """Run an attempt; when the future is done, `take_report` has what the worker said."""
        key = f"{task.job_id}-{task.number}"
        return self.submit(run_and_tell, task, self._topic, device=device, key=key)

    def take_report(self, job_id: str, attempt: int) -> AttemptReport | None:
        """The report of an attempt that has come to its end, once; None if its worker died before that."""
        return self._reports.pop((job_id, attempt), None)

    def _told(self, event: tuple[float, dict[str, Any]]) -> None:
        _, told = event
        self._reports[told["job"], told["attempt"]] = pickle.loads(told["report"])

    def without_workers(self) -> set[str]:
        """The devices with slots, by uuid, that have no worker process now."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        present = {label for worker in workers.values() for label in worker["resources"]}
        return {uuid for uuid, loads in self._loads.items() if loads and not loads.keys() & present}

    def reclaim(self, device: str, nbytes: int) -> None:
        """Have every worker process of the device give back idle memory; doesn't wait for it."""
        addresses = self.addresses(device)
        if addresses:
            # One that has just died has given everything back; its end is told elsewhere.
            self.client.run(reclaim_here, nbytes, workers=addresses, wait=False, on_error="ignore")

    def restart_worker_of(self, future: Future) -> None:
        """End the worker process that a task runs in; its nanny starts a fresh one."""
        for address, keys in self.client.processing().items():
            if future.key in keys:
                self._restarted.add(address)
                # It takes seconds, which nobody else should have to wait.
                threading.Thread(
                    target=self._restart, args=(address,), name="stackyard-restart", daemon=True
                ).start()

    def _restart(self, address: str) -> None:
        # The run may be over, and its cluster closed, before the new process is there.
        with contextlib.suppress(OSError):
            self.client.restart_workers([address], raise_for_error=False)

    def died_by_itself(self, address: str) -> bool:
        """False for a worker that `restart_worker_of` has ended: what else ran there is not to blame."""
        return address not in self._restarted
