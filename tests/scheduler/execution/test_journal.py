"""The journal: what is committed is there, whoever reads it."""

import sqlite3
from pathlib import Path

import pytest

from scheduler.execution.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def new_journal(path: Path) -> Journal:
    return Journal.create(path, version="1.2", host="here", started_at=10.0, config={"steps": ["gaussian"]})


def test_a_job_goes_from_waiting_over_running_to_its_end(path: Path) -> None:
    journal = new_journal(path)
    journal.add_job("a", output="out/a.tif", shape=(2, 3, 5), dtype="uint16", at=1.0)

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
    journal = new_journal(path)
    journal.add_job("a", output="out/a.tif", shape=(2, 3, 5), dtype="uint16", at=1.0)
    (job,) = journal.jobs()
    assert (job.output, job.shape, job.dtype) == ("out/a.tif", (2, 3, 5), "uint16")
    assert journal.config() == {"steps": ["gaussian"]}


def test_decisions_keep_their_order(path: Path) -> None:
    journal = new_journal(path)
    journal.add_job("a", output=None, shape=(1, 1, 1), dtype="uint8", at=1.0)
    for number in range(3):
        journal.add_decision("a", verdict="admit", reason=f"reason {number}", inputs={"free": number}, at=2.0)
    assert journal.decisions("a") == [("admit", f"reason {number}") for number in range(3)]


def test_what_was_not_committed_is_lost_and_nothing_else(path: Path) -> None:
    journal = new_journal(path)
    journal.add_job("kept", output=None, shape=(1, 1, 1), dtype="uint8", at=1.0)
    journal.commit()
    journal.add_job("lost", output=None, shape=(1, 1, 1), dtype="uint8", at=1.0)
    journal.close()
    assert [job.job_id for job in Journal.open_readonly(path).jobs()] == ["kept"]


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
