"""Slurm jobs for workers are kept as many as they should be; the queue and Dask are stand-ins here."""

import time
from types import SimpleNamespace

import pytest

from scheduler.config.cluster import SlurmCluster
from scheduler.execution import slurm_jobs
from scheduler.execution.slurm_commands import JobState, SlurmError
from scheduler.execution.slurm_jobs import WorkerJobs


class Queue:
    """Slurm's queue and dask-jobqueue's cluster: what is asked for is there at once, and runs."""

    status = "running"

    def __init__(self) -> None:
        self.asked = 0
        self.states: list[JobState] = []
        self.workers: dict[str, object] = {}
        self.refusal: SlurmError | None = None
        self.slow = False
        self.cancelled: list[str] = []
        self.closed: list[str] = []

    @property
    def requested(self) -> set[int]:
        return set(range(self.asked - self.slow))

    def job_script(self) -> str:
        return "script"

    def scale(self, *, jobs: int) -> None:
        self.states += [running(number) for number in range(self.asked, jobs)]
        self.asked = jobs

    def scheduler_info(self, n_workers: int) -> dict[str, object]:
        assert n_workers == -1  # all of them; Dask tells five if it isn't asked for more
        return {"workers": self.workers}

    def run_on_scheduler(self, function) -> list[str]:
        workers = {address: SimpleNamespace(**worker) for address, worker in self.workers.items()}
        return function(SimpleNamespace(workers=workers, close_worker=self.close_worker))

    def close_worker(self, address: str) -> None:
        self.closed.append(address)
        self.states = [state for state in self.states if state.pending]

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)
        self.states = [state for state in self.states if state.job_id != job_id]

    def check(self, script: str) -> None:
        if self.refusal is not None:
            raise self.refusal


def running(number: int, *, left_s: float = 3600) -> JobState:
    return JobState(str(number), "RUNNING", "", time.time() + left_s)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    monkeypatch.setattr(slurm_jobs, "job_states", lambda name: tuple(queue.states))
    monkeypatch.setattr(slurm_jobs, "check_script", queue.check)
    monkeypatch.setattr(slurm_jobs, "cancel_job", queue.cancel)
    return queue


@pytest.fixture
def remarks() -> list[str]:
    return []


@pytest.fixture
def jobs(queue, remarks):
    config = SlurmCluster(cores=1, memory=1 << 30, nodes=2, drain_s=60)
    # The looks are the test's own: the first by itself would come in an hour.
    with WorkerJobs(config, "name", queue, queue, remarks.append, 3600.0) as jobs:
        yield jobs


def test_as_many_as_nodes_and_no_more(queue, jobs):
    assert queue.asked == 2
    jobs.look()
    assert queue.asked == 2


def test_one_that_has_ended_is_replaced(queue, jobs):
    queue.workers = {"a": {"name": "n1-1-gpu0"}}
    del queue.states[0]
    jobs.look()
    assert (queue.asked, len(queue.states)) == (3, 2)


def test_one_that_is_completing_is_replaced(queue, jobs):
    queue.states[0] = JobState("0", "COMPLETING", "", time.time() + 3600)
    jobs.look()
    assert queue.asked == 3


def test_one_that_is_about_to_end_is_replaced_once_while_it_is_there(queue, jobs):
    queue.states[0] = running(0, left_s=30)
    jobs.look()
    assert queue.asked == 3
    jobs.look()
    assert queue.asked == 3


def test_a_submission_that_takes_its_time_is_not_made_twice(queue, jobs):
    queue.slow = True
    queue.states.clear()
    jobs.look()
    assert queue.asked == 2


def test_jobs_that_bring_no_worker_are_not_submitted_for_ever(queue, jobs, remarks):
    looks = 0
    while jobs.expected() and looks < 10:
        queue.states.clear()
        jobs.look()
        looks += 1
    # Two from the start, two in their place: then three had ended, even if nobody had seen them run.
    assert queue.asked == 4
    assert remarks == ["4 Slurm jobs have ended before a worker joined; no more follow"]


def test_a_worker_in_sight_makes_up_for_them(queue, jobs):
    for worker in ({}, {"a": {"name": "n1-1-gpu0"}}, {}, {"a": {"name": "n1-1-gpu0"}}):
        queue.workers = worker
        queue.states.clear()
        jobs.look()
    assert queue.asked == 10
    assert jobs.expected()


def test_what_jobs_wait_for_is_said_once(queue, jobs, remarks):
    queue.states = [JobState("0", "PENDING", "Resources", None), JobState("1", "PENDING", "Priority", None)]
    jobs.look()
    jobs.look()
    assert remarks == ["2 of 2 Slurm jobs for workers wait: Resources, Priority"]
    assert queue.asked == 2


def test_a_refusal_at_the_start_is_an_error(queue, remarks):
    queue.refusal = SlurmError("sbatch: no")
    config = SlurmCluster(cores=1, memory=1 << 30)
    with (
        pytest.raises(SlurmError, match="sbatch: no"),
        WorkerJobs(config, "n", queue, queue, remarks.append, 1),
    ):
        pass
    assert queue.asked == 0


def test_trouble_later_on_is_said_and_outlived(queue, remarks):
    said = SimpleNamespace(event=slurm_jobs.threading.Event())

    def remark(text: str) -> None:
        remarks.append(text)
        said.event.set()

    config = SlurmCluster(cores=1, memory=1 << 30)
    with WorkerJobs(config, "n", queue, queue, remark, 0.01):
        queue.refusal = SlurmError("sbatch: the controller is away")
        queue.states.clear()
        assert said.event.wait(30)
        queue.refusal = None
        deadline = time.monotonic() + 30
        while queue.asked < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert remarks == ["Slurm's queue can't be used: sbatch: the controller is away"]


def test_at_the_end_what_waits_is_cancelled_and_what_runs_is_let_go(queue, remarks):
    config = SlurmCluster(cores=1, memory=1 << 30, nodes=2)
    with WorkerJobs(config, "n", queue, queue, remarks.append, 3600.0):
        queue.workers = {"tls://a": {"name": "n1-0-gpu0"}}
        queue.states[1] = JobState("1", "PENDING", "Resources", None)
    assert queue.cancelled == ["1"]
    assert queue.closed == ["tls://a"]
