"""A worker runs the attempts of a batch: one computes at a time, and what waits can be given back."""

import asyncio
import itertools
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scheduler.core.events import Done, Failed, WorkerDied
from scheduler.core.model import Device, DeviceKind
from scheduler.execution import batch as batch_module
from scheduler.execution.activity import BEHIND, WAITS, CancelledAttemptError, GivenBackError
from scheduler.execution.batch import Batch, run_batch
from scheduler.execution.kinds import MEASURED_ATTEMPTS
from scheduler.execution.messages import SMALL_BYTES, Ended, heard
from scheduler.execution.run_settings import WorkerSettings
from scheduler.execution.runs_here import set_worker, unset_worker
from scheduler.execution.task import AttemptKey, AttemptReport, AttemptTask, OutputTarget
from scheduler.execution.worker import WorkerState
from scheduler.execution.worker_plugin import give_back_here
from scheduler.steps.resolve import StepSpec
from tests.scheduler.execution.fake_cluster import keys

TOPIC = "topic"
HOST = Device("CPU-localhost", "cpu", DeviceKind.CPU, 1 << 62)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[WorkerState]:
    settings = WorkerSettings(f"batch-{secrets.token_hex(3)}", str(tmp_path), (HOST,), topic=TOPIC)
    made = WorkerState(settings, HOST, HOST)
    for _ in range(MEASURED_ATTEMPTS):
        made.kinds.measures("kind")
    yield made
    made.close()


@pytest.fixture
def told(state: WorkerState, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Ended]]:
    """The ends that the worker tells."""
    monkeypatch.setattr("scheduler.execution.kinds.time", CLOCK)
    messages: list[Ended] = []

    def hear(_topic: str, event: Any) -> None:
        message = heard((0.0, event))
        assert isinstance(message, Ended)
        messages.append(message)

    worker = SimpleNamespace(id="w1", log_event=hear)
    monkeypatch.setattr(batch_module, "get_worker", lambda: worker)
    set_worker("w1", state)
    yield messages
    unset_worker("w1", TOPIC)


SEEN: ContextVar[str] = ContextVar("seen", default="")


class Clock:
    """Stands for `time` where kinds are measured: a step's own word, whatever else the machine is doing."""

    computed = waited = 0.0

    def thread_time(self) -> float:
        return self.computed

    def monotonic(self) -> float:
        return self.computed + self.waited


CLOCK = Clock()
STEP = """
import threading
import time
from tests.scheduler.execution.test_run_batch import CLOCK, SEEN
begun, spans, threads, contexts = [], [], set(), set()

def step(stack, *, context):
    begun.append(context.job_id)
    threads.add(threading.current_thread())
    contexts.add(SEEN.get())
    began = time.monotonic()
    time.sleep(0.02)
    CLOCK.waited += 0.02
    spans.append((began, time.monotonic()))
    if context.job_id == "bad":
        raise ValueError("bad")
    if context.job_id == "panic":
        raise BaseException("panic")
    return stack

def busy(stack):
    threads.add(threading.current_thread())
    began = time.thread_time()
    while time.thread_time() - began < 0.05:
        pass
    CLOCK.computed += 0.05
    return stack

class Kept:
    def setup(self, context):
        self.thread = threading.current_thread()

    def __call__(self, stack):
        time.sleep(0.02)
        assert threading.current_thread() is self.thread
        return stack
"""


@pytest.fixture
def make_batch(tmp_path: Path) -> Callable[..., Batch]:
    (tmp_path / "batched.py").write_text(STEP)

    def make(*names: str, step: str = "step", **changes: Any) -> Batch:
        spec = StepSpec(f"batched:{step}", declare={"input": "numpy"}, search_path=(str(tmp_path),))
        stack = np.full((2, 5, 7), 3, np.uint8)
        tasks = [AttemptTask(name, "kind", 1, stack, (spec,), ("numpy",), 0, 1000, None) for name in names]
        return Batch({(task.job_id, 1): replace(task, **changes) for task in tasks})

    return make


def seen() -> Any:
    return sys.modules["batched"]


def waiting(state: WorkerState) -> list[str]:
    """The attempts in the process that wait for their turn."""
    return [each.job_id for each in list(state.attempts._running.values()) if each.doing == WAITS]


def test_all_of_a_batch_run_and_one_computes_at_a_time(
    told: list[Ended], make_batch: Callable[..., Batch]
) -> None:
    assert run_batch(make_batch(*"abcdef"), TOPIC) == {}
    assert sorted(ended.job_id for ended in told) == list("abcdef")
    assert all(isinstance(ended.report.outcome, Done) for ended in told)
    spans = sorted(seen().spans)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert len(seen().threads) == 2


def test_both_threads_have_the_tasks_own_context(told: list[Ended], make_batch: Callable[..., Batch]) -> None:
    SEEN.set("Dask's")
    run_batch(make_batch(*"abcdef"), TOPIC)
    assert len(seen().threads) == 2
    assert seen().contexts == {"Dask's"}


def test_what_a_steps_setup_has_made_is_used_in_its_own_thread(
    told: list[Ended], make_batch: Callable[..., Batch]
) -> None:
    run_batch(make_batch(*"abcdef", step="Kept"), TOPIC)
    assert [ended.report.outcome for ended in told if not isinstance(ended.report.outcome, Done)] == []
    assert len(told) == 6


def test_where_no_more_threads_are_to_be_had_one_does_it_all(
    told: list[Ended], make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    run_batch(make_batch("a", "b", "c"), TOPIC)
    assert [ended.job_id for ended in told] == ["a", "b", "c"]


def test_an_error_that_is_no_exception_ends_that_attempt_alone(
    told: list[Ended], make_batch: Callable[..., Batch]
) -> None:
    run_batch(make_batch("a", "panic", "c", "d"), TOPIC)
    outcomes = {ended.job_id: ended.report.outcome for ended in told}
    panic = outcomes.pop("panic")
    assert isinstance(panic, Failed)
    assert "panic" in panic.error
    assert all(isinstance(outcome, Done) for outcome in outcomes.values())
    assert len(outcomes) == 3


def test_what_waits_behind_a_long_one_is_given_back_and_that_one_is_not(
    told: list[Ended], state: WorkerState, make_batch: Callable[..., Batch]
) -> None:
    worker: Any = batch_module.get_worker()
    running = threading.Thread(target=run_batch, args=(make_batch(*"abcdef"), TOPIC))
    with state.attempts.begin("long", 1) as long, state.attempts.turn(long):
        long.turn_to("computes")
        running.start()
        deadline = time.monotonic() + 30.0
        while len(waiting(state)) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        asyncio.run(give_back_here([*keys(*"abcdef"), ("long", 1)], TOPIC, worker))
        running.join(30.0)
        assert not running.is_alive(), "those that waited for their turn have gone too"
    given = {ended.job_id for ended in told if ended.report.outcome == WorkerDied(BEHIND, blame=False)}
    assert given == set("abcdef")
    assert seen().begun == []


def test_the_end_of_one_that_has_just_gone_is_told_before_that_it_is_given_back(
    told: list[Ended], state: WorkerState
) -> None:
    async def ask() -> None:
        loop = asyncio.get_running_loop()
        # As a thread tells it through Dask, while the loop is busy.
        loop.call_soon_threadsafe(told.append, Ended("a", 1, AttemptReport(Done(), 1)))
        worker: Any = batch_module.get_worker()
        await give_back_here(keys("a"), TOPIC, worker)

    asyncio.run(ask())
    assert [type(ended.report.outcome) for ended in told] == [Done, WorkerDied]


def test_one_that_is_asked_back_on_its_way_in_goes_back_too(state: WorkerState) -> None:
    attempts = state.attempts
    with attempts.begin("long", 1) as long, attempts.turn(long), attempts.present("a", 1):
        assert not attempts.give_back("a", 1)
        with attempts.begin("a", 1) as late, pytest.raises(GivenBackError), attempts.turn(late):
            pass
    assert not attempts._refused
    assert not attempts._asked_back


def test_one_that_waits_for_its_turn_is_cancelled_at_once(state: WorkerState) -> None:
    attempts = state.attempts
    with attempts.begin("long", 1) as long, attempts.turn(long), attempts.begin("a", 1) as waits:
        stopped = threading.Timer(0.05, attempts.cancel, ("a", 1))
        stopped.start()
        with pytest.raises(CancelledAttemptError), attempts.turn(waits):
            pass
    with attempts.begin("b", 1) as next_one, attempts.turn(next_one):
        assert attempts._computing == 1


def test_the_next_one_is_ready_while_one_computes(
    told: list[Ended], state: WorkerState, make_batch: Callable[..., Batch]
) -> None:
    with state.attempts.begin("other", 1) as other, state.attempts.turn(other):
        other.turn_to("computes")
        running = threading.Thread(target=run_batch, args=(make_batch("a", "b", "c"), TOPIC))
        running.start()
        deadline = time.monotonic() + 30.0
        while len(waiting(state)) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        ready = waiting(state)
    running.join(30.0)
    assert ready == ["a", "b"]
    assert len(told) == 3


def test_kinds_that_are_still_measured_are_alone_one_after_another(
    told: list[Ended], state: WorkerState, make_batch: Callable[..., Batch]
) -> None:
    run_batch(make_batch("a", "b", kind="new"), TOPIC)
    assert [ended.job_id for ended in told] == ["a", "b"]
    for ended in told:
        assert isinstance(ended.report.outcome, Done)
        assert ended.report.outcome.attributed
    assert len(seen().threads) == 1


def test_what_computes_all_the_time_and_uses_no_file_has_one_thread(
    told: list[Ended], state: WorkerState, make_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    run_batch(make_batch("a", step="busy"), TOPIC)
    assert state.kinds.mostly_computes("kind")
    run_batch(make_batch(*"bcdef", step="busy"), TOPIC)
    assert seen().threads == {threading.current_thread()}
    run_batch(make_batch("z", step="step"), TOPIC)
    assert not state.kinds.mostly_computes("kind"), "it sleeps"
    run_batch(make_batch("y", step="busy"), TOPIC)
    output = OutputTarget(str(tmp_path / "out.tif"), "tiff", overwrite=True, provenance={})
    seen().threads.clear()
    run_batch(make_batch(*"ghijk", step="busy", output=output), TOPIC)
    assert len(seen().threads) == 2, "one may write while another computes"
    assert len(told) == 13
    assert all(isinstance(ended.report.outcome, Done) for ended in told)


def test_where_several_compute_at_a_time_a_batch_has_two_threads(
    told: list[Ended], state: WorkerState, make_batch: Callable[..., Batch]
) -> None:
    state.device = replace(state.device, slots=2)
    run_batch(make_batch("a", step="busy"), TOPIC)
    seen().threads.clear()
    run_batch(make_batch(*"bcdef", step="busy"), TOPIC)
    assert len(seen().threads) == 2


def test_a_failure_is_that_jobs_alone(told: list[Ended], make_batch: Callable[..., Batch]) -> None:
    run_batch(make_batch("a", "bad", "c"), TOPIC)
    outcomes = {ended.job_id: ended.report.outcome for ended in told}
    assert isinstance(outcomes["bad"], Failed)
    assert isinstance(outcomes["a"], Done)
    assert isinstance(outcomes["c"], Done)


def test_what_cannot_be_unpickled_fails_alone(told: list[Ended], make_batch: Callable[..., Batch]) -> None:
    batch = make_batch("a", "b", "c")
    run_batch(Batch({**batch.attempts, ("b", 1): b"no pickle"}), TOPIC)
    outcomes = {ended.job_id: ended.report.outcome for ended in told}
    assert isinstance(outcomes["b"], Failed)
    assert outcomes["b"].error.startswith("the worker can't run the attempt: UnpicklingError")
    assert isinstance(outcomes["a"], Done)
    assert isinstance(outcomes["c"], Done)


def test_an_end_that_cannot_be_told_is_a_failure_of_that_job(
    told: list[Ended], make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell_end = batch_module.tell_end

    def refuse(worker: Any, topic: str, key: AttemptKey, report: Any, returned: Any) -> Any:
        if key == ("b", 1) and isinstance(report.outcome, Done):
            raise TypeError("can't pickle it")
        return tell_end(worker, topic, key, report, returned)

    monkeypatch.setattr(batch_module, "tell_end", refuse)
    run_batch(make_batch("a", "b", "c"), TOPIC)
    outcomes = {ended.job_id: ended.report.outcome for ended in told}
    assert outcomes["b"] == Failed("the worker can't run the attempt: TypeError: can't pickle it")
    assert sum(isinstance(each, Done) for each in outcomes.values()) == 2


def test_a_worker_that_leaves_gives_the_rest_of_the_batch_back(
    told: list[Ended], state: WorkerState, make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_attempt = batch_module.run_attempt

    def leave_in_the_first(task: AttemptTask, **rest: Any) -> Any:
        state.attempts.leave("preempted")
        return run_attempt(task, **rest)

    monkeypatch.setattr(batch_module, "run_attempt", leave_in_the_first)
    run_batch(make_batch(*"abcd", kind="new"), TOPIC)
    outcomes = [ended.report.outcome for ended in told]
    assert isinstance(outcomes[0], Done)
    assert outcomes[1:] == [WorkerDied("preempted", blame=False)] * 3


def test_large_arrays_come_back_by_the_task_each_under_its_attempt(
    told: list[Ended], make_batch: Callable[..., Batch]
) -> None:
    big = np.arange(SMALL_BYTES + 2, dtype=np.uint8).reshape(1, 1, -1)
    results = run_batch(make_batch("a", "b", source=big, returns_array=True), TOPIC)
    assert results.keys() == set(keys("a", "b"))
    for returned in results.values():
        np.testing.assert_array_equal(returned.arrays["stack"], big, strict=True)
