"""Keeps Slurm jobs for workers queued or running for as long as a run needs them."""

import threading
import time
from collections.abc import Callable
from typing import Any, Self

from distributed import Client, Scheduler

from scheduler.config.cluster import SlurmCluster
from scheduler.execution.slurm_commands import SlurmError, cancel_job, check_script, job_states

# So many jobs in a row that end without a worker in sight, and no more are submitted.
MAX_FRUITLESS = 3
END_S = 20.0
END_LOOK_S = 0.5


class WorkerJobs:
    """Keeps as many Slurm jobs for workers queued or running as the config says.

    Notes
    -----
    A thread of its own looks at Slurm's queue, and is all that touches the figures once it runs.
    """

    def __init__(
        self,
        config: SlurmCluster,
        name: str,
        made: Any,
        client: Client,
        remark: Callable[[str], None],
        watch_s: float,
    ) -> None:
        self._config = config
        self._name = name
        self._made = made
        self._client = client
        self._remark = remark
        self._watch_s = watch_s
        self._submitted = 0
        self._fruitless = 0
        self._ended = 0
        self._told: dict[str, str] = {}
        self._quit = threading.Event()
        self._expected = True
        self._thread = threading.Thread(target=self._watch, name="stackyard-slurm", daemon=True)

    def __enter__(self) -> Self:
        self._submit(self._config.nodes)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._thread.join()
        try:
            self._end()
        except SlurmError as error:
            self._say("end", f"Slurm's jobs for workers are left to their time limits: {error}")

    def _end(self) -> None:
        """Cancel jobs without workers, let the others end by themselves; dask-jobqueue cancels the rest."""
        workers = let_workers_go(self._client)
        for state in job_states(name=self._name):
            # A worker's name has its job's id in it.
            if not any(f"-{state.job_id}-" in name for name in workers):
                cancel_job(state.job_id)
        if not workers:
            return
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline and any(not state.ending for state in job_states(name=self._name)):
            time.sleep(END_LOOK_S)

    def expected(self) -> bool:
        """Whether workers are there or may still come."""
        return self._expected

    def _watch(self) -> None:
        while not self._quit.wait(self._watch_s):
            try:
                self.look()
            except SlurmError as error:  # a controller that restarts is back in a minute
                self._say("trouble", f"Slurm's queue can't be used: {error}")

    def look(self) -> None:
        """Look at the queue once, and submit what is missing."""
        if len(self._made.requested) < self._submitted:
            return  # sbatch is still at it
        states = [state for state in job_states(name=self._name) if not state.ending]
        # What was submitted and isn't there has ended; some may never have been seen here.
        ended = self._submitted - len(states)
        if self._client.scheduler_info(n_workers=-1)["workers"]:
            self._fruitless = 0
        else:
            self._fruitless += max(0, ended - self._ended)
        self._ended = ended
        waiting = [state for state in states if state.pending]
        if waiting:
            why = ", ".join(dict.fromkeys(state.reason or state.state for state in waiting))
            self._say("queue", f"{len(waiting)} of {len(states)} Slurm jobs for workers wait: {why}")
        # A job that is about to end is replaced while its workers finish what they have.
        leaving_at = time.time() + self._config.drain_s
        lasting = [state for state in states if state.end_time is None or state.end_time > leaving_at]
        missing = self._config.nodes - len(lasting)
        if self._fruitless >= MAX_FRUITLESS:
            self._expected = bool(states)
            self._say(
                "end", f"{self._fruitless} Slurm jobs have ended before a worker joined; no more follow"
            )
        elif missing > 0:
            self._submit(missing)

    def _submit(self, jobs: int) -> None:
        # A job that Slurm refuses would only be a line in Dask's log.
        check_script(self._made.job_script())
        self._submitted += jobs
        # The number that there are to be, those that have ended included: dask-jobqueue doesn't notice it.
        self._made.scale(jobs=self._submitted)

    def _say(self, about: str, text: str) -> None:
        if self._told.get(about) != text:
            self._told[about] = text
            self._remark(text)


def let_workers_go(client: Client) -> list[str]:
    """Have every worker close by itself, so that what its steps hold is torn down; returns their names."""
    if client.status != "running":
        return []
    # Retiring them would keep those that hold a task's result, since there is nobody left to take it over.
    names: list[str] = client.run_on_scheduler(_close_workers)
    return names


def _close_workers(dask_scheduler: Scheduler) -> list[str]:
    workers = list(dask_scheduler.workers.items())
    for address, _ in workers:
        dask_scheduler.close_worker(address)
    return [str(worker.name) for _, worker in workers]
