"""Attempts that travel as one Dask task, and how a worker runs them."""

import os
import pickle
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from distributed import Worker, get_worker

from scheduler.core.events import Failed, WorkerDied
from scheduler.execution.attempt import run_attempt
from scheduler.execution.messages import Released, tell, tell_end
from scheduler.execution.runs_here import state_of, working_for
from scheduler.execution.task import AttemptKey, AttemptReport, AttemptTask, Returned
from scheduler.execution.worker import WorkerState


@dataclass(frozen=True, slots=True)
class Batch:
    """Attempts that are one Dask task, by (job, number).

    They are pickled one by one: what can't be rebuilt in the worker fails alone. One that carries large
    arrays isn't, and is by itself.
    """

    attempts: Mapping[AttemptKey, AttemptTask | bytes]


def run_batch(batch: Batch, topic: str) -> dict[AttemptKey, Returned]:
    """Run attempts in their order; each sends its report as an event of `topic` before it ends.

    While one computes the next one reserves and reads, and the one before it writes and reports.

    A result stays in its worker until somebody fetches it; where the worker dies before that, Dask runs the
    task again by itself, although its output is in place. So only large arrays that were asked for are one.

    Raises
    ------
    RuntimeError
        The worker serves the run no more.
    """
    worker = get_worker()
    state = state_of(worker.id, topic)
    if state is None:
        raise RuntimeError("the worker serves this run no more")
    results: dict[AttemptKey, Returned] = {}

    def failed(key: AttemptKey, error: Exception) -> None:
        reason = f"the worker can't run the attempt: {type(error).__name__}: {error}"
        tell_end(worker, topic, key, AttemptReport(Failed(reason), os.getpid()), None)

    tasks: deque[AttemptTask] = deque()
    for key, packed in batch.attempts.items():
        try:
            tasks.append(pickle.loads(packed) if isinstance(packed, bytes) else packed)
        except Exception as error:  # noqa: BLE001  the others of the batch are not to blame
            failed(key, error)

    def run_those_left() -> None:
        while tasks:
            try:
                task = tasks.popleft()
            except IndexError:  # the other thread has it
                return
            key = task.job_id, task.number
            try:
                returned = _run_and_tell(worker, state, task, topic)
            except Exception as error:  # noqa: BLE001  the same
                failed(key, error)
            else:
                if returned is not None:
                    results[key] = returned

    beside = None
    if len(tasks) > 1 and not any(state.would_measure(task.kind) for task in tasks):
        beside = threading.Thread(target=run_those_left, name="attempts", daemon=True)
        beside.start()
    run_those_left()
    if beside is not None:
        beside.join()
    return results


def _run_and_tell(worker: Worker, state: WorkerState, task: AttemptTask, topic: str) -> Returned | None:
    def released() -> None:
        tell(worker, topic, Released(task.job_id, task.number))

    with working_for(state), state.attempts.present(task.job_id, task.number) as admitted:
        if admitted:
            report, returned = run_attempt(task, on_release=released)
        else:
            report, returned = (
                AttemptReport(WorkerDied(state.attempts.leaving, blame=False), os.getpid()),
                None,
            )
        return tell_end(worker, topic, (task.job_id, task.number), report, returned)
