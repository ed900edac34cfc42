"""What kind of failure an attempt's error is, and whether the process can go on after it."""

import errno
import sqlite3
import traceback
from collections.abc import Iterable, Iterator

import numpy as np

from memcore import OutOfDeviceMemoryError, backend_of
from pools.oom import is_oom
from scheduler.core.model import DeviceKind
from scheduler.execution.worker import WorkerState

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def of_device(error: BaseException) -> bool:
    """Whether it is device memory that ran out: of the MemoryErrors, ours that says so, and CuPy's."""
    if isinstance(error, OutOfDeviceMemoryError) or not isinstance(error, MemoryError):
        return True
    return type(error).__module__.partition(".")[0] == "cupy"


def no_room(error: BaseException) -> str:
    """Which file system is full, if that is what the error is about; else ""."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            return f"no space left for {cause.filename}" if cause.filename else "no space left on a disk"
        if isinstance(cause, sqlite3.OperationalError) and cause.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return "no space left for the reservation table"
    return ""


def why_broken(state: WorkerState, memory_types: Iterable[str]) -> str:
    """Why this process's GPU can't be used any more, if so; tried with a small array after a failure."""
    if state.device.kind is not DeviceKind.CUDA:
        return ""
    for memory_type in dict.fromkeys(memory_types):
        if memory_type == "numpy":
            continue
        backend, place = backend_of(memory_type), state.gpu_id(memory_type)
        try:
            # Read back: JAX works asynchronously, and tells of a failure only whoever wants the values.
            backend.to_host(backend.from_host(np.zeros((1, 1, 1), np.uint8), place))
        except Exception as error:  # noqa: BLE001  each library has its own
            if not is_oom(error):
                return (
                    f"{memory_type} can't use {state.device.name} any more: {type(error).__name__}: {error}"
                )
    return ""


def failure_key(error: BaseException) -> str:
    """What equal failures have in common: type and place of the innermost cause, not its figures."""
    *_, innermost = _causes(error)
    frames = traceback.extract_tb(innermost.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
    return f"{type(innermost).__qualname__} at {place}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
