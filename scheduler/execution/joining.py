"""What Dask hands to every process of a cluster, those without Stackyard included; it travels as code.

A plugin of a class that a worker can't import would end each such worker that joins while a run goes on.
"""

import asyncio
import contextlib
import pickle
import sys
from typing import Any

import cloudpickle
from distributed import Nanny, NannyPlugin, Status, Worker, WorkerPlugin

CLOSE_S = 5.0

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class JoinRun(WorkerPlugin):  # type: ignore[misc]  # distributed's types are not followed
    """Sets up a run's plugin in a worker, or else tells the run's topic why that can't be.

    `packed` is the pickled plugin. Must use nothing of Stackyard's.
    """

    def __init__(self, name: str, topic: str, packed: bytes) -> None:
        self.name = name
        self._topic = topic
        self._packed = packed
        self._plugin: Any = None

    def setup(self, worker: Worker) -> None:
        """Called by Dask in each worker, when it joins."""
        try:
            plugin = pickle.loads(self._packed)
            plugin.setup(worker)
        except Exception as error:  # noqa: BLE001  told to the driver, whoever it is
            reason = f"{type(error).__name__}: {error}"
            worker.log_event(self._topic, {"unfit": [worker.address, str(worker.name), reason]})
        else:
            self._plugin = plugin

    async def teardown(self, worker: Worker) -> None:
        """Called by Dask when a worker closes, or when the run is over."""
        if self._plugin is not None:
            await self._plugin.teardown(worker)


class PatientNanny(NannyPlugin):  # type: ignore[misc]  # as above
    """Has a nanny that is being closed give its worker `drain_s` seconds, where Dask has 4 to 8."""

    def __init__(self, name: str, drain_s: float) -> None:
        self.name = name
        self._drain_s = drain_s

    async def teardown(self, nanny: Nanny) -> None:
        """Called by Dask when a nanny closes, or when the run is over."""
        if nanny.status is not Status.closing or nanny.worker_address is None:
            return
        # It closes its listeners too, with this connection; and it may have gone before.
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            async with nanny.rpc(nanny.worker_address) as worker:
                closed = worker.terminate(nanny=False, reason="its nanny is being closed")
                await asyncio.wait_for(closed, self._drain_s + CLOSE_S)
