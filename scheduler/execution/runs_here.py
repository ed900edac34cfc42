"""The runs that this process works for, and for which of them a thread's attempt is."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.execution.worker import WorkerState

# By Dask worker and topic: a cluster in one process (`processes=False`) has several workers, and a worker may
# serve several runs.
_states: dict[tuple[str, str], "WorkerState"] = {}
_attempt = threading.local()


def current_worker() -> "WorkerState":
    """The state of the worker and run that this thread's attempt is for.

    Raises
    ------
    RuntimeError
        This thread runs no attempt.
    """
    state: WorkerState | None = getattr(_attempt, "state", None)
    if state is None:
        raise RuntimeError("this is no attempt of a Stackyard worker")
    return state


@contextlib.contextmanager
def working_for(state: "WorkerState") -> Iterator[None]:
    """Have this thread's code find `state` while the block runs."""
    before = getattr(_attempt, "state", None)
    _attempt.state = state
    try:
        yield
    finally:
        _attempt.state = before


def state_of(worker_id: str, topic: str) -> "WorkerState | None":
    """What a Dask worker of this process has for a run; None before it is set up and after its end."""
    return _states.get((worker_id, topic))


def states_here() -> "list[WorkerState]":
    """What this process has for every run."""
    return list(_states.values())


def set_worker(worker_id: str, state: "WorkerState") -> None:
    """Note what a Dask worker of this process has for a run."""
    _states[worker_id, state.settings.topic] = state


def unset_worker(worker_id: str, topic: str) -> None:
    """Forget it."""
    _states.pop((worker_id, topic), None)
