"""One attempt at one job, in a worker: reserve, read, compute, write, and say how it ended."""

import contextlib
import gc
import os
import pickle
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distributed import get_worker
from numpy.typing import NDArray

from memcore import OutOfDeviceMemoryError, backend_of
from memcore.registry import memory_type_names
from pools.holder import held_by
from pools.oom import is_oom
from scheduler.core.events import Done, Failed, Outcome, OutOfMemory, Refused
from scheduler.core.model import Split
from scheduler.execution.capture import attempt_log
from scheduler.execution.chain import ChainStep, run_chain, run_chain_in_blocks
from scheduler.execution.peaks import HostPeak
from scheduler.execution.worker import RefusedError, WorkerState, current_worker
from scheduler.images.outputs import write_stack
from scheduler.images.sources import StackSource, read_stack
from scheduler.steps.context import StepContext
from scheduler.steps.resolve import StepSpec


@dataclass(frozen=True, slots=True)
class OutputTarget:
    """Where a result goes; `provenance` is what the driver knows of how it came about."""

    path: str
    format: str
    overwrite: bool
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AttemptTask:
    """All that a worker needs for one attempt. Bytes; `memory_types` has one for each step.

    Attempts of one `kind` have equal footprints.
    """

    job_id: str
    kind: str
    number: int
    source: StackSource
    steps: tuple[StepSpec, ...]
    memory_types: tuple[str, ...]
    device_bytes: int
    host_bytes: int
    output: OutputTarget
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """How one step ran: part of the output's metadata and of the journal."""

    step: str
    use: str
    parameters: Mapping[str, Any]
    memory_type: str
    version: str
    device: str


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """What comes back from a worker. Times in seconds; `result`: shape and dtype of what was written."""

    outcome: Outcome
    worker_pid: int
    times: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[StepRecord, ...] = ()
    result: tuple[tuple[int, ...], str] | None = None


def run_and_tell(task: AttemptTask, topic: str) -> AttemptReport:
    """`run_attempt` as a Dask task that sends its report as an event of `topic` before it ends.

    A result stays in its worker until somebody fetches it; where the worker dies before that, Dask runs the
    task again by itself, although its output is in place.
    """
    report = run_attempt(task)
    told = {"job": task.job_id, "attempt": task.number, "report": pickle.dumps(report)}
    get_worker().log_event(topic, told)
    return report


def run_attempt(task: AttemptTask) -> AttemptReport:
    """Carry out `task` in this worker process. A job's errors come back as outcomes, not as exceptions."""
    state = current_worker()
    header = f"attempt {task.number} on {state.device.name}, {time.strftime('%Y-%m-%d %H:%M:%S')}"
    course = _Course()
    with attempt_log(state.run_dir / "logs" / f"{task.job_id}.log", header) as log:
        outcome, trace = _outcome(state, task, course)
        if trace:
            log.write(trace)
        if isinstance(outcome, OutOfMemory):
            # Only now: the traceback, gone with its except block, pinned arrays that are to be given back.
            gc.collect()
            state.pools.reclaim(0 if state.on_gpu else "cpu", task.device_bytes or task.host_bytes)
            state.report_memory()
        for lease in state.pools.end_job(task.job_id):
            log.write(f"leak: {lease}\n")
    return AttemptReport(outcome, os.getpid(), course.times, course.steps, course.result)


def load_frameworks(memory_types: Iterable[str]) -> None:
    """Import what the steps need; TensorFlow last: PoCL crashes when it is loaded after it.

    A memory type that a step's own module registers comes with that module, later.
    """
    known = set(memory_types).intersection(memory_type_names())
    for name in sorted(known, key=lambda name: (name == "tensorflow", name)):
        backend_of(name).version()


def step_records(state: WorkerState, task: AttemptTask) -> tuple[StepRecord, ...]:
    """How each step of the task runs in this worker."""
    return tuple(
        StepRecord(
            step=state.step(spec).name,
            use=spec.use,
            parameters=dict(state.step(spec).parameters),
            memory_type=memory_type,
            version=backend_of(memory_type).version(),
            device=state.device.name,
        )
        for spec, memory_type in zip(task.steps, task.memory_types, strict=True)
    )


@dataclass(slots=True)
class _Course:
    """How far an attempt came."""

    times: dict[str, float] = field(default_factory=dict)
    waited_s: float = 0.0
    steps: tuple[StepRecord, ...] = ()
    result: tuple[tuple[int, ...], str] | None = None


def _outcome(state: WorkerState, task: AttemptTask, course: _Course) -> tuple[Outcome, str]:
    """Run the attempt; returns how it ended, and the text of the traceback if it didn't succeed."""
    peak = HostPeak()
    with state.attempt() as company:
        try:
            # Imports are no part of the job's footprint, nor of its time.
            load_frameworks(task.memory_types)
            course.steps = step_records(state, task)
            if company.alone and state.measures(task.kind):
                peak.start(idle_bytes=state.pools.memory("cpu").idle)
            began = time.monotonic()
            _carry_out(state, task, course)
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
            return Failed(str(error) or type(error).__name__, key=_failure_key(error)), trace
        peak.stop()
        measured = peak.nbytes if company.alone else None
        done = Done(
            host_peak_bytes=measured,
            duration_s=time.monotonic() - began - course.waited_s,
            attributed=measured is not None,
        )
        return done, ""


def _carry_out(state: WorkerState, task: AttemptTask, course: _Course) -> None:
    with (
        state.reserved(task.job_id, device_bytes=task.device_bytes, host_bytes=task.host_bytes),
        contextlib.ExitStack() as leases,
        held_by(task.job_id),
    ):
        began = time.monotonic()
        host_pool = state.pools.pool("numpy", "cpu")
        with host_pool.acquire(task.source.shape, task.source.dtype, job=task.job_id) as stack:
            read_stack(task.source, stack)
            course.times["read_s"] = time.monotonic() - began
            ready = time.monotonic()
            with state.compute:
                began = time.monotonic()
                course.waited_s = began - ready
                result = _compute(state, task, stack, leases)
                course.times["compute_s"] = time.monotonic() - began
            began = time.monotonic()
            write_stack(
                Path(task.output.path),
                result,
                format=task.output.format,
                physical_size_um=task.source.physical_size_um,
                channel_name=task.source.channel_name,
                provenance={
                    **task.output.provenance,
                    "job": task.job_id,
                    "steps": [asdict(record) for record in course.steps],
                    "blocks": task.split.blocks if task.split else 1,
                },
                overwrite=task.output.overwrite,
            )
            course.times["write_s"] = time.monotonic() - began
            course.result = result.shape, result.dtype.name
            # The name bound by `as` is an alias too: with it the buffer would stay taken until the return.
            del result, stack


def _compute(
    state: WorkerState, task: AttemptTask, stack: NDArray[Any], leases: contextlib.ExitStack
) -> NDArray[Any]:
    steps = [
        ChainStep(state.step(spec), memory_type, _place(state, memory_type))
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

    result: NDArray[Any]
    if task.split is None:
        result = run_chain(stack, steps, make_context=make_context)
    else:
        result = run_chain_in_blocks(
            stack, steps, task.split, make_context=make_context, make_output=make_output
        )
    return result


def _place(state: WorkerState, memory_type: str) -> Any:
    # A step for NumPy in a GPU's chain runs in host memory; every other one on the device.
    return "cpu" if memory_type == "numpy" else state.gpu_id(memory_type)


def _of_device(error: BaseException) -> bool:
    """Whether it is device memory that ran out: of the MemoryErrors, ours that says so, and CuPy's."""
    if isinstance(error, OutOfDeviceMemoryError) or not isinstance(error, MemoryError):
        return True
    return type(error).__module__.partition(".")[0] == "cupy"


def _failure_key(error: BaseException) -> str:
    """What equal failures have in common: type and place of the innermost cause, not its figures."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
    return f"{type(error).__qualname__} at {place}"
