"""What Dask hands to every worker of a cluster, those without Stackyard included; it travels as code.

A plugin of a class that a worker can't import would end each such worker that joins while a run goes on.
"""

import pickle
import sys
from typing import Any

import cloudpickle
from distributed import Worker, WorkerPlugin

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
