"""What an attempt leaves behind, whatever its end: its array, output and report, and nothing reserved."""

import errno
import pickle
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from memcore import backend_of
from pools import ArrayPool, PoolExhaustedError
from pools.virtual import VirtualDeviceMemory
from scheduler.core.events import Cancelled, Done, Failed, OutOfMemory, Refused, WorkerDied
from scheduler.core.model import Device, DeviceKind
from scheduler.execution import attempt as attempt_module
from scheduler.execution import batch as batch_module
from scheduler.execution import writing
from scheduler.execution.attempt import run_attempt
from scheduler.execution.batch import Batch, run_batch
from scheduler.execution.failures import of_device, why_broken
from scheduler.execution.messages import Ended, Released, heard
from scheduler.execution.run_settings import WorkerSettings
from scheduler.execution.runs_here import set_worker, unset_worker, working_for
from scheduler.execution.task import AttemptReport, AttemptTask, OutputRecord, OutputTarget, StepRecord
from scheduler.execution.worker import WorkerState
from scheduler.host.reservations import Reservations
from scheduler.steps.resolve import StepSpec

TAG = f"test-ends-{secrets.token_hex(3)}"
HOST = Device("CPU-localhost", "cpu", DeviceKind.CPU, 1 << 62)
GPU = Device(f"VIRTUAL-{TAG}-0", "virtual0", DeviceKind.VIRTUAL, 1 << 20)
TOPIC = "topic"
STACK = np.full((2, 5, 7), 3, np.uint8)
MakeTask = Callable[..., AttemptTask]


@pytest.fixture
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WorkerState]:
    """This process as a CPU's worker, or by parameter a virtual GPU's; this thread as one of its attempts."""
    device = getattr(request, "param", HOST)
    settings = WorkerSettings(TAG, str(tmp_path), (GPU, HOST), virtual_tag=TAG, topic=TOPIC)
    made = WorkerState(settings, device, HOST)
    with working_for(made):
        yield made
    made.close()
    VirtualDeviceMemory(GPU.uuid, GPU.total_bytes).unlink()


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """A task whose only step has this body."""

    def make(body: str = "return stack", memory_type: str = "numpy", **changes: Any) -> AttemptTask:
        (tmp_path / "ending.py").write_text(
            "from scheduler.execution.runs_here import current_worker\n"
            "kept = []\n"
            "def step(stack, *, context):\n"
            f"    {body}\n"
        )
        spec = StepSpec("ending:step", declare={"input": memory_type}, search_path=(str(tmp_path),))
        output = OutputTarget(str(tmp_path / "out.tif"), "tiff", False, {})
        task = AttemptTask("a", "kind", 1, STACK.copy(), (spec,), (memory_type,), 0, 1000, output)
        return replace(task, **changes)

    return make


def reserved(device: Device) -> list[str]:
    """The jobs with bytes of the device."""
    with Reservations() as table:
        return [row.job for row in table.rows() if (row.device, row.run) == (device.uuid, TAG)]


def array_of(task: AttemptTask) -> NDArray[Any]:
    """The array that a task which asks for it returns."""
    _, returned = run_attempt(task)
    assert returned is not None
    return returned.arrays["stack"]


def left_over(folder: Path) -> set[str]:
    """Files beside the module and the logs: outputs, whole or in part."""
    return {path.name for path in folder.iterdir() if path.suffix == ".tif" or "part" in path.name}


# done


def test_what_was_done_is_reported(state: WorkerState, make_task: MakeTask, tmp_path: Path) -> None:
    report, returned = run_attempt(make_task("return stack + 1"))
    assert isinstance(report.outcome, Done)
    assert returned is None
    assert report.result == ((2, 5, 7), "uint8")
    assert report.outputs == (OutputRecord("stack", str(tmp_path / "out.tif"), (2, 5, 7), "uint8"),)
    assert report.steps == (StepRecord("step", "ending:step", {}, "numpy", np.__version__, "cpu"),)
    assert set(report.times) == {"read_s", "setup_s", "compute_s", "write_s"}
    ((began, ended),) = report.on_device
    assert began <= ended
    assert (report.disk_full, report.retire) == ("", "")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), STACK + 1)
    assert reserved(HOST) == []


def test_an_array_that_was_asked_for_is_no_memory_of_the_pool(
    state: WorkerState, make_task: MakeTask
) -> None:
    task = make_task(returns_array=True, output=None)
    array = array_of(task)
    second = array_of(replace(task, job_id="b", source=STACK * 2))
    hits = state.pools.pool("numpy", "cpu").stats().hits
    assert hits > 0  # the second one had the first one's memory
    np.testing.assert_array_equal(array, STACK, strict=True)
    assert array.base is None
    np.testing.assert_array_equal(second, STACK * 2, strict=True)


def test_a_step_that_works_in_place_does_not_reach_the_array_that_was_sent(
    state: WorkerState, make_task: MakeTask
) -> None:
    task = make_task("stack *= 2; return stack", returns_array=True, output=None)
    np.testing.assert_array_equal(array_of(task), STACK * 2)
    np.testing.assert_array_equal(task.source, STACK)


def test_the_first_two_of_a_kind_are_measured(state: WorkerState, make_task: MakeTask) -> None:
    task = make_task(output=None)
    peaks = []
    for job_id in "abc":
        outcome = run_attempt(replace(task, job_id=job_id))[0].outcome
        assert isinstance(outcome, Done)
        peaks.append((outcome.host_peak_bytes is not None, outcome.attributed))
    assert peaks == [(True, True), (True, True), (False, False)]


def test_beside_another_attempt_nothing_is_measured(state: WorkerState, make_task: MakeTask) -> None:
    with state.attempts.begin("other", 1):
        outcome = run_attempt(make_task(output=None))[0].outcome
    assert isinstance(outcome, Done)
    assert (outcome.host_peak_bytes, outcome.attributed) == (None, False)


def test_arrays_that_a_step_keeps_are_taken_back_and_told_of(
    state: WorkerState, make_task: MakeTask, tmp_path: Path
) -> None:
    lease = "kept.append(context.pool.lease((1, 2, 3), 'uint8')); return stack"
    run_attempt(make_task(lease, output=None))
    assert "leak: " in (tmp_path / "logs" / "a.log").read_text()


# cancelled


def test_an_attempt_that_is_cancelled_before_it_begins_does_nothing(
    state: WorkerState, make_task: MakeTask, tmp_path: Path
) -> None:
    state.attempts.cancel("a", 1)
    report, _ = run_attempt(make_task("kept.append(1); return stack"))
    assert report.outcome == Cancelled("cancelled before it began")
    assert left_over(tmp_path) == set()


def test_an_attempt_that_is_cancelled_while_it_computes_writes_nothing(
    state: WorkerState, make_task: MakeTask, tmp_path: Path
) -> None:
    report, returned = run_attempt(make_task("current_worker().attempts.cancel('a', 1); return stack"))
    assert report.outcome == Cancelled("stopped before it writes")
    assert returned is None
    assert left_over(tmp_path) == set()
    assert reserved(HOST) == []


# failed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_fault_of_the_job(
    state: WorkerState, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise RuntimeError("can't write") from OSError(number, "no room", str(path))

    monkeypatch.setattr(writing, "write_stack", full)
    report, _ = run_attempt(make_task())
    assert report.disk_full.startswith("no space left for ")
    assert report.disk_full.endswith("out.tif")
    assert report.outcome == Refused(f"{report.disk_full}: can't write")
    assert reserved(HOST) == []


def test_shared_memory_that_is_full_is_no_fault_of_the_job(
    state: WorkerState, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL

    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(state, "reserved", full)
    report, _ = run_attempt(make_task())
    assert report.disk_full == "no space left for the reservation table"


def test_any_other_trouble_with_a_file_is_the_jobs(
    state: WorkerState, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "not yours", str(path))

    monkeypatch.setattr(writing, "write_stack", refused)
    report, _ = run_attempt(make_task())
    assert isinstance(report.outcome, Failed)
    assert report.disk_full == ""


def test_equal_failures_have_one_key_whatever_their_figures(state: WorkerState, make_task: MakeTask) -> None:
    task = make_task("raise ValueError(f'no {context.job_id}')", output=None)
    keys, errors = [], []
    for job_id in "ab":
        outcome = run_attempt(replace(task, job_id=job_id))[0].outcome
        assert isinstance(outcome, Failed)
        keys.append(outcome.key)
        errors.append(outcome.error)
    assert keys[0] == keys[1]
    assert keys[0].startswith("ValueError at ")
    assert keys[0].endswith("ending.py:4")
    assert ["no a" in errors[0], "no b" in errors[1]] == [True, True]


def test_after_an_out_of_memory_as_much_as_was_reserved_is_given_back(
    state: WorkerState, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[tuple[Any, int]] = []
    pinned: list[int] = []

    def reclaim(device: Any, nbytes: int) -> int:
        given_back.append((device, nbytes))
        pinned.append(state.pools.memory("cpu").in_use)
        return 0

    monkeypatch.setattr(state.pools, "reclaim", reclaim)
    report, _ = run_attempt(make_task("raise MemoryError('no more')"))
    assert isinstance(report.outcome, OutOfMemory)
    assert report.outcome.on_host
    assert given_back == [("cpu", 1000)]
    assert pinned == [0]  # the traceback is gone, and with it the last hold on the stack


def test_a_process_that_should_be_replaced_says_so_with_the_report(
    state: WorkerState, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "reason_to_retire", lambda: "its memory keeps growing")
    assert run_attempt(make_task())[0].retire == "its memory keeps growing"


def test_a_gpu_that_a_failure_has_broken_ends_its_process(
    state: WorkerState, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "why_broken", lambda *_: "cupy can't use gpu0 any more")
    report, _ = run_attempt(make_task("raise RuntimeError('illegal address')"))
    assert isinstance(report.outcome, WorkerDied)
    assert report.outcome.blame
    assert report.outcome.reason.startswith("cupy can't use gpu0 any more, after: step step failed")
    assert report.retire == "cupy can't use gpu0 any more"
    assert state.attempts.leaving == "cupy can't use gpu0 any more"
    # The next one to fail there isn't to blame for it.
    second, _ = run_attempt(make_task("raise RuntimeError('illegal address')", job_id="b"))
    assert isinstance(second.outcome, WorkerDied)
    assert not second.outcome.blame


def test_a_gpu_whose_failures_show_only_in_values_is_found_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # JAX works asynchronously: a transfer begins without complaint, and waiting for a device tells nothing.
    def unreadable(_: object) -> None:
        raise RuntimeError("INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS")

    library = SimpleNamespace(
        from_host=lambda array, place: array, to_host=unreadable, synchronize=lambda _: None
    )
    monkeypatch.setattr("scheduler.execution.failures.backend_of", lambda _: library)
    on_cuda = SimpleNamespace(
        device=Device("GPU-1", "gpu0", DeviceKind.CUDA, 1 << 30), gpu_id=lambda _: 0
    )
    why = why_broken(on_cuda, ["jax"])  # type: ignore[arg-type]
    assert why == "jax can't use gpu0 any more: RuntimeError: INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS"


@pytest.mark.parametrize("device", [0, "cpu"])
def test_a_pool_that_is_exhausted_says_whose_memory_ran_out(device: int | str) -> None:
    pool = ArrayPool(1000, device=device)
    with pytest.raises(PoolExhaustedError, match="1001 bytes") as caught:
        pool.acquire(1001, "uint8")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert of_device(again) is (device == 0)


# as a Dask task


@pytest.fixture
def told(state: WorkerState, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the worker tells the driver."""
    messages: list[Any] = []
    worker = SimpleNamespace(
        id="w1", log_event=lambda topic, event: messages.append((topic, heard((0.0, event))))
    )
    monkeypatch.setattr(batch_module, "get_worker", lambda: worker)
    set_worker("w1", state)
    yield messages
    unset_worker("w1", TOPIC)


def run_alone(task: AttemptTask, topic: str = TOPIC) -> object:
    return run_batch(Batch({(task.job_id, task.number): task}), topic)


def test_the_end_is_told_in_the_runs_topic(told: list[Any], make_task: MakeTask) -> None:
    assert run_alone(make_task()) == {}
    ((topic, ended),) = told
    assert topic == TOPIC
    assert isinstance(ended, Ended)
    assert (ended.job_id, ended.number) == ("a", 1)
    assert isinstance(ended.report.outcome, Done)


def test_the_end_is_told_before_nobody_is_here_any_more(
    told: list[Any], state: WorkerState, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[bool] = []

    def look(*_: Any) -> None:
        here.append(not state.attempts.wait_for_none(0.0))

    monkeypatch.setattr(batch_module, "tell_end", look)
    run_alone(make_task())
    assert here == [True]
    assert state.attempts.wait_for_none(0.0)


def test_a_worker_that_leaves_begins_nothing_and_blames_nobody(
    told: list[Any], state: WorkerState, make_task: MakeTask, tmp_path: Path
) -> None:
    state.attempts.leave("preempted")
    assert run_alone(make_task()) == {}
    ((_, ended),) = told
    assert isinstance(ended.report, AttemptReport)
    assert ended.report.outcome == WorkerDied("preempted", blame=False)
    assert left_over(tmp_path) == set()


def test_a_worker_of_another_run_takes_nothing(told: list[Any], make_task: MakeTask) -> None:
    with pytest.raises(RuntimeError, match="serves this run no more"):
        run_alone(make_task(), "another topic")
    assert told == []


@pytest.mark.skipif(not backend_of("torch").installed(), reason="needs torch")
@pytest.mark.parametrize("state", [GPU], indirect=True)
def test_a_device_is_given_back_and_that_is_told_before_the_output_is_written(
    told: list[Any], state: WorkerState, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def look(*_: Any, **__: Any) -> None:
        seen.extend([reserved(GPU), reserved(HOST), [type(message) for _, message in told]])

    monkeypatch.setattr(writing, "write_stack", look)
    charged = "assert current_worker().virtual_memory().charges(); return stack"
    run_alone(make_task(charged, "torch", device_bytes=100))
    assert seen == [[], ["a"], [Released]]
    assert [type(message) for _, message in told] == [Released, Ended]
    assert reserved(HOST) == []
