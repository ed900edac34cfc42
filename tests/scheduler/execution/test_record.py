"""The driver's record: it never waits for the disk, and says so when the disk is full."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler.core.instructions import JobOutcome
from scheduler.execution.journal import Journal
from scheduler.execution.journal_changes import Changes
from scheduler.execution.record import COMMIT_S, JournalRecord

NOTHING: Any = SimpleNamespace(running=0, device_view=lambda: (), waiting=lambda limit: ())


@pytest.fixture
def record(tmp_path: Path) -> Iterator[JournalRecord]:
    made = JournalRecord.begin(tmp_path / "run", {})
    for name in ("a", "b"):
        made._journal.add_job(name, output=None, shape=(1, 1, 1), dtype="uint8", at=0.0)
    made._journal.commit()
    yield made
    made._committer.shutdown()


def states(record: JournalRecord) -> list[str]:
    return [job.state for job in Journal.open_readonly(record.run_dir / "journal.sqlite").jobs()]


def test_a_run_goes_on_while_the_disk_is_slow(record: JournalRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, began = threading.Event(), threading.Event()
    write = Journal.commit_changes

    def slow(journal: Journal, changes: Changes) -> None:
        began.set()
        assert go_on.wait(30)
        write(journal, changes)

    monkeypatch.setattr(Journal, "commit_changes", slow)
    record.finished("a", JobOutcome.DONE, "")
    record.moment("running", NOTHING, 0.0)
    assert began.wait(30)
    record.finished("b", JobOutcome.DONE, "")
    record.moment("running", NOTHING, 2 * COMMIT_S)
    assert states(record) == ["waiting", "waiting"]
    go_on.set()
    record.end("done", (), interrupted=False)
    assert states(record) == ["done", "done"]


def test_a_full_disk_is_told_at_the_next_moment(
    record: JournalRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_journal: Journal, _changes: Changes) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(Journal, "commit_changes", full)
    record.moment("running", NOTHING, 0.0)
    assert record._commit is not None
    record._commit.exception(30)
    record.moment("running", NOTHING, 2 * COMMIT_S)
    assert record.no_room == f"no space left for the journal in {record.run_dir}"


def test_a_journal_that_somebody_keeps_to_himself_stops_the_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup, or a reader that was stopped with Ctrl-Z."""
    monkeypatch.setattr("scheduler.execution.journal.BUSY_S", 0.01)
    record = JournalRecord.begin(tmp_path / "run", {})
    reader = sqlite3.connect(tmp_path / "run/journal.sqlite")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM run").fetchall()
    record._journal.add_job("a", output=None, shape=(1, 1, 1), dtype="uint8", at=0.0)
    record.moment("running", NOTHING, 0.0)
    assert record._commit is not None
    assert record._commit.exception(30) is not None
    record.moment("running", NOTHING, 2 * COMMIT_S)
    assert record.no_room == f"database is locked: the journal in {tmp_path / 'run'}"
    reader.close()
    assert record.end("interrupted", (), interrupted=True).exit_status == 130


def test_any_other_error_of_a_commit_ends_the_run(
    record: JournalRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_journal: Journal, _changes: Changes) -> None:
        raise sqlite3.DatabaseError("file is not a database")

    monkeypatch.setattr(Journal, "commit_changes", broken)
    record.moment("running", NOTHING, 0.0)
    assert record._commit is not None
    record._commit.exception(30)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        record.moment("running", NOTHING, 2 * COMMIT_S)
