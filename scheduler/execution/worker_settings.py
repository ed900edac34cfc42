"""Dask's settings for worker processes that are ours."""

from typing import Any


def worker_settings(threads: dict[str, str]) -> dict[str, Any]:
    """Settings for whoever makes the Nannies: each hands them on to its worker process.

    Parameters
    ----------
    threads
        Variables that bound the threads of each process, set before it starts.
    """
    return {
        # Admission bounds memory; Dask would pause or spill on figures that count our idle pools.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        # Every process of Dask looks at itself again and again. Where all cores compute, that is taken from
        # the jobs. A nanny's look at its worker's memory stays: it ends what would take the host down.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "500ms",
        "distributed.admin.system-monitor.interval": "2s",
        # Devices are probed by us; Dask's own look at NVML fails the whole cluster where a driver is broken.
        "distributed.diagnostics.nvml": False,
        # Read by each Nanny when it is made, and applied before its process starts.
        "distributed.nanny.pre-spawn-environ": threads,
    }
