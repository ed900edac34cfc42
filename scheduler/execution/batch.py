"""Attempts that travel as one Dask task, and how a worker runs them."""

import contextlib
import contextvars
import os
import pickle
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distributed import Worker, get_worker

from scheduler.core.events import Failed, WorkerDied
from scheduler.execution.attempt import run_attempt
from scheduler.execution.messages import Released, tell, tell_end
from scheduler.execution.runs_here import state_of, working_for
from scheduler.execution.task import AttemptKey, AttemptReport, AttemptTask, Returned, named_stacks
from scheduler.execution.worker import WorkerState
from scheduler.images.stack import StackSource


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

    def failed(key: AttemptKey, error: BaseException) -> None:
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
            except BaseException as error:  # noqa: BLE001  the same; some libraries' errors are no Exception
                failed(key, error)
            else:
                if returned is not None:
                    results[key] = returned

    with contextlib.ExitStack() as at_the_end:
        if len(tasks) > 1 and _may_overlap(state, tasks):
            # In a copy of this thread's context Dask's `get_worker` and the like work too.
            second = threading.Thread(
                target=contextvars.copy_context().run, args=(run_those_left,), name="attempts", daemon=True
            )
            with contextlib.suppress(RuntimeError):  # no more threads are to be had: one does it all
                second.start()
                at_the_end.callback(second.join)
        run_those_left()
    return results


def _may_overlap(state: WorkerState, tasks: Iterable[AttemptTask]) -> bool:
    """False where attempts have to be alone to be measured, or where what a step's `setup` has made is used.

    That may belong to the thread that made it, as a database connection does. And where one computes at a
    time, and hardly waits for anything, a second thread would only hold up the first one now and then.
    """
    if state.device.slots == 1 and any(state.kinds.would_measure(task.kind) for task in tasks):
        return False
    hardly_wait = all(state.kinds.mostly_computes(task.kind) and not _uses_files(task) for task in tasks)
    if state.device.slots == 1 and hardly_wait:
        return False
    try:
        steps = [state.step(spec) for spec in {spec for task in tasks for spec in task.steps}]
    except Exception:  # noqa: BLE001  each attempt tells its own error
        return False
    return not any(step.keeps_state for step in steps)


def _uses_files(task: AttemptTask) -> bool:
    stacks = named_stacks(task.source).values()
    return task.output is not None or any(isinstance(stack, StackSource) for stack in stacks)


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
