"""The work of a stress test's jobs: exact arithmetic while they hold device memory and write to it."""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from memcore import memory_types
from memcore.info import bytes_text
from pools.virtual import VirtualDeviceMemory
from scheduler.core.model import DeviceKind
from scheduler.execution.runs_here import current_worker
from scheduler.execution.worker import WorkerState
from scheduler.steps.context import StepContext
from scheduler.stress.diary import Diary
from scheduler.stress.slow_disk import make_disk_slow
from scheduler.stress.workload import MODULI, MOST_EXCESS

# Of what a job charges to a virtual device, this share is host memory that it really writes to.
TOUCHED_SHARE = 0.0125
# Five 64-bit integers a voxel: the value, its successor, a neighbour, and two on the way.
ARITHMETIC_BYTES = 40
# With a CPU as fast as the devices nothing would be under pressure.
CPU_SLOWDOWN = 5

_diaries: dict[Path, Diary] = {}
_lock = threading.Lock()
_runs = itertools.count()


class CorruptMemoryError(RuntimeError):
    """Somebody else has written to memory that a job held."""


def device_workspace(shape: tuple[int, ...], dtype: str, bytes_per_voxel: int) -> int:  # noqa: ARG001
    """Bytes on the device, as declared; a job that under-estimates needs more."""
    return bytes_per_voxel * prod(shape)


def host_workspace(shape: tuple[int, ...], dtype: str, bytes_per_voxel: int) -> int:
    """Bytes of host memory where the device is a count of bytes, or there is none."""
    declared = device_workspace(shape, dtype, bytes_per_voxel)
    return int(declared * TOUCHED_SHARE * MOST_EXCESS / 100) + ARITHMETIC_BYTES * prod(shape)


@memory_types(["torch", "cupy"], workspace=device_workspace)
def strain(
    stack: Any,
    *,
    bytes_per_voxel: int,
    rounds: int,
    weights: Sequence[int],
    offset: int,
    hold_s: float,
    context: StepContext,
) -> Any:
    """Hold `bytes_per_voxel` for each voxel of the stack on the device, write to them, and do the arithmetic.

    The first voxel says in per cent how much is really needed. On a virtual device the bytes are charged and
    1.25 % of them are memory that is written to; on a real one all are allocated there and written to.

    Parameters
    ----------
    stack
        [Z, Y, X] of one of the dtypes in `workload.MODULI`, each value below its modulus; never written.
    rounds, weights, offset
        As in `workload.Mixing`.
    hold_s
        Seconds for which the memory is held at least, as a device would that computes.

    Returns
    -------
    A new stack of the same shape and dtype.

    Raises
    ------
    CorruptMemoryError
        What the job had written to its memory wasn't there any more.
    """
    began = time.monotonic()
    declared = device_workspace(tuple(stack.shape), "", bytes_per_voxel)
    need = declared * int(stack[0, 0, 0]) // 100
    with _step_run(context.job_id) as run, _held(need, context, run):
        result = _mixed(stack, rounds, weights, offset)
        # What a device's own time would be: the memory stays taken meanwhile.
        _wait_until(began + hold_s)
    return result


@strain.register("numpy", workspace=host_workspace)
def strain_on_cpu(
    stack: NDArray[Any],
    *,
    bytes_per_voxel: int,  # noqa: ARG001  the CPU's plan has no device
    rounds: int,
    weights: Sequence[int],
    offset: int,
    hold_s: float,
    context: StepContext,
) -> NDArray[Any]:
    """`strain` on the CPU: the arithmetic alone, and it takes longer than on a device."""
    began = time.monotonic()
    with _step_run(context.job_id):
        result: NDArray[Any] = _mixed(stack, rounds, weights, offset)
        _wait_until(began + CPU_SLOWDOWN * hold_s)
    return result


def _turned(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
    return (shape[0], shape[2], shape[1]), dtype


@memory_types("numpy", workspace=0, output_like=_turned)
def turn(stack: NDArray[Any]) -> NDArray[Any]:
    """Planes in reverse order, rows and columns swapped: a new stack [Z, X, Y]."""
    return np.ascontiguousarray(stack[::-1].transpose(0, 2, 1))


def _wait_until(end: float) -> None:
    threading.Event().wait(max(0.0, end - time.monotonic()))


def _mixed(stack: Any, rounds: int, weights: Sequence[int], offset: int) -> Any:
    xp = array_api_compat.array_namespace(stack)
    modulus = MODULI[str(stack.dtype).removeprefix("torch.")]
    value = xp.astype(stack, xp.int64)
    for _ in range(rounds):
        total = value * weights[0] + offset
        for axis, weight in enumerate(weights[1:]):
            total = total + xp.roll(value, 1, axis=axis) * weight
        value = total % modulus
    return xp.astype(value, stack.dtype)


class _Run:
    """One run of the step in the diary."""

    def __init__(self, diary: Diary, job: str) -> None:
        self._diary = diary
        self._job = job
        self._name = str(next(_runs))

    def note(self, event: str, **figures: int) -> None:
        self._diary.write(event, self._name, self._job, **figures)


@contextlib.contextmanager
def _step_run(job: str) -> Iterator[_Run]:
    state = current_worker()
    make_disk_slow()
    with _lock:
        if state.run_dir not in _diaries:
            _diaries[state.run_dir] = Diary(state.run_dir)
    run = _Run(_diaries[state.run_dir], job)
    run.note("began")
    yield run
    run.note("ended")


@contextlib.contextmanager
def _held(need: int, context: StepContext, run: _Run) -> Iterator[None]:
    """Have `need` bytes of the device while the block runs, and see that nobody else wrote to them."""
    state = current_worker()
    virtual = state.device.kind is DeviceKind.VIRTUAL
    missing = max(0, need - _charged_already(state, context.job_id)) if virtual else 0
    with state.charged(missing, context.job_id):
        run.note("charged", charged=need)
        touched = int(need * TOUCHED_SHARE) if virtual else need
        with context.pool.acquire((max(1, touched),), "uint8") as memory:
            mark = crc32(context.job_id.encode()) % 255 + 1
            memory[...] = mark
            run.note("touched", touched=touched)
            yield
            least, most = int(memory.min()), int(memory.max())
            del memory
    if (least, most) != (mark, mark):
        raise CorruptMemoryError(
            f"{bytes_text(touched)} that {context.job_id} had filled with {mark} hold {least} to {most}"
        )


def _charged_already(state: WorkerState, job: str) -> int:
    """What the worker has charged to its virtual device for this job: its reservation, margin included."""
    charges = VirtualDeviceMemory(state.device.uuid).charges()
    return sum(each.nbytes for each in charges if each.owner == job and each.process.pid == os.getpid())
