"""Stack jobs as futures: the same on the embedded cluster and on Dask's, with processes and with threads."""

import concurrent.futures
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from scheduler import JobFailedError, StackJob, StackScheduler
from scheduler.core.instructions import JobOutcome
from scheduler.execution.journal import Journal
from scheduler.execution.stack_scheduler import Step
from scheduler.execution.task import AttemptTask
from scheduler.images.errors import OutputError
from scheduler.images.sources import stack_of_files
from tests.scheduler.execution import tried_steps
from tests.scheduler.execution.small_clusters import (
    DEADLINE_S,
    Gate,
    own_estimates,
    scheduler_on,
    stack,
    step,
    until,
)

DOUBLED = step("doubled")


@pytest.fixture(scope="module", autouse=True)
def _quiet_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_estimates(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module", params=["embedded", "processes", "threads"])
def scheduler(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StackScheduler]:
    """One scheduler for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scheduler.execution.devices.usable_cores", lambda: 2)
        with scheduler_on(request.param, tmp_path_factory.mktemp("scheduler")) as made:
            yield made


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def outcomes(scheduler: StackScheduler, job: str) -> list[str]:
    with_it = Journal.open_readonly(scheduler.run_dir / "journal.sqlite")
    return with_it.outcomes(job)


@pytest.mark.parametrize("given", [stack(), stack(shape=(4, 32, 64))], ids=["small", "fetched"])
def test_a_job_comes_back_with_its_array_and_how_it_was_done(
    scheduler: StackScheduler, given: np.ndarray
) -> None:
    result = scheduler.submit(StackJob(given, [DOUBLED]), returns="array").result(DEADLINE_S)
    assert result.outcome is JobOutcome.DONE
    assert result.check() is result
    np.testing.assert_array_equal(result.arrays["stack"], given * 2, strict=True)
    assert result.outputs == ()
    assert result.device.startswith("cpu")
    assert result.attempts == 1
    assert result.reason == f"done on {result.device}"


def test_an_array_comes_back_only_if_it_is_asked_for(scheduler: StackScheduler) -> None:
    assert scheduler.submit(StackJob(stack(), [DOUBLED])).result(DEADLINE_S).arrays == {}


def test_the_array_that_comes_back_is_a_copy_of_ones_own(scheduler: StackScheduler) -> None:
    """Here the step's result is in memory that the worker's pool gives to the next job."""
    jobs = [StackJob(stack(value), [step("pooled")]) for value in (1.0, 100.0, 200.0)]
    first, *others = (
        scheduler.submit(job, returns="array").result(DEADLINE_S).check().arrays["stack"] for job in jobs
    )
    np.testing.assert_array_equal(first, stack(1.0), strict=True)
    assert first.flags.writeable
    assert first.flags.aligned
    assert not any(np.shares_memory(first, other) for other in others)


@pytest.mark.parametrize(
    "given",
    [
        stack(),
        np.asfortranarray(stack()),
        stack(shape=(4, 6, 10))[::-2, ::2, ::-2],
        np.frombuffer(stack().tobytes(), np.float32).reshape(2, 3, 5),
    ],
    ids=["plain", "Fortran order", "strided", "read-only"],
)
def test_an_array_that_goes_in_stays_as_it_is(scheduler: StackScheduler, given: np.ndarray) -> None:
    before = given.copy()
    done = scheduler.submit(StackJob(given, [DOUBLED]), returns="array").result(DEADLINE_S).check()
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(done.arrays["stack"], before * 2, strict=True)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64", "complex64", "bool", "int64"])
def test_every_dtype_of_numbers_goes_in_and_comes_back(scheduler: StackScheduler, dtype: str) -> None:
    given = (stack() > 3).astype(dtype)
    done = scheduler.submit(StackJob(given, [step("paused")]), returns="array").result(DEADLINE_S).check()
    np.testing.assert_array_equal(done.arrays["stack"], given, strict=True)


COMPARED = {**step("compared"), "inputs": ["image", "nuclei"], "outputs": ["sum", "image"]}


def test_several_stacks_go_in_and_come_out_with_a_table(scheduler: StackScheduler, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "nuclei.tif", stack(3.0))
    paths = {"sum": tmp_path / "sum.ome.tif", "image": tmp_path / "image.ome.tif"}
    inputs = {"image": stack(), "nuclei": tmp_path / "nuclei.tif"}
    job = StackJob(inputs, [DOUBLED, COMPARED], output=paths)
    done = scheduler.submit(job, returns="array").result(DEADLINE_S).check()
    total = 2 * (stack() + stack(3.0))
    assert list(done.arrays) == ["sum", "image"]
    np.testing.assert_array_equal(done.arrays["sum"], total, strict=True)
    np.testing.assert_array_equal(done.arrays["image"], 2 * stack(), strict=True)
    assert done.tables == {"compared": {"mean": [2 * stack().mean(), 2 * stack(3.0).mean()]}}
    assert done.outputs == (*paths.values(), tmp_path / "sum.csv")
    np.testing.assert_array_equal(tifffile.imread(paths["sum"]), total)
    assert (tmp_path / "sum.csv").read_text().split() == ["mean", *map(str, done.tables["compared"]["mean"])]


def test_a_steps_stacks_are_named_and_not_chosen_by_fields(scheduler: StackScheduler) -> None:
    chosen = {**step("compared"), "inputs": {"image": {"channel": 1}, "nuclei": "nuclei"}}
    with pytest.raises(ValueError, match=r"inputs\.image: the job's inputs have names here"):
        scheduler.submit(StackJob({"image": stack(), "nuclei": stack()}, [chosen]))


def test_map_gives_futures_in_the_order_of_its_jobs(scheduler: StackScheduler) -> None:
    jobs = [StackJob(stack(value), [DOUBLED], name=f"map-{value}") for value in range(12)]
    futures = scheduler.map(iter(jobs), returns="array")
    assert [future.name for future in futures] == [job.name for job in jobs]
    for value, future in enumerate(futures):
        found = future.result(DEADLINE_S).check().arrays["stack"]
        np.testing.assert_array_equal(found, stack(value) * 2, strict=True)


def test_no_jobs_give_no_futures(scheduler: StackScheduler) -> None:
    assert scheduler.map([]) == []


def test_futures_come_in_the_order_in_which_their_jobs_end(scheduler: StackScheduler, gate: Gate) -> None:
    gate.let_go("order-0")
    # The first of its kind runs alone.
    scheduler.submit(StackJob(stack(), [gate.step], name="order-0")).result(DEADLINE_S)
    jobs = [StackJob(stack(), [gate.step], name=name) for name in ("order-a", "order-b")]
    futures = scheduler.map(jobs)
    gate.wait_for("order-a", "order-b")
    ended = scheduler.as_completed(futures, timeout=DEADLINE_S)
    gate.let_go("order-b")
    assert next(ended).name == "order-b"
    gate.let_go("order-a")
    assert [future.name for future in ended] == ["order-a"]


def test_waiting_for_what_does_not_end_times_out(scheduler: StackScheduler, gate: Gate) -> None:
    future = scheduler.submit(StackJob(stack(), [gate.step], name="endless"))
    with pytest.raises(TimeoutError):
        next(scheduler.as_completed([future], timeout=0.0))
    gate.let_go("endless")
    assert future.result(DEADLINE_S).check()


def test_futures_are_those_of_the_standard_library(scheduler: StackScheduler) -> None:
    futures = scheduler.map([StackJob(stack(), [DOUBLED]) for _ in range(3)])
    called: list[str] = []
    futures[0].add_done_callback(lambda future: called.append(type(future).__name__))
    done, left = concurrent.futures.wait(futures, DEADLINE_S)
    assert (done, left) == (set(futures), set())
    until(lambda: called == ["StackFuture"])


def test_a_callback_may_submit_the_next_job(scheduler: StackScheduler) -> None:
    later: concurrent.futures.Future[np.ndarray] = concurrent.futures.Future()

    def again(future: concurrent.futures.Future) -> None:  # type: ignore[type-arg]  # as the library calls it
        array = future.result().arrays["stack"]
        second = scheduler.submit(StackJob(array, [DOUBLED]), returns="array")
        second.add_done_callback(lambda ended: later.set_result(ended.result().check().arrays["stack"]))

    scheduler.submit(StackJob(stack(), [DOUBLED]), returns="array").add_done_callback(again)
    np.testing.assert_array_equal(later.result(DEADLINE_S), stack() * 4, strict=True)


def test_a_callback_that_takes_its_time_holds_up_no_other_job(scheduler: StackScheduler) -> None:
    seen: concurrent.futures.Future[bool] = concurrent.futures.Future()

    def wait_for_the_other(_: object) -> None:
        status = scheduler.status
        until(lambda: (now := status()) is not None and now.done + now.failed >= before + 2)
        seen.set_result(True)

    now = scheduler.status()
    before = 0 if now is None else now.done + now.failed
    scheduler.submit(StackJob(stack(), [DOUBLED])).add_done_callback(wait_for_the_other)
    other = scheduler.submit(StackJob(stack(), [step("paused")]))
    assert seen.result(DEADLINE_S)
    assert other.result(DEADLINE_S).check()


def test_a_callback_that_raises_is_logged_and_the_others_are_called(
    scheduler: StackScheduler, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []

    def fail(_: object) -> None:
        raise ValueError("not my day")

    future = scheduler.submit(StackJob(stack(), [gate.step], name="called"))
    future.add_done_callback(fail)
    future.add_done_callback(lambda ended: called.append(threading.current_thread().name))
    gate.let_go("called")
    assert future.result(DEADLINE_S).check()
    until(lambda: bool(called))
    assert called[0].startswith("stackyard-callbacks")
    assert "a callback of job called has raised" in caplog.text
    assert "not my day" in caplog.text
    future.add_done_callback(lambda ended: called.append(threading.current_thread().name))
    assert called[1:] == [threading.current_thread().name], "what has ended calls back at once"


@pytest.mark.parametrize("voxels", [(1 << 18) - 1, 1 << 18])
def test_arrays_of_a_megabyte_and_less_are_sent(scheduler: StackScheduler, voxels: int) -> None:
    array = np.ones((1, 1, voxels), np.float32)
    future = scheduler.submit(StackJob(array, [DOUBLED]), returns="array")
    np.testing.assert_array_equal(future.result(DEADLINE_S).check().arrays["stack"], array * 2, strict=True)


def test_a_job_that_cannot_be_sent_fails_alone(
    scheduler: StackScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = scheduler._fleet.give

    def refuse(task: AttemptTask, *, device: str) -> object:
        if task.job_id == "unfit":
            raise TypeError("can't pickle it")
        return give(task, device=device)

    monkeypatch.setattr(scheduler._fleet, "give", refuse)
    unfit, fit = scheduler.map([StackJob(stack(), [DOUBLED], name="unfit"), StackJob(stack(), [DOUBLED])])
    assert unfit.result(DEADLINE_S).reason == "the attempt can't be sent: TypeError: can't pickle it"
    assert fit.result(DEADLINE_S).check()


def test_the_same_stacks_under_names_in_another_order_are_jobs_too(scheduler: StackScheduler) -> None:
    small, large = stack(), stack().astype(np.float64)
    difference = {"use": f"{tried_steps.__name__}:difference", "inputs": ["a", "b"]}
    for inputs in ({"a": small, "b": large}, {"b": small, "a": large}):
        result = scheduler.submit(StackJob(inputs, [difference]), returns="array").result(DEADLINE_S)
        np.testing.assert_array_equal(result.check().arrays["stack"], inputs["a"] - inputs["b"])


def test_the_output_of_a_job_that_failed_is_free_again(scheduler: StackScheduler, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.tif"
    failed = scheduler.submit(StackJob(stack(), [step("broken")], output=output)).result(DEADLINE_S)
    assert failed.outcome == "failed"
    again = scheduler.submit(StackJob(stack(), [DOUBLED], output=output)).result(DEADLINE_S)
    assert again.check().outputs == (output,)
    with pytest.raises(OutputError, match=r"two jobs would write|exists already"):
        scheduler.submit(StackJob(stack(), [DOUBLED], output=output))


def test_a_table_that_cannot_be_read_here_fails_its_job(scheduler: StackScheduler) -> None:
    strange = scheduler.submit(StackJob(stack(), [step("strange_table")]), returns="array")
    reason = strange.result(DEADLINE_S).reason
    assert reason.startswith("what its attempt returned can't be read here: TypeError: ")


def test_a_job_that_waits_is_cancelled_at_once(scheduler: StackScheduler, gate: Gate) -> None:
    running = scheduler.map(
        [StackJob(stack(), [gate.step], name=f"cancel-{number}") for number in range(2)]
    )
    gate.wait_for("cancel-0", "cancel-1")  # on both slots that there are
    waiting = scheduler.submit(StackJob(stack(), [gate.step], name="cancel-waiting"))
    assert waiting.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result(DEADLINE_S)
    assert waiting.cancelled()
    assert not any(future.done() for future in running)
    gate.let_go("cancel-0", "cancel-1")
    assert [future.result(DEADLINE_S).outcome for future in running] == [JobOutcome.DONE] * 2
    assert not gate.begun("cancel-waiting")


def test_a_job_that_waits_in_its_workers_queue_is_cancelled_too(
    scheduler: StackScheduler, gate: Gate
) -> None:
    """Of jobs that are known to be short, more are sent to a worker than it runs."""
    gate.let_go("queue-first")
    scheduler.submit(StackJob(stack(), [gate.step], name="queue-first")).result(DEADLINE_S)
    futures = scheduler.map([StackJob(stack(), [gate.step], name=f"queue-{number}") for number in range(4)])

    def all_sent() -> bool:
        status = scheduler.status()
        return status is not None and status.running == 4

    until(all_sent)
    until(lambda: sum(gate.begun(future.name) for future in futures) == 2)
    queued = [future for future in futures if not gate.begun(future.name)]
    assert queued[0].cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        queued[0].result(DEADLINE_S)
    others = [future for future in futures if future is not queued[0]]
    assert not any(future.done() for future in others)
    gate.let_go(*(future.name for future in others))
    assert [future.result(DEADLINE_S).outcome for future in others] == [JobOutcome.DONE] * 3
    assert not gate.begun(queued[0].name)


def test_a_job_that_runs_is_cancelled_before_its_next_step(
    scheduler: StackScheduler, gate: Gate, tmp_path: Path
) -> None:
    output = tmp_path / "out.tif"
    # Far more steps than pass until word of it has come; without that word it would be done in a few seconds.
    chain = [gate.step, *[step("paused")] * 300]
    future = scheduler.submit(StackJob(stack(), chain, output, name="stopped"))
    gate.wait_for("stopped")
    assert future.cancel()
    gate.let_go("stopped")
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(DEADLINE_S)
    assert not output.exists()
    assert scheduler.submit(StackJob(stack(), [DOUBLED])).result(DEADLINE_S).check()


def test_what_has_ended_is_not_cancelled_any_more(scheduler: StackScheduler) -> None:
    future = scheduler.submit(StackJob(stack(), [DOUBLED]))
    result = future.result(DEADLINE_S)
    assert not future.cancel()
    assert future.result() is result


def test_a_result_is_written_where_it_should_be(scheduler: StackScheduler, tmp_path: Path) -> None:
    output = tmp_path / "a.ome.tif"
    future = scheduler.submit(StackJob(stack(), [DOUBLED], output, name="written"))
    assert future.result(DEADLINE_S).check().outputs == (output,)
    np.testing.assert_array_equal(tifffile.imread(output), stack() * 2, strict=True)
    with tifffile.TiffFile(output) as file:
        described = file.ome_metadata or ""
    assert scheduler.run_dir.name in described
    assert "tried_steps:doubled" in described


def test_stacks_come_from_files_too(scheduler: StackScheduler, tmp_path: Path) -> None:
    given = stack()
    tifffile.imwrite(tmp_path / "stack.tif", given)
    planes = [tmp_path / f"z{number}.tif" for number in range(len(given))]
    for path, plane in zip(planes, given, strict=True):
        tifffile.imwrite(path, plane)
    every = [str(tmp_path / "stack.tif"), tmp_path / "stack.tif", planes, stack_of_files(*planes)]
    for inputs in every:
        done = scheduler.submit(StackJob(inputs, [DOUBLED]), returns="array").result(DEADLINE_S).check()
        np.testing.assert_array_equal(done.arrays["stack"], given * 2, strict=True)


def test_steps_may_be_functions_names_and_mappings(scheduler: StackScheduler) -> None:
    by_name = f"{tried_steps.__name__}:doubled"
    chain: list[Step] = [tried_steps.doubled, by_name, {**DOUBLED, "memory": "numpy"}]
    done = scheduler.submit(StackJob(stack(), chain), returns="array").result(DEADLINE_S).check()
    np.testing.assert_array_equal(done.arrays["stack"], stack() * 8, strict=True)


def test_a_job_that_fails_says_why_and_the_others_go_on(scheduler: StackScheduler, tmp_path: Path) -> None:
    assert scheduler.submit(StackJob(stack(), [DOUBLED])).result(DEADLINE_S).check()
    broken, fine = scheduler.map(
        [
            StackJob(stack(), [step("broken")], tmp_path / "never.tif", name="broken"),
            StackJob(stack(), [DOUBLED]),
        ],
        returns="array",
    )
    result = broken.result(DEADLINE_S)
    assert (result.outcome, result.outputs, result.arrays) == (JobOutcome.FAILED, (), {})
    assert "step broken failed on numpy float32 (2, 3, 5)" in result.reason
    assert "ValueError: no such luck" in result.reason
    assert (result.attempts, result.device[:3]) == (1, "cpu")
    with pytest.raises(JobFailedError, match="no such luck"):
        result.check()
    assert fine.result(DEADLINE_S).check()
    assert not (tmp_path / "never.tif").exists()
    assert "Traceback" in (scheduler.run_dir / "logs" / "broken.log").read_text()


def test_the_journal_has_every_job(scheduler: StackScheduler) -> None:
    future = scheduler.submit(StackJob(stack(), [DOUBLED], name="in the journal"))
    future.result(DEADLINE_S)
    until(lambda: outcomes(scheduler, "in the journal") == ["done"])


def test_the_state_of_things_can_be_read(scheduler: StackScheduler, gate: Gate) -> None:
    future = scheduler.submit(StackJob(stack(), [gate.step], name="seen"))
    gate.wait_for("seen")

    def seen() -> bool:
        status = scheduler.status()
        return status is not None and any("seen" in device.running for device in status.devices)

    until(seen)
    until(lambda: json.loads((scheduler.run_dir / "status.json").read_text())["running"] == 1)
    gate.let_go("seen")
    future.result(DEADLINE_S)


def test_a_name_is_there_once(scheduler: StackScheduler) -> None:
    scheduler.submit(StackJob(stack(), [DOUBLED], name="one of a kind")).result(DEADLINE_S)
    with pytest.raises(ValueError, match="there is a job 'one of a kind' already"):
        scheduler.submit(StackJob(stack(), [DOUBLED], name="one of a kind"))


def test_of_jobs_with_one_name_none_is_taken_in(scheduler: StackScheduler) -> None:
    names = ("alone", "twin", "twin")
    with pytest.raises(ValueError, match="there is a job 'twin' already"):
        scheduler.map([StackJob(stack(), [DOUBLED], name=name) for name in names])
    assert scheduler.submit(StackJob(stack(), [DOUBLED], name="alone")).result(DEADLINE_S).check()


def test_names_that_are_made_keep_clear_of_those_that_are_taken(scheduler: StackScheduler) -> None:
    made = scheduler.submit(StackJob(stack(), [DOUBLED])).name
    number = int(made.removeprefix("job-"))
    taken = scheduler.submit(StackJob(stack(), [DOUBLED], name=f"job-{number + 1:06}"))
    assert scheduler.submit(StackJob(stack(), [DOUBLED])).name == f"job-{number + 2:06}"
    assert taken.result(DEADLINE_S).check()


def test_of_jobs_of_which_one_cannot_be_used_none_is_taken_in(scheduler: StackScheduler) -> None:
    jobs = [
        StackJob(stack(), [DOUBLED], name="good"),
        StackJob(stack(), ["no such step"], name="bad"),
    ]
    with pytest.raises(ValueError, match="no such step"):
        scheduler.map(jobs)
    assert scheduler.submit(jobs[0]).result(DEADLINE_S).check()
