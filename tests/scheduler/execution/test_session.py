"""What becomes of the futures of a session that ends early, and what it learns and remarks."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client, LocalCluster

from scheduler import ClusterError, JobFailedError, JobResult, StackFuture, StackJob, StackScheduler
from scheduler.core.events import Done
from scheduler.core.instructions import JobOutcome
from scheduler.core.model import DeviceKind, Footprint, JobPlan, Placement
from scheduler.execution.jobs import Chain, JobRequest
from scheduler.execution.session import Session
from scheduler.execution.task import AttemptReport, OutputRecord, OutputTarget
from scheduler.host.estimates import default_estimates_path, load_estimates
from scheduler.steps.resolve import StepSpec
from tests.scheduler.execution.small_clusters import (
    DEADLINE_S,
    STEPS,
    Gate,
    dask_cluster,
    own_estimates,
    stack,
    step,
)

DOUBLED = step("doubled")
MANY = [step("paused")] * 300
MEASURED = Done(device_peak_bytes=11, host_peak_bytes=22)
ON_CPU = JobPlan("cpu", (DeviceKind.CPU,), Footprint(0, 1))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A cluster of one worker with one thread, in this process."""
    with own_estimates(tmp_path_factory.mktemp("cache")), dask_cluster(processes=False, workers=1) as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


# an early end


def test_what_is_not_done_when_it_stops_says_so(client: Client, gate: Gate) -> None:
    with StackScheduler(client) as scheduler:
        names = ("running", "waiting")
        futures = scheduler.map([StackJob(stack(), [gate.step, *MANY], name=name) for name in names])
        gate.wait_for("running")
        scheduler.stop("the power goes off", grace_s=0.0)
        assert scheduler.join(DEADLINE_S)
        gate.let_go("running")
    for future in futures:
        with pytest.raises(JobFailedError, match="not done: the power goes off"):
            future.result(0)
    assert scheduler.summary is not None
    assert (scheduler.summary.interrupted, scheduler.summary.lost) == (True, 0)


def test_what_runs_when_it_stops_may_end_in_its_time_of_grace(client: Client, gate: Gate) -> None:
    with StackScheduler(client) as scheduler:
        names = ("running", "waiting")
        running, waiting = scheduler.map([StackJob(stack(), [gate.step], name=name) for name in names])
        gate.wait_for("running")
        scheduler.stop("the power goes off", grace_s=DEADLINE_S)
        gate.let_go("running")
        assert scheduler.join(DEADLINE_S)
    assert running.result(0).check()
    with pytest.raises(JobFailedError, match="not done: the power goes off"):
        waiting.result(0)


def test_nothing_is_taken_in_once_it_is_asked_to_stop(client: Client, gate: Gate) -> None:
    with StackScheduler(client) as scheduler:
        scheduler.submit(StackJob(stack(), [gate.step], name="running"))
        gate.wait_for("running")
        scheduler.stop("the power goes off", grace_s=DEADLINE_S)
        gate.let_go("running")
        assert scheduler.join(DEADLINE_S)
        with pytest.raises(RuntimeError, match="nothing more is started here"):
            scheduler.submit(StackJob(stack(), [DOUBLED]))


def test_nothing_is_taken_in_when_it_ends_just_then(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with StackScheduler(client) as scheduler:
        plans = scheduler._planner.plans

        def end_meanwhile(*form: Any) -> Any:
            scheduler.finish()
            assert scheduler.join(DEADLINE_S)
            return plans(*form)

        monkeypatch.setattr(scheduler._planner, "plans", end_meanwhile)
        with pytest.raises(RuntimeError, match="nothing more is started here"):
            scheduler.submit(StackJob(stack(), [DOUBLED]))


def test_a_fault_of_the_driver_reaches_everybody_who_waits(client: Client, gate: Gate) -> None:
    fault = ZeroDivisionError("a defect")
    with StackScheduler(client) as scheduler:
        future = scheduler.submit(StackJob(stack(), [gate.step, *MANY], name="running"))
        gate.wait_for("running")
        scheduler._driver._inbox.put(fault)
        with pytest.raises(ZeroDivisionError, match="a defect"):
            future.result(DEADLINE_S)
        gate.let_go("running")
        with pytest.raises(RuntimeError, match="nothing more is started here") as refused:
            scheduler.submit(StackJob(stack(), [DOUBLED]))
        assert refused.value.__cause__ is fault
    assert scheduler.error is fault


def test_cancelling_without_names_gives_up_everything_and_goes_on(client: Client, gate: Gate) -> None:
    with StackScheduler(client) as scheduler:
        names = ("running", "waiting")
        futures = scheduler.map([StackJob(stack(), [gate.step, *MANY], name=name) for name in names])
        gate.wait_for("running")
        scheduler.cancel()
        gate.let_go("running")
        for future in futures:
            with pytest.raises(CancelledError):
                future.result(DEADLINE_S)
        assert scheduler.submit(StackJob(stack(), [DOUBLED])).result(DEADLINE_S).check()


def test_a_cluster_to_which_nobody_comes_is_given_up() -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
        StackScheduler(client, _expected=lambda: False) as scheduler,
    ):
        with pytest.raises(ClusterError, match="no worker is there, and none is expected any more"):
            scheduler.submit(StackJob(stack(), [DOUBLED]))
        stop = threading.Event()
        stop.set()
        scheduler.wait_for_worker(stop)


# what is learned


def test_what_was_learned_is_kept_for_the_next_one(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with StackScheduler(client) as scheduler:
        scheduler.submit(StackJob(stack(), [DOUBLED])).result(DEADLINE_S)
    family = JobRequest("a", Chain.of([StepSpec(f"{STEPS}:doubled")]), stack()).family
    plan = replace(ON_CPU, name="cpu:numpy")
    learned = load_estimates(default_estimates_path()).seconds(family, plan, "cpu")
    assert learned is not None
    with StackScheduler(client) as other:
        assert other._dispatcher.estimates.seconds(family, plan, "cpu") == learned


def test_what_was_learned_and_is_damaged_is_a_remark(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default_estimates_path().parent.mkdir(parents=True)
    default_estimates_path().write_text("{")
    with StackScheduler(client) as scheduler:
        assert scheduler.submit(StackJob(stack(), [DOUBLED])).result(DEADLINE_S).check()
    assert scheduler.summary is not None
    (remark,) = [each for each in scheduler.summary.remarks if "learned" in each]
    assert remark.startswith("starts without what earlier runs have learned: ")


def test_a_place_where_nothing_can_be_kept_is_a_remark(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with StackScheduler(client) as scheduler:
        assert scheduler.submit(StackJob(stack(), [DOUBLED])).result(DEADLINE_S).check()
    assert scheduler.summary is not None
    (remark,) = [each for each in scheduler.summary.remarks if each.startswith("what was learned")]
    assert remark.startswith("what was learned isn't kept for later runs: ")


# results


@pytest.fixture(scope="module")
def idle(client: Client) -> Iterator[StackScheduler]:
    """A scheduler to which its driver's reports are told by hand."""
    with StackScheduler(client) as made:
        yield made


def result_of(
    scheduler: StackScheduler,
    name: str,
    outcome: JobOutcome,
    *,
    reserve_bytes: int = 0,
    done: Done | None = MEASURED,
    output: str | None = "/out/a.tif",
    placed: bool = True,
) -> JobResult:
    """The result that follows from how a job's last attempt ended."""
    target = OutputTarget(output, "tiff", False, {}) if output else None
    future = StackFuture(name, scheduler)
    scheduler._requests[name] = JobRequest(name, Chain.of([StepSpec(f"{STEPS}:doubled")]), stack(), target)
    scheduler._futures[name] = future
    (device,) = scheduler.record._devices
    placement = Placement(name, 3, device, device, ON_CPU, reserve_bytes, 1) if placed else None
    written = (OutputRecord("stack", output, (1, 1, 1), "uint8"),) if output else ()
    report = AttemptReport(done, 1, outputs=written) if done is not None else None
    scheduler._finished(name, outcome, "so it is", placement, report, None)
    return future.result(DEADLINE_S)


def test_a_peak_is_that_of_the_place_where_the_job_ran(idle: StackScheduler) -> None:
    assert result_of(idle, "on the CPU", JobOutcome.DONE).peak_bytes == 22
    assert result_of(idle, "on a GPU", JobOutcome.DONE, reserve_bytes=100).peak_bytes == 11
    assert result_of(idle, "unmeasured", JobOutcome.DONE, done=None).peak_bytes is None


def test_outputs_are_those_that_were_written(idle: StackScheduler) -> None:
    assert result_of(idle, "written", JobOutcome.DONE).outputs == (Path("/out/a.tif"),)
    assert result_of(idle, "failed", JobOutcome.FAILED).outputs == ()
    assert result_of(idle, "none asked for", JobOutcome.DONE, output=None).outputs == ()


def test_attempts_are_counted_and_the_last_device_is_named(idle: StackScheduler) -> None:
    result = result_of(idle, "tried", JobOutcome.SET_ASIDE, done=None)
    assert (result.outcome, result.attempts, result.device[:3]) == (JobOutcome.SET_ASIDE, 3, "cpu")
    never = result_of(idle, "never tried", JobOutcome.FAILED, done=None, placed=False)
    assert (never.attempts, never.device, never.reason) == (0, "", "so it is")


@pytest.mark.parametrize("outcome", [each for each in JobOutcome if each is not JobOutcome.DONE])
def test_what_is_not_done_does_not_pass_the_check(outcome: JobOutcome) -> None:
    with pytest.raises(JobFailedError, match="no such luck"):
        JobResult(outcome, reason="no such luck").check()


def test_a_callback_that_comes_too_late_never_holds_up_the_driver() -> None:
    called: list[str] = []
    over = ThreadPoolExecutor(1)
    over.shutdown()
    future: Any = SimpleNamespace(name="late")
    in_drivers_thread: Any = SimpleNamespace(_callbacks=over, _thread=threading.current_thread())
    elsewhere: Any = SimpleNamespace(_callbacks=over, _thread=None)
    Session.call_back(in_drivers_thread, lambda _: called.append("driver"), future)
    assert called == []
    Session.call_back(elsewhere, lambda _: called.append("elsewhere"), future)
    assert called == ["elsewhere"]
