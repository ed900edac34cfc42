"""One attempt at one job, in a worker: reserve, read, compute, write, and say how it ended."""

import contextlib
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcore import backend_of
from memcore.registry import memory_type_names
from pools.holder import held_by
from pools.oom import is_oom
from scheduler.core.events import Cancelled, Done, Failed, Outcome, OutOfMemory, Refused, WorkerDied
from scheduler.execution.activity import Activity, CancelledAttemptError, GivenBackError
from scheduler.execution.capture import attempt_log
from scheduler.execution.chain import ChainStep, run_chain_in_blocks, run_named_chain
from scheduler.execution.failures import failure_key, no_room, of_device, why_broken
from scheduler.execution.holding import Holding, RefusedError
from scheduler.execution.idle_host import OwnIdle
from scheduler.execution.peaks import DevicePeak, HostPeak
from scheduler.execution.residents import chain_state
from scheduler.execution.runs_here import current_worker
from scheduler.execution.step_call import StepTable
from scheduler.execution.task import (
    AttemptReport,
    AttemptTask,
    OutputRecord,
    Returned,
    Stack,
    StepRecord,
    named_stacks,
)
from scheduler.execution.worker import WorkerState
from scheduler.execution.writing import write_results
from scheduler.images.sources import read_stack
from scheduler.images.stack import StackSource
from scheduler.steps.context import StepContext

# A thread that was let in waits for Python's lock as long as this one keeps it.
HAND_OVER_S = 50e-6


def run_attempt(
    task: AttemptTask, *, on_release: Callable[[], None] = lambda: None
) -> tuple[AttemptReport, Returned | None]:
    """Carry out `task` in this worker process; the second result has the arrays, if the task wants them back.

    A job's errors come back as outcomes, not as exceptions. `on_release` is called when the attempt has left
    the worker's GPU, before its results are written.
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
            state.reclaim(task.device_bytes or task.host_bytes)
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
        course.outputs,
        course.began_to_write,
        {f"{name} on {place}": stats for (name, place), stats in state.pools.stats_by_pool().items()},
    )
    return report, course.returned


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
            parameters=dict(step.given)
            | {name: {"file": file.path, "sha256": file.digest} for name, file in step.arrays.items()},
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
    returned: Returned | None = None
    outputs: tuple[OutputRecord, ...] = ()
    began_to_write: bool = False
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
            if activity.alone and state.kinds.measures(task.kind):
                host_peak.start(idle_bytes=state.idle_host.nbytes_for(_own_idle(state, task)))
            began = time.monotonic()
            _carry_out(state, task, course, activity)
        except CancelledAttemptError as error:
            return Cancelled(str(error)), ""
        except GivenBackError as error:
            return WorkerDied(str(error), blame=False), ""
        except RefusedError as error:
            # A snapshot of the host mustn't be taken for one of the device that the job was placed on.
            snapshot = error.denial.snapshot
            return Refused(str(error), snapshot if snapshot.uuid == state.device.uuid else None), ""
        except Exception as error:  # noqa: BLE001  whatever a user's step raises is the outcome
            trace = traceback.format_exc()
            if is_oom(error):
                text = f"{type(error).__name__}: {error}"
                on_host = not (state.on_gpu and of_device(error))
                reached = None if on_host else state.reached_on_device()
                return OutOfMemory(peak_bytes=reached, on_host=on_host, error=text), trace
            text = str(error) or type(error).__name__
            course.disk_full = no_room(error)
            if course.disk_full:
                return Refused(f"{course.disk_full}: {text}"), trace
            return Failed(text, key=failure_key(error)), trace
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
    own = _own_idle(state, task)
    with (
        state.reserved(
            task.job_id, device_bytes=task.device_bytes, host_bytes=task.host_bytes, own=own
        ) as holding,
        state.array_files.in_use(own.files),
        state.residents.expected(own.state),
        contextlib.ExitStack() as leases,
        held_by(task.job_id),
    ):
        stacks: dict[str, NDArray[Any]] = {}
        activity.turn_to("reads")
        with course.timed("read_s"):
            host_pool = state.pools.pool("numpy", "cpu")
            for name, source in named_stacks(task.source).items():
                lease = host_pool.acquire(source.shape, str(source.dtype), job=task.job_id)
                stacks[name] = leases.enter_context(lease)
                _read(source, stacks[name])
        with course.timed("compute_s"):
            tables = _compute(state, task, stacks, leases, course, activity, holding)
        activity.turn_to("writes")
        course.began_to_write = True
        with course.timed("write_s"):
            course.outputs = write_results(task, stacks, tables, course.steps)
        if task.returns_array:
            arrays = {name: np.array(array) for name, array in stacks.items()}
            course.returned = Returned(arrays, {table.label: table.columns for table in tables})
        first = next(iter(stacks.values()))
        course.result = first.shape, first.dtype.name
        # A name is an alias too: with it a buffer would stay taken until the return.
        del first
        stacks.clear()


def _read(source: Stack, out: NDArray[Any]) -> None:
    if isinstance(source, StackSource):
        read_stack(source, out)
    else:
        np.copyto(out, source, casting="no")


def _compute(
    state: WorkerState,
    task: AttemptTask,
    stacks: dict[str, NDArray[Any]],
    leases: contextlib.ExitStack,
    course: _Course,
    activity: Activity,
    holding: Holding,
) -> list[StepTable]:
    """Run the chain on `stacks`, which puts its results in their place, and return its tables."""
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
        asked = time.monotonic()
        with state.attempts.turn(activity):
            course.waited_s += time.monotonic() - asked
            activity.turn_to("computes")
            began = time.time()
            try:
                with course.device_peak, state.kinds.computing(task.kind):
                    yield
            except Exception:
                # Before the next one has its turn, which would fail by it too.
                _look_if_broken(state, task, course)
                raise
            course.on_device.append((began, time.time()))
        if state.attempts.count > 1:
            time.sleep(HAND_OVER_S)
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
            return run_named_chain(
                stacks,
                steps,
                make_context=make_context,
                segment=segment,
                on_step=on_step,
                read_array=state.array_files.get,
            )
        with segment(last=True):
            ((name, stack),) = stacks.items()
            stacks[name] = run_chain_in_blocks(
                stack,
                steps,
                task.split,
                make_context=make_context,
                make_output=make_output,
                on_step=on_step,
                read_array=state.array_files.get,
            )
            return []


def _own_idle(state: WorkerState, task: AttemptTask) -> OwnIdle:
    steps = [state.step(spec) for spec in task.steps]
    kept = chain_state(zip(steps, task.memory_types, strict=True), on_gpu=state.on_gpu)
    files = frozenset(file for step in steps for file in step.arrays.values())
    return OwnIdle("" if kept is None else kept.name, files)


def _place(state: WorkerState, memory_type: str) -> Any:
    # A step for NumPy in a GPU's chain runs in host memory; every other one on the device.
    return "cpu" if memory_type == "numpy" else state.gpu_id(memory_type)


def _look_if_broken(state: WorkerState, task: AttemptTask, course: _Course) -> None:
    """After a failure: whether it has broken the process's GPU, or another attempt had done that before.

    What a process can't be rid of, such as an illegal address, fails all that comes after: nothing more
    begins here.
    """
    if not course.broken:
        course.broken = why_broken(state, task.memory_types)
        if course.broken:
            course.has_broken = not state.attempts.leaving
            state.attempts.leave(course.broken)
