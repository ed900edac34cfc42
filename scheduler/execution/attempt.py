"""One attempt at one job, in a worker: reserve, read, compute, write, and say how it ended."""

import contextlib
import errno
import gc
import os
import sqlite3
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from distributed import get_worker
from numpy.typing import NDArray

from memcore import OutOfDeviceMemoryError, backend_of
from memcore.registry import memory_type_names
from pools.holder import held_by
from pools.oom import is_oom
from scheduler.core.events import Cancelled, Done, Failed, Outcome, OutOfMemory, Refused, WorkerDied
from scheduler.core.model import DeviceKind
from scheduler.execution.activity import WAITS, Activity, CancelledAttemptError
from scheduler.execution.capture import attempt_log
from scheduler.execution.chain import ChainStep, run_chain, run_chain_in_blocks
from scheduler.execution.messages import Released, tell, tell_end
from scheduler.execution.peaks import DevicePeak, HostPeak
from scheduler.execution.residents import chain_state
from scheduler.execution.runs_here import current_worker, state_of, working_for
from scheduler.execution.task import AttemptReport, AttemptTask, StepRecord
from scheduler.execution.worker import Holding, RefusedError, WorkerState
from scheduler.images.outputs import write_stack
from scheduler.images.sources import read_stack
from scheduler.images.stack import StackSource
from scheduler.steps.context import StepContext

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def run_and_tell(task: AttemptTask, topic: str) -> NDArray[Any] | None:
    """`run_attempt` as a Dask task that sends its report as an event of `topic` before it ends.

    A result stays in its worker until somebody fetches it; where the worker dies before that, Dask runs the
    task again by itself, although its output is in place. So only a large array that was asked for is one.
    """
    worker = get_worker()
    state = state_of(worker.id, topic)
    if state is None:
        raise RuntimeError("the worker serves this run no more")

    def released() -> None:
        tell(worker, topic, Released(task.job_id, task.number))

    with working_for(state), state.attempts.present(task.job_id, task.number) as admitted:
        if admitted:
            report, array = run_attempt(task, on_release=released)
        else:
            report, array = AttemptReport(WorkerDied(state.attempts.leaving, blame=False), os.getpid()), None
        return tell_end(worker, topic, (task.job_id, task.number), report, array)


def run_attempt(
    task: AttemptTask, *, on_release: Callable[[], None] = lambda: None
) -> tuple[AttemptReport, NDArray[Any] | None]:
    """Carry out `task` in this worker process; the second result is the array, if the task wants it back.

    A job's errors come back as outcomes, not as exceptions. `on_release` is called when the attempt has left
    the worker's GPU, before its output is written.
    """
    state = current_worker()
    course = _Course(on_release, DevicePeak(state))
    header = f"attempt {task.number} on {state.device.name}, {time.strftime('%Y-%m-%d %H:%M:%S')}"
    path = state.run_dir / "logs" / f"{task.job_id}.log" if state.keeps_logs else None
    with attempt_log(path, header) as log:
        try:
            outcome, trace = _outcome(state, task, course)
        except CancelledAttemptError as error:  # before it began
            outcome, trace = Cancelled(str(error)), ""
        if trace:
            log.note(trace)
        if isinstance(outcome, OutOfMemory):
            # Only now: the traceback, gone with its except block, pinned arrays that are to be given back.
            gc.collect()
            state.pools.reclaim(0 if state.on_gpu else "cpu", task.device_bytes or task.host_bytes)
            state.report_memory()
        for lease in state.pools.end_job(task.job_id):
            log.note(f"leak: {lease}\n")
    retire = state.reason_to_retire()
    if isinstance(outcome, Failed) and not course.disk_full:
        _look_if_broken(state, task, course)
        if course.broken:
            reason = f"{course.broken}, after: {outcome.error}"
            outcome, retire = WorkerDied(reason, blame=course.has_broken), course.broken
    report = AttemptReport(
        outcome,
        os.getpid(),
        course.times,
        course.steps,
        course.result,
        tuple(course.on_device),
        course.disk_full,
        retire,
    )
    return report, course.array


def load_frameworks(memory_types: Iterable[str]) -> None:
    """Import what the steps need; TensorFlow last: PoCL crashes when it is loaded after it.

    A memory type that a step's own module registers comes with that module, later.
    """
    known = set(memory_types).intersection(memory_type_names())
    for name in sorted(known, key=lambda name: (name == "tensorflow", name)):
        backend_of(name).version()


def step_records(state: WorkerState, task: AttemptTask) -> tuple[StepRecord, ...]:
    """How each step of the task runs in this worker."""
    resolved = map(state.step, task.steps)
    return tuple(
        StepRecord(
            step=step.name,
            use=step.use,
            parameters=dict(step.given),
            memory_type=memory_type,
            version=backend_of(memory_type).version(),
            device=state.device.name,
        )
        for step, memory_type in zip(resolved, task.memory_types, strict=True)
    )


@dataclass(slots=True)
class _Course:
    """How far an attempt came."""

    on_release: Callable[[], None]
    device_peak: DevicePeak
    times: dict[str, float] = field(default_factory=dict)
    waited_s: float = 0.0
    steps: tuple[StepRecord, ...] = ()
    result: tuple[tuple[int, ...], str] | None = None
    on_device: list[tuple[float, float]] = field(default_factory=list)
    array: NDArray[Any] | None = None
    disk_full: str = ""
    broken: str = ""
    has_broken: bool = False

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note the block's seconds under `name`, without what it waited for its turn on the device."""
        began, waited = time.monotonic(), self.waited_s
        yield
        self.times[name] = time.monotonic() - began - (self.waited_s - waited)


def _outcome(state: WorkerState, task: AttemptTask, course: _Course) -> tuple[Outcome, str]:
    """Run the attempt; returns how it ended, and the text of the traceback if it didn't succeed."""
    host_peak = HostPeak()
    with state.attempts.begin(task.job_id, task.number) as activity:
        try:
            # Imports are no part of the job's footprint, nor of its time.
            activity.turn_to("loads libraries")
            load_frameworks(task.memory_types)
            course.steps = step_records(state, task)
            if activity.alone and state.measures(task.kind):
                host_peak.start(idle_bytes=state.pools.memory("cpu").idle)
            began = time.monotonic()
            _carry_out(state, task, course, activity)
        except CancelledAttemptError as error:
            return Cancelled(str(error)), ""
        except RefusedError as error:
            # A snapshot of the host mustn't be taken for one of the device that the job was placed on.
            snapshot = error.denial.snapshot
            return Refused(str(error), snapshot if snapshot.uuid == state.device.uuid else None), ""
        except Exception as error:  # noqa: BLE001  whatever a user's step raises is the outcome
            trace = traceback.format_exc()
            if is_oom(error):
                text = f"{type(error).__name__}: {error}"
                on_host = not (state.on_gpu and _of_device(error))
                reached = None if on_host else state.reached_on_device()
                return OutOfMemory(peak_bytes=reached, on_host=on_host, error=text), trace
            text = str(error) or type(error).__name__
            course.disk_full = _no_room(error)
            if course.disk_full:
                return Refused(f"{course.disk_full}: {text}"), trace
            return Failed(text, key=_failure_key(error)), trace
        host_peak.stop()
        alone = activity.alone
        done = Done(
            device_peak_bytes=course.device_peak.nbytes,
            host_peak_bytes=host_peak.nbytes if alone else None,
            duration_s=time.monotonic() - began - course.waited_s,
            attributed=alone and host_peak.nbytes is not None,
        )
        return done, ""


def _carry_out(state: WorkerState, task: AttemptTask, course: _Course, activity: Activity) -> None:
    with (
        state.reserved(
            task.job_id,
            device_bytes=task.device_bytes,
            host_bytes=task.host_bytes,
            own_state=_state_name(state, task),
        ) as holding,
        contextlib.ExitStack() as leases,
        held_by(task.job_id),
    ):
        host_pool = state.pools.pool("numpy", "cpu")
        shape, dtype = task.source.shape, str(task.source.dtype)
        with host_pool.acquire(shape, dtype, job=task.job_id) as stack:
            activity.turn_to("reads")
            with course.timed("read_s"):
                if isinstance(task.source, StackSource):
                    read_stack(task.source, stack)
                else:
                    np.copyto(stack, task.source, casting="no")
            with course.timed("compute_s"):
                result = _compute(state, task, stack, leases, course, activity, holding)
            activity.turn_to("writes")
            with course.timed("write_s"):
                _write(task, course, result)
            if task.returns_array:
                course.array = np.array(result)
            course.result = result.shape, result.dtype.name
            # The name bound by `as` is an alias too: with it the buffer would stay taken until the return.
            del result, stack


def _write(task: AttemptTask, course: _Course, result: NDArray[Any]) -> None:
    if task.output is None:
        return
    source = task.source if isinstance(task.source, StackSource) else None
    write_stack(
        Path(task.output.path),
        result,
        format=task.output.format,
        physical_size_um=source.physical_size_um if source else None,
        channel_name=source.channel_name if source else None,
        provenance={
            **task.output.provenance,
            "job": task.job_id,
            "steps": [asdict(record) for record in course.steps],
            "blocks": task.split.blocks if task.split else 1,
        },
        overwrite=task.output.overwrite,
    )


def _compute(
    state: WorkerState,
    task: AttemptTask,
    stack: NDArray[Any],
    leases: contextlib.ExitStack,
    course: _Course,
    activity: Activity,
    holding: Holding,
) -> NDArray[Any]:
    steps = [
        ChainStep(
            state.step(spec),
            memory_type,
            _place(state, memory_type),
            on_host=state.on_gpu and memory_type == "numpy",
        )
        for spec, memory_type in zip(task.steps, task.memory_types, strict=True)
    ]

    def make_output(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        lease = state.pools.pool("numpy", "cpu").acquire(shape, dtype, job=task.job_id)
        array: NDArray[Any] = leases.enter_context(lease)
        return array

    def make_context(step: ChainStep, z_start: int = 0) -> StepContext:
        return StepContext(
            memory_type=step.memory_type,
            gpu_id=step.gpu_id,
            pool=state.pools.pool(step.memory_type, step.gpu_id),
            job_id=task.job_id,
            z_start=z_start,
        )

    @contextlib.contextmanager
    def segment(*, last: bool) -> Iterator[None]:
        activity.turn_to(WAITS)
        asked = time.monotonic()
        with state.compute:
            course.waited_s += time.monotonic() - asked
            activity.turn_to("computes")
            began = time.time()
            try:
                with course.device_peak:
                    yield
            except Exception:
                # Before the next one has its turn, which would fail by it too.
                _look_if_broken(state, task, course)
                raise
            course.on_device.append((began, time.time()))
        if last and state.on_gpu:
            holding.release_device()
            course.on_release()

    def on_step(step: ChainStep) -> None:
        activity.turn_to(f"computes {step.resolved.name}")

    activity.turn_to("sets up its steps")
    with state.residents.in_use(steps, make_context) as use:
        # Once for all jobs: it says nothing of how long one takes.
        course.waited_s += use.setup_s
        course.times["setup_s"] = use.setup_s
        if task.split is None:
            whole: NDArray[Any] = run_chain(
                stack, steps, make_context=make_context, segment=segment, on_step=on_step
            )
            return whole
        with segment(last=True):
            return run_chain_in_blocks(
                stack,
                steps,
                task.split,
                make_context=make_context,
                make_output=make_output,
                on_step=on_step,
            )


def _state_name(state: WorkerState, task: AttemptTask) -> str:
    steps = zip((state.step(spec) for spec in task.steps), task.memory_types, strict=True)
    kept = chain_state(steps, on_gpu=state.on_gpu)
    return "" if kept is None else kept.name


def _place(state: WorkerState, memory_type: str) -> Any:
    # A step for NumPy in a GPU's chain runs in host memory; every other one on the device.
    return "cpu" if memory_type == "numpy" else state.gpu_id(memory_type)


def _of_device(error: BaseException) -> bool:
    """Whether it is device memory that ran out: of the MemoryErrors, ours that says so, and CuPy's."""
    if isinstance(error, OutOfDeviceMemoryError) or not isinstance(error, MemoryError):
        return True
    return type(error).__module__.partition(".")[0] == "cupy"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _no_room(error: BaseException) -> str:
    """Which file system is full, if that is what the error is about; else ""."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            return f"no space left for {cause.filename}" if cause.filename else "no space left on a disk"
        if isinstance(cause, sqlite3.OperationalError) and cause.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return "no space left for the reservation table"
    return ""


def _look_if_broken(state: WorkerState, task: AttemptTask, course: _Course) -> None:
    """After a failure: whether it has broken the process's GPU, or another attempt had done that before.

    What a process can't be rid of, such as an illegal address, fails all that comes after: nothing more
    begins here.
    """
    if not course.broken:
        course.broken = _why_broken(state, task)
        if course.broken:
            course.has_broken = not state.attempts.leaving
            state.attempts.leave(course.broken)


def _why_broken(state: WorkerState, task: AttemptTask) -> str:
    """Why this process's GPU can't be used any more, if so; tried with a small array after a failure."""
    if state.device.kind is not DeviceKind.CUDA:
        return ""
    for memory_type in dict.fromkeys(task.memory_types):
        if memory_type == "numpy":
            continue
        backend, place = backend_of(memory_type), state.gpu_id(memory_type)
        try:
            backend.from_host(np.zeros((1, 1, 1), np.uint8), place)
            backend.synchronize(place)
        except Exception as error:  # noqa: BLE001  each library has its own
            if not is_oom(error):
                return (
                    f"{memory_type} can't use {state.device.name} any more: {type(error).__name__}: {error}"
                )
    return ""


def _failure_key(error: BaseException) -> str:
    """What equal failures have in common: type and place of the innermost cause, not its figures."""
    *_, innermost = _causes(error)
    frames = traceback.extract_tb(innermost.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
    return f"{type(innermost).__qualname__} at {place}"
