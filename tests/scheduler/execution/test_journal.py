"""The journal: what is committed is there, whoever reads it."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.execution.journal import Journal, NewJob


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def new_journal(path: Path, *job_ids: str) -> Journal:
    jobs = [NewJob(job_id, f"out/{job_id}.tif", (2, 3, 5), "uint16") for job_id in job_ids]
    config = {"steps": ["gaussian"]}
    return Journal.create(path, version="1.2", host="here", started_at=10.0, config=config, jobs=jobs)


def test_a_job_goes_from_waiting_over_running_to_its_end(path: Path) -> None:
    journal = new_journal(path, "a")

    def state() -> tuple[str, str]:
        (job,) = journal.jobs()
        return job.state, job.reason

    assert state() == ("waiting", "")
    journal.start_attempt("a", 1, device="cpu", plan={"name": "cpu"}, device_bytes=0, host_bytes=7, at=2.0)
    assert state() == ("running", "")
    journal.end_attempt("a", 1, outcome="out_of_memory", detail={"peak": 9}, at=3.0)
    assert state() == ("waiting", "")
    journal.end_job("a", state="done", reason="done on cpu", at=4.0)
    assert state() == ("done", "done on cpu")


def test_shape_output_and_config_come_back_as_they_were(path: Path) -> None:
    journal = new_journal(path, "a")
    (job,) = journal.jobs()
    assert (job.output, job.shape, job.dtype) == ("out/a.tif", (2, 3, 5), "uint16")
    assert (job.attempts, job.result) == (0, None)
    assert journal.config() == {"steps": ["gaussian"]}


def test_the_form_of_a_result_is_kept_until_the_job_waits_again(path: Path) -> None:
    journal = new_journal(path, "a")
    journal.set_result("a", shape=(1, 3, 5), dtype="float32")
    journal.end_job("a", state="done", reason="done on cpu", at=4.0)
    (job,) = journal.jobs()
    assert job.result == ((1, 3, 5), "float32")
    journal.wait_again("a")
    (job,) = journal.jobs()
    assert (job.state, job.reason, job.result) == ("waiting", "", None)


def test_jobs_count_on_the_device_that_did_them_last(path: Path) -> None:
    journal = new_journal(path, "a", "b", "c")
    for job_id, number, device, outcome in [
        ("a", 1, "gpu0", "out_of_memory"), ("a", 2, "cpu", "done"),
        ("b", 1, "gpu0", "done"),
        ("c", 1, "gpu0", "failed"),
    ]:  # fmt: skip
        journal.start_attempt(job_id, number, device=device, plan={}, device_bytes=0, host_bytes=0, at=2.0)
        journal.end_attempt(job_id, number, outcome=outcome, detail={}, at=3.0)
    journal.end_job("a", state="done", reason="", at=4.0)
    journal.end_job("b", state="done", reason="", at=4.0)
    journal.end_job("c", state="failed", reason="", at=4.0)
    assert journal.done_by_device() == {"cpu": 1, "gpu0": 1}


def test_decisions_keep_their_order(path: Path) -> None:
    journal = new_journal(path, "a")
    for number in range(3):
        journal.add_decision("a", verdict="admit", reason=f"reason {number}", inputs={"free": number}, at=2.0)
    assert journal.decisions("a") == [("admit", f"reason {number}") for number in range(3)]


def test_what_was_not_committed_is_lost_and_nothing_else(path: Path) -> None:
    journal = new_journal(path, "a", "b")
    journal.end_job("a", state="done", reason="", at=4.0)
    journal.commit()
    journal.end_job("b", state="done", reason="", at=4.0)
    journal.close()
    assert [job.state for job in Journal.open_readonly(path).jobs()] == ["done", "waiting"]


def test_a_driver_killed_in_a_commit_leaves_a_journal_that_readers_can_open(path: Path) -> None:
    new_journal(path, *map(str, range(5000))).close()
    script = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1])\n"
        "c.execute('PRAGMA cache_size = 1')  # so that changed pages reach the file before the commit\n"
        "c.execute(\"UPDATE job SET state = 'done'\")\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert path.with_name(f"{path.name}-journal").stat().st_size > 0
    assert {job.state for job in Journal.open_readonly(path).jobs()} == {"waiting"}


def test_no_journal_appears_before_its_jobs_are_in_it(path: Path) -> None:
    def jobs() -> Iterator[NewJob]:
        yield NewJob("a", None, (1, 1, 1), "uint8")
        assert not path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Journal.create(path, version="1", host="here", started_at=1.0, config={}, jobs=jobs())
    assert not path.exists()


def test_one_run_folder_holds_one_run(path: Path) -> None:
    new_journal(path)
    with pytest.raises(FileExistsError, match="one run"):
        new_journal(path)


def test_readers_cannot_write(path: Path) -> None:
    new_journal(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        Journal.open_readonly(path).end_run(state="done", at=1.0)


def test_no_write_ahead_log_lies_beside_it(path: Path) -> None:
    journal = new_journal(path)
    journal.commit()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_states_that_pass_between_two_commits_leave_the_last_one(path: Path) -> None:
    journal = new_journal(path, "a")
    journal.start_attempt("a", 1, device="gpu0", plan={"name": "p"}, device_bytes=5, host_bytes=7, at=2.0)
    journal.end_attempt("a", 1, outcome="out_of_memory", detail={"peak_bytes": 9}, at=3.0)
    journal.start_attempt("a", 2, device="cpu", plan={}, device_bytes=0, host_bytes=8, at=4.0)
    journal.commit()
    journal.end_attempt("a", 2, outcome="done", detail={}, at=5.0)
    journal.set_result("a", shape=(2, 3, 5), dtype="uint8")
    journal.end_job("a", state="done", reason="done on cpu", at=5.0)
    journal.commit()
    rows = sqlite3.connect(path).execute("SELECT * FROM attempt ORDER BY number").fetchall()
    assert rows == [
        ("a", 1, "gpu0", '{"name": "p"}', 5, 7, 2.0, 3.0, "out_of_memory", '{"peak_bytes": 9}'),
        ("a", 2, "cpu", "{}", 0, 8, 4.0, 5.0, "done", "{}"),
    ]
    (job,) = Journal.open_readonly(path).jobs()
    assert (job.state, job.reason, job.result) == ("done", "done on cpu", ((2, 3, 5), "uint8"))


def test_what_comes_while_a_commit_goes_on_is_in_the_next_one(path: Path) -> None:
    journal = new_journal(path, "a", "b")
    journal.end_job("a", state="done", reason="", at=4.0)
    changes = journal.take()
    journal.end_job("b", state="done", reason="", at=5.0)
    journal.commit_changes(changes)
    assert [job.state for job in Journal.open_readonly(path).jobs()] == ["done", "waiting"]
    journal.commit()
    assert [job.state for job in Journal.open_readonly(path).jobs()] == ["done", "done"]


def test_what_could_not_be_written_is_forgotten(path: Path) -> None:
    journal = new_journal(path, "a", "b")
    journal.end_job("a", state="done", reason="", at=4.0)
    journal.roll_back()
    journal.end_job("b", state="done", reason="", at=4.0)
    journal.commit()
    assert [job.state for job in journal.jobs()] == ["waiting", "done"]
