"""A run's part in a Dask cluster: its plugins there, and the topic on which its workers tell what happens."""

import contextlib
import pickle
import platform
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from distributed import Client

from scheduler.execution.errors import ClusterError
from scheduler.execution.joining import JoinRun, PatientNanny
from scheduler.execution.messages import Message, heard
from scheduler.execution.run_settings import WorkerSettings
from scheduler.execution.worker_plugin import StackyardScheduler, StackyardWorker

LISTEN_S = 0.05


class Membership:
    """Makes the workers of a cluster a run's, those that come later too, until `leave`.

    Parameters
    ----------
    topic
        A Dask topic of the run's own.
    settings
        What the workers are told; the topic is filled in here.
    hear
        Called with what the workers tell, in a thread of Dask's.
    """

    def __init__(
        self, client: Client, topic: str, settings: WorkerSettings, hear: Callable[[Message], None]
    ) -> None:
        self._client = client
        self._topic = topic
        self._hear = hear
        plugin = StackyardWorker(replace(settings, topic=topic))
        self._joining = JoinRun(plugin.name, topic, pickle.dumps(plugin))
        self._patience = PatientNanny(plugin.name, settings.drain_s) if settings.drain_s else None
        self._watching = StackyardScheduler(topic, client.id, plugin.name)

    def enter(self) -> int:
        """Send the plugins out; how many workers are there to answer.

        Raises
        ------
        ClusterError
            The scheduler can't take part, or a process can't take what is sent; it is named.
        """
        self._check_pythons()
        self._listen()
        try:
            self._client.register_plugin(self._watching)
        except Exception as error:
            raise ClusterError(
                f"the Dask scheduler at {self._client.scheduler.address} can't take part: "
                f"{type(error).__name__}: {error}; Stackyard has to be installed there too"
            ) from error
        there = len(self._client.scheduler_info(n_workers=-1)["workers"])
        self._client.register_plugin(self._joining)
        if self._patience is not None:
            self._client.register_plugin(self._patience)
        return there

    def leave(self) -> None:
        """Take the plugins off the cluster, which goes on without us."""
        self._client.unsubscribe_topic(self._topic)
        remove = [
            (self._client.unregister_worker_plugin, self._joining.name),
            (partial(self._client.unregister_worker_plugin, nanny=True), self._joining.name),
            (self._client.unregister_scheduler_plugin, self._watching.name),
        ]
        for unregister, name in remove:
            # One that isn't there, such as when the cluster turned out to be unfit before, is a ValueError;
            # in a worker that has just been started and doesn't have it yet, a KeyError (distributed 2026.8).
            with contextlib.suppress(OSError, ValueError, KeyError):
                unregister(name)

    def _check_pythons(self) -> None:
        """See that each process has the driver's version of Python: code can't travel to another one."""
        versions = {"the Dask scheduler": self._client.run_on_scheduler(platform.python_version)}
        for address, version in self._client.run(platform.python_version, on_error="ignore").items():
            versions[f"the worker at {address}"] = version
        here = platform.python_version().rpartition(".")[0]
        for who, version in versions.items():
            if version.rpartition(".")[0] != here:
                raise ClusterError(f"{who} runs Python {version}, and the driver {here}: take the same")

    def _listen(self) -> None:
        """Subscribe to the workers' messages, and see that none can be missed from here on."""
        listening = threading.Event()

        def hear(event: tuple[float, dict[str, Any]]) -> None:
            if "listening" in event[1]:
                listening.set()
            else:
                self._hear(heard(event))

        self._client.subscribe_topic(self._topic, hear)
        # The subscription goes another way than what makes the workers speak, and may come after it.
        while not listening.is_set():
            self._client.log_event(self._topic, {"listening": True})
            listening.wait(LISTEN_S)
