"""A scheduler's beginning and end on a cluster that goes on without it; and what it refuses at the door."""

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from pydantic import ValidationError
from scipy import ndimage

from memcore import FunctionStep, StackError
from scheduler import ClusterError, StackJob, StackScheduler
from scheduler.core.instructions import JobOutcome
from scheduler.execution.journal import Journal
from scheduler.execution.run import run
from scheduler.images.errors import InputError, OutputError
from scheduler.steps.errors import StepError
from tests.scheduler.execution import tried_steps
from tests.scheduler.execution.small_clusters import (
    DEADLINE_S,
    Gate,
    dask_cluster,
    own_estimates,
    stack,
    step,
    until,
)

DOUBLED = step("doubled")
# More steps than pass until word of a cancellation has come, which takes effect before the next one.
MANY = [step("paused")] * 300


@pytest.fixture(scope="module", autouse=True)
def _quiet_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_estimates(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A cluster of one worker with one thread, in this process."""
    with dask_cluster(processes=False, workers=1) as made:
        yield made


@pytest.fixture(scope="module")
def scheduler(client: Client) -> Iterator[StackScheduler]:
    """For jobs that are refused."""
    with StackScheduler(client) as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def plugins(client: Client) -> set[str]:
    """What is ours in the cluster's scheduler and workers."""
    found = client.run_on_scheduler(
        lambda dask_scheduler: [*dask_scheduler.plugins, *dask_scheduler.worker_plugins]
    )
    in_workers = client.run(lambda dask_worker: [*dask_worker.plugins])
    return {name for names in (found, *in_workers.values()) for name in names if "stackyard" in name}


# the end


def test_leaving_the_block_waits_for_every_job(client: Client) -> None:
    with StackScheduler(client) as scheduler:
        futures = scheduler.map([StackJob(stack(value), [DOUBLED]) for value in range(5)])
    assert [future.result(0).outcome for future in futures] == [JobOutcome.DONE] * 5
    assert scheduler.summary is not None
    assert (scheduler.summary.jobs, scheduler.summary.done, scheduler.summary.interrupted) == (5, 5, False)


def test_the_cluster_goes_on_without_it(client: Client) -> None:
    before = plugins(client)
    with StackScheduler(client):
        assert len(plugins(client)) > len(before)
    assert plugins(client) == before
    assert client.submit(sum, (1, 2), pure=False).result(DEADLINE_S) == 3


def test_an_exception_in_the_block_gives_up_what_is_not_done(client: Client, gate: Gate) -> None:
    scheduler = StackScheduler(client)
    done = scheduler.submit(StackJob(stack(), [DOUBLED]))
    done.result(DEADLINE_S)
    names = ("running", "waiting")
    left = scheduler.map([StackJob(stack(), [gate.step, *MANY], name=name) for name in names])
    gate.wait_for("running")
    threading.Timer(0.2, gate.let_go, ("running",)).start()
    with pytest.raises(KeyError, match="mine"), scheduler:
        raise KeyError("mine")
    assert done.result(0).check()
    for future in left:
        with pytest.raises(CancelledError):
            future.result(0)
    assert scheduler.summary is not None
    assert scheduler.summary.interrupted
    assert not gate.begun("waiting")


def test_closing_may_give_up_what_is_not_done(client: Client, gate: Gate) -> None:
    scheduler = StackScheduler(client)
    future = scheduler.submit(StackJob(stack(), [gate.step, *MANY], name="running"))
    gate.wait_for("running")
    threading.Timer(0.2, gate.let_go, ("running",)).start()
    scheduler.close(cancel=True)
    assert future.cancelled()


def test_closing_twice_does_nothing_more(client: Client) -> None:
    scheduler = StackScheduler(client)
    future = scheduler.submit(StackJob(stack(), [DOUBLED]))
    scheduler.close()
    summary = scheduler.summary
    scheduler.close()
    scheduler.close(cancel=True)
    assert scheduler.summary is summary
    assert future.result(0).check()


def test_nothing_is_taken_in_after_the_end(client: Client) -> None:
    scheduler = StackScheduler(client)
    scheduler.close()
    with pytest.raises(RuntimeError, match="nothing more is started here"):
        scheduler.submit(StackJob(stack(), [DOUBLED]))


def test_equal_failures_stop_it_and_nothing_more_is_taken_in(client: Client) -> None:
    with StackScheduler(client, jobs={"max_failures": 2}) as scheduler:
        futures = scheduler.map([StackJob(stack(), [step("broken")]) for _ in range(6)])
        until(lambda: all(future.done() for future in futures))
        ends = ["cancelled" if each.cancelled() else str(each.result(0).outcome) for each in futures]
        assert sorted(ends) == ["cancelled"] * 4 + ["failed"] * 2
        with pytest.raises(RuntimeError, match="nothing more is started here"):
            scheduler.submit(StackJob(stack(), [DOUBLED]))


@pytest.mark.parametrize("folders", [(None, None), ("a/run", "b/run")], ids=["made", "of one name"])
def test_two_schedulers_share_a_cluster(
    client: Client, tmp_path: Path, folders: tuple[str | None, str | None]
) -> None:
    one_dir, other_dir = (tmp_path / folder if folder else None for folder in folders)
    with StackScheduler(client, run_dir=one_dir) as one:
        with StackScheduler(client, run_dir=other_dir) as other:
            pair = [each.submit(StackJob(stack(), [DOUBLED]), returns="array") for each in (one, other)]
            for future in pair:
                result = future.result(DEADLINE_S).check()
                np.testing.assert_array_equal(result.arrays["stack"], stack() * 2, strict=True)
        # The end of one is not the end of the other.
        result = one.submit(StackJob(stack(), [DOUBLED])).result(DEADLINE_S).check()
    assert result.attempts == 1


# the folder


def test_the_folder_is_kept_if_it_was_named(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "of my own"
    with StackScheduler(client, run_dir=folder) as scheduler:
        assert scheduler.run_dir == folder
        scheduler.submit(StackJob(stack(), [DOUBLED], name="a"))
    assert {path.name for path in folder.iterdir()} >= {"journal.sqlite", "status.json"}
    assert Journal.open_readonly(folder / "journal.sqlite").outcomes("a") == ["done"]


def test_the_folder_is_gone_at_the_end_if_it_was_not(client: Client) -> None:
    with StackScheduler(client) as scheduler:
        folder = scheduler.run_dir
        assert folder.is_dir()
    assert not folder.parent.exists()


def test_the_folder_of_another_run_is_refused(client: Client, tmp_path: Path) -> None:
    with StackScheduler(client, run_dir=tmp_path / "run"):
        pass
    with pytest.raises(FileExistsError):
        StackScheduler(client, run_dir=tmp_path / "run")


# the beginning


def test_jobs_wait_for_the_first_worker() -> None:
    asked: list[int] = []

    def expected() -> bool:
        asked.append(1)
        return True

    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
        StackScheduler(client, _expected=expected) as scheduler,
    ):
        futures: list[Any] = []
        waits = threading.Thread(
            target=lambda: futures.append(scheduler.submit(StackJob(stack(), [DOUBLED])))
        )
        waits.start()
        until(lambda: len(asked) > 1)
        assert waits.is_alive()
        cluster.scale(1)
        waits.join(DEADLINE_S)
        assert futures[0].result(DEADLINE_S).check()


def test_a_worker_that_comes_later_is_used(gate: Gate) -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        StackScheduler(client) as scheduler,
    ):
        gate.let_go("measured")
        scheduler.submit(StackJob(stack(), [gate.step], name="measured")).result(DEADLINE_S)
        scheduler.map([StackJob(stack(), [gate.step], name=name) for name in ("one", "two")])
        gate.wait_for("one")
        cluster.scale(2)
        scheduler.map([StackJob(stack(), [gate.step], name=name) for name in ("three", "four")])
        until(lambda: sum(map(gate.begun, ("one", "two", "three", "four"))) == 2)
        gate.let_go("one", "two", "three", "four")


def test_a_closed_client_is_refused() -> None:
    with dask_cluster(processes=False, workers=1) as client:
        client.close()
        with pytest.raises(ClusterError, match="isn't connected: it is closed"):
            StackScheduler(client)


def test_an_asynchronous_client_is_refused() -> None:
    async def begin() -> None:
        async with Client(
            asynchronous=True, processes=False, n_workers=1, dashboard_address="127.0.0.1:0"
        ) as client:
            StackScheduler(client)

    with pytest.raises(ClusterError, match="an asynchronous one"):
        asyncio.run(begin())


def test_a_cluster_that_cannot_be_used_is_left_as_it_was(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here no worker says hello in time."""
    before = plugins(client)
    monkeypatch.setattr("scheduler.execution.session.WORKERS_S", 0.0)
    monkeypatch.setattr("scheduler.execution.worker_plugin.StackyardWorker.setup", lambda *_: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ClusterError, match="of 1 workers not every one was ready in 0 s"):
        StackScheduler(client)
    assert plugins(client) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"memory": {"on_pressure": "give up"}},
        {"devices": {"gpu": "auto"}},
        {"jobs": {"timeout_s": -1.0}},
        {"memory": {"host_limit": "120%"}},
    ],
    ids=str,
)
def test_sections_that_say_something_unknown_are_refused(client: Client, sections: dict[str, Any]) -> None:
    before = plugins(client)
    with pytest.raises(ValidationError):
        StackScheduler(client, **sections)
    assert plugins(client) == before


def test_host_memory_is_bounded_by_the_section(client: Client) -> None:
    with StackScheduler(client, memory={"host_limit": "64MiB"}) as scheduler:
        future = scheduler.submit(StackJob(np.zeros((64, 1024, 1024), np.uint8), [DOUBLED]))

        def told() -> bool:
            status = scheduler.status()
            return status is not None and bool(status.waiting) and "64 MiB" in status.waiting[0].reason

        until(told)
        future.cancel()
        with pytest.raises(CancelledError):
            future.result(DEADLINE_S)


def test_of_waiting_jobs_the_higher_priority_goes_first(client: Client, gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "order"
    chain = [gate.step, step("noted", path=str(path))]
    with StackScheduler(client) as scheduler:
        scheduler.submit(StackJob(stack(), chain, name="first"))
        gate.wait_for("first")
        for name, priority in (("low", -5), ("middle", 0), ("high", 5)):
            gate.let_go(name)
            scheduler.submit(StackJob(stack(), chain, name=name, priority=priority))
        gate.let_go("first")
    assert path.read_text().split() == ["first", "high", "middle", "low"]


def test_a_job_that_takes_too_long_fails_and_says_so(gate: Gate) -> None:
    """The worker has no nanny: it goes with the step that holds it up."""
    with (
        dask_cluster(processes=False, workers=2) as client,
        StackScheduler(client, jobs={"timeout_s": 30.0}) as scheduler,
    ):
        future = scheduler.submit(StackJob(stack(), [gate.step], name="endless", timeout_s=0.2))
        result = future.result(DEADLINE_S)
        assert result.outcome is JobOutcome.FAILED
        assert "its timeout_s is 0.2" in result.reason
        assert scheduler.submit(StackJob(stack(), [DOUBLED])).result(DEADLINE_S).check()
        gate.let_go("endless")


# what is refused


class Named(np.ndarray[Any, Any]):
    """An array with a meaning of its own."""


@pytest.mark.parametrize(
    ("inputs", "error", "said"),
    [
        (np.array(1.0), StackError, r"the shape \(\)"),
        (np.ones((3, 4)), StackError, r"the shape \(3, 4\)"),
        (np.ones((1, 2, 3, 4)), StackError, r"the shape \(1, 2, 3, 4\)"),
        (np.ones((0, 3, 4)), StackError, r"the shape \(0, 3, 4\)"),
        (np.ones((2, 0, 4)), StackError, r"the shape \(2, 0, 4\)"),
        (np.ma.masked_array(np.ones((1, 2, 3))), StackError, "a MaskedArray"),
        (np.ones((1, 2, 3)).view(Named), StackError, "a Named"),
        (np.ones((1, 2, 3), ">f4"), StackError, "dtype >f4"),
        (np.ones((1, 2, 3), object), StackError, r"dtype \|O"),
        (np.full((1, 2, 3), "x"), StackError, "dtype <U1"),
        (np.zeros((1, 2, 3), [("a", int)]), StackError, r"dtype \|V8"),
        (np.zeros((1, 2, 3), "M8[s]"), StackError, "dtype <M8"),
        ([[[1.0]]], InputError, "of type list"),
        ([], InputError, "of type list"),
        (None, InputError, "of type NoneType"),
        (b"x.tif", InputError, "of type bytes"),
        ("is not there.tif", InputError, "is not there.tif can't be read"),
        (["z1.tif", "z2.tif"], InputError, "z1.tif can't be read"),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_what_is_no_stack_is_refused(
    scheduler: StackScheduler, inputs: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        scheduler.submit(StackJob(inputs, [DOUBLED]))


def inner() -> Callable[..., Any]:
    def step(stack: Any) -> Any:
        return stack

    return step


@pytest.mark.parametrize(
    ("steps", "error", "said"),
    [
        ([], ValueError, "one or more steps"),
        ("gaussian", ValueError, "a sequence of one or more steps"),
        (DOUBLED, ValueError, "a sequence of one or more steps"),
        ([lambda stack: stack], ValueError, "can't be imported by a worker"),
        ([inner()], ValueError, "can't be imported by a worker"),
        ([functools.partial(tried_steps.doubled)], ValueError, "can't be imported by a worker"),
        ([FunctionStep(ndimage.sobel, input="numpy")], ValueError, "can't be imported by a worker"),
        ([3], ValueError, "can't be imported by a worker"),
        ([tried_steps.undeclared], StepError, "doesn't say which memory types it takes"),
        (["gausian"], StepError, "did you mean 'gaussian'"),
        (["gaussian"], StepError, "gaussian needs sigma"),
        ([{"use": "gaussian", "with": {"sigm": 1}}], StepError, "did you mean 'sigma'"),
        ([{"with": {}}], ValidationError, "use"),
        ([{"use": "gaussian", "sigma": 1}], ValidationError, "sigma"),
        ([f"{tried_steps.__name__}:gone"], StepError, "gone"),
        (["no_such_module:step"], StepError, "no_such_module"),
    ],
)
def test_what_is_no_chain_is_refused(
    scheduler: StackScheduler, steps: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        scheduler.submit(StackJob(stack(), steps))


@pytest.mark.parametrize(
    "terms",
    [
        {"name": ""},
        {"name": "a/b"},
        {"name": ".hidden"},
        {"name": ".."},
        {"name": "a\nb"},
        {"name": "\ud800"},
        {"name": "ä" * 101},
        {"name": 3},
        {"priority": "high"},
        {"priority": 1.5},
        {"priority": None},
        {"timeout_s": 0},
        {"timeout_s": -1.0},
        {"timeout_s": float("nan")},
        {"timeout_s": "1 h"},
    ],
    ids=str,
)
def test_terms_that_would_upset_the_driver_are_refused(
    scheduler: StackScheduler, terms: dict[str, Any]
) -> None:
    (said,) = terms
    with pytest.raises(ValueError, match=said):
        scheduler.submit(StackJob(stack(), [DOUBLED], **terms))


@pytest.mark.parametrize("name", ["ä" * 100, "well A01, site 1", "a.b", "*", "-rf", "a\\b"])
def test_names_may_be_in_anybodys_words(scheduler: StackScheduler, name: str) -> None:
    future = scheduler.submit(StackJob(stack(), [step("broken")], name=name))
    assert "no such luck" in future.result(DEADLINE_S).reason
    assert (scheduler.run_dir / "logs" / f"{name}.log").exists()


def test_only_stack_jobs_are_taken_in(scheduler: StackScheduler) -> None:
    job: Any = stack()
    with pytest.raises(TypeError, match="a job is a StackJob, not of type ndarray"):
        scheduler.submit(job)
    returns: Any = "list"
    with pytest.raises(ValueError, match="'list'; it may be 'array' or None"):
        scheduler.submit(StackJob(stack(), [DOUBLED]), returns=returns)


def test_outputs_need_a_place_of_their_own(scheduler: StackScheduler, tmp_path: Path) -> None:
    there = tmp_path / "there.tif"
    there.touch()
    for output, said in (
        (there, "exists already"),
        (tmp_path / "no folder" / "a.tif", "doesn't exist"),
        (tmp_path / "a.png", "must end in one of"),
    ):
        with pytest.raises(OutputError, match=said):
            scheduler.submit(StackJob(stack(), [DOUBLED], output))
    twice = [StackJob(stack(), [DOUBLED], tmp_path / "a.tif") for _ in range(2)]
    with pytest.raises(OutputError, match=r"two jobs would write .*a\.tif"):
        scheduler.map(twice)


def test_what_was_refused_has_left_no_trace(scheduler: StackScheduler, tmp_path: Path) -> None:
    jobs = [StackJob(stack(), [DOUBLED], tmp_path / "b.tif", name="kept"), StackJob(None, [DOUBLED])]
    with pytest.raises(InputError):
        scheduler.map(jobs)
    assert scheduler.submit(jobs[0]).result(DEADLINE_S).outputs == (tmp_path / "b.tif",)


def test_run_and_the_scheduler_have_one_public_home() -> None:
    import scheduler

    assert scheduler.run is run
