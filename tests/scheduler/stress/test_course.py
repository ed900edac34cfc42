"""Whatever is wrong with a job is seen: faults are put into a scheduler that does them."""

import threading
from pathlib import Path

import pytest

from scheduler.core.instructions import JobOutcome
from scheduler.execution.session import JobResult, StackFuture
from scheduler.images.outputs import write_stack
from scheduler.stress import course as course_module
from scheduler.stress.account import judge
from scheduler.stress.course import RESULTS, Course
from scheduler.stress.evidence import Evidence, JournalEntry
from scheduler.stress.expected import expected_result
from scheduler.stress.options import StressOptions
from scheduler.stress.slow_disk import FOLDER as SLOW
from scheduler.stress.watch import WatchReport
from scheduler.stress.workload import StressJob, make_workload

JOBS = make_workload(24, capacity=256 << 20, under_estimate=0.0, seed=1)
TO_FILE = next(job.name for job in JOBS if job.to_file)
TO_ARRAY = next(job.name for job in JOBS if not job.to_file)


class Scheduler:
    """Does each job at once and rightly, but for the names in `faults`."""

    def __init__(self, run_dir: Path, **faults: str) -> None:
        self.run_dir = run_dir
        self.faults = {name: fault for fault, name in faults.items()}
        self.jobs = {job.name: job for job in JOBS}
        self.most = self.open = 0
        self.handed_in: list[str] = []

    def call_back(self, function, future):
        function(future)

    def map(self, stack_jobs, *, returns=None):
        return [self._do(each, returns) for each in list(stack_jobs)]

    def _do(self, stack_job, returns) -> StackFuture:
        name = stack_job.name
        self.handed_in.append(name)
        fault = self.faults.get(name)
        if fault == "refused":
            raise RuntimeError("nothing more is started here")
        future = StackFuture(name, self)
        if fault == "never":
            return future
        if fault == "raised":
            future.set_exception(OSError("the driver died"))
            return future
        if fault == "failed":
            future.set_result(JobResult(JobOutcome.FAILED, reason="no"))
            return future
        result = expected_result(self.jobs[name])
        if fault == "wrong":
            result[-1, -1, -1] += 1
        if stack_job.output is not None and fault != "missing":
            write_stack(stack_job.output, result, format="ome-tiff")
        arrays = {"stack": result} if returns and fault != "missing" else {}
        future.set_result(JobResult(JobOutcome.DONE, arrays=arrays))
        return future

    def status(self):
        return None

    def worker_pids(self):
        return []


@pytest.fixture
def handled(tmp_path):
    """Run all jobs with the faults given, and judge."""

    def handle(stop=None, **faults: str):
        for name in ("inputs", RESULTS, SLOW):
            (tmp_path / name).mkdir()
        evidence = Evidence(watch=WatchReport(looks=1, grants=len(JOBS)))
        scheduler = Scheduler(tmp_path / "run", **faults)
        course = Course(StressOptions(jobs=len(JOBS)), JOBS, tmp_path, scheduler, evidence)
        course.run(lambda status: None, lambda what: None, stop or threading.Event())
        course.look_back()
        evidence.journal = {
            name: JournalEntry(str(ends[0].outcome), (str(ends[0].outcome),))
            for name, ends in evidence.ends.items()
        }
        return judge(JOBS, evidence, virtual=True, seed=0)

    return handle


def test_every_job_is_handed_in_once_and_done(handled, tmp_path):
    account = handled()
    assert (account.done, account.problems) == (len(JOBS), ())
    assert list((tmp_path / "inputs").iterdir()) == []


@pytest.mark.parametrize("name", [TO_FILE, TO_ARRAY])
def test_a_wrong_value_is_seen(handled, name):
    account = handled(wrong=name)
    assert (account.wrong_values, account.exit_status) == (1, 1)
    assert account.problems[0].startswith(f"wrong: {name} has 1 wrong values of ")


def test_a_result_that_isn_t_there_is_seen(handled):
    account = handled(missing=TO_FILE)
    assert (account.lost, account.exit_status) == (1, 1)


def test_an_array_that_doesn_t_come_back_is_seen(handled):
    account = handled(missing=TO_ARRAY)
    assert account.problems == (f"wrong: {TO_ARRAY} is no array but NoneType",)


def test_a_job_that_fails_is_seen(handled):
    account = handled(failed=TO_FILE)
    assert (account.failed, account.problems) == (1, (f"failed: {TO_FILE} failed: no",))


def test_a_future_that_raises_is_a_failed_job(handled):
    account = handled(raised=TO_FILE)
    assert account.problems == (f"failed: {TO_FILE} error: OSError: the driver died",)


def test_a_job_that_never_ends_is_lost(handled, monkeypatch):
    monkeypatch.setattr(course_module, "STALL_S", 0.0)
    account = handled(never=TO_FILE)
    assert (account.lost, account.done) == (1, len(JOBS) - 1)
    assert account.problems == (f"lost: {TO_FILE} never ended (nothing has ended for 0 s)",)


def test_jobs_that_end_one_after_the_other_are_waited_for_however_long_all_take(handled, monkeypatch):
    monkeypatch.setattr(course_module, "WINDOW", 1)
    monkeypatch.setattr(course_module, "STALL_S", 0.0)
    account = handled()
    assert (account.done, account.problems) == (len(JOBS), ())


def test_a_scheduler_that_takes_no_more_jobs_has_lost_them(handled):
    account = handled(refused=JOBS[-1].name)
    assert account.exit_status == 1
    assert account.lost > 0
    assert "takes no more jobs: nothing more is started here" in account.problems[0]


def test_an_interrupted_test_hands_nothing_more_in(handled, monkeypatch):
    monkeypatch.setattr(course_module, "WINDOW", 4)
    stop = threading.Event()
    stop.set()
    account = handled(stop=stop)
    assert (account.exit_status, account.lost) == (130, 0)
    assert account.done == 4


def test_no_more_jobs_are_out_than_the_window_holds(handled, monkeypatch):
    monkeypatch.setattr(course_module, "WINDOW", 3)
    most = []
    take = Course._take_ended

    def watched(self):
        most.append(self._outstanding)
        return take(self)

    monkeypatch.setattr(Course, "_take_ended", watched)
    assert handled().done == len(JOBS)
    assert max(most) == 3


def test_jobs_are_of_both_sorts():
    assert isinstance(JOBS[0], StressJob)
    assert {job.from_file for job in JOBS} == {True, False}
    assert any(job.family.turned for job in JOBS)
