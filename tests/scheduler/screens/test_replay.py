"""A journal of a run, replayed in virtual time."""

import json
import sqlite3
from contextlib import closing

import pytest

from scheduler.core.simulate import run_dispatcher
from scheduler.execution.journal import SCHEMA
from scheduler.screens.replay import read_journal

GIB = 1 << 30


@pytest.fixture
def journal(tmp_path):
    """Two GPU jobs of ten seconds (one of them at its second attempt), a CPU job of thirty, and one that
    failed.
    """
    path = tmp_path / "run1" / "journal.sqlite"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as file, file:
        file.executescript(SCHEMA)
        file.executemany(
            "INSERT INTO device VALUES (?, ?, ?, ?, ?, ?)",
            [("g0", "gpu0", "cuda", 0, 8 * GIB, 1), ("c0", "cpu", "cpu", 0, 32 * GIB, 1)],
        )
        shape = json.dumps([8, 64, 64])
        for name, state, added in [
            ("a", "done", 100),
            ("b", "done", 100),
            ("c", "done", 105),
            ("d", "failed", 100),
        ]:
            file.execute(
                "INSERT INTO job (job_id, state, shape, dtype, added_at) VALUES (?, ?, ?, 'uint16', ?)",
                (name, state, shape, added),
            )
        file.executemany(
            "INSERT INTO attempt (job_id, number, device, plan, device_bytes, host_bytes, started_at, "
            "ended_at)"
            " VALUES (?, ?, ?, 'p', ?, ?, ?, ?)",
            [
                ("a", 1, "g0", 2 * GIB, GIB, 100, 101),
                ("a", 2, "g0", 3 * GIB, GIB, 101, 111),
                ("b", 1, "g0", 3 * GIB, GIB, 111, 121),
                ("c", 1, "c0", 0, GIB, 105, 135),
                ("d", 1, "c0", 0, GIB, 100, 110),
            ],
        )
    return path


def test_jobs_come_back_with_their_devices_bytes_and_times(journal):
    trace = read_journal(journal)
    assert trace.name == "run1"
    assert [(job.job.job_id, job.arrival_s) for job in trace.jobs] == [("a", 0.0), ("b", 0.0), ("c", 5.0)]
    truth = trace.jobs[0].truth
    assert (truth["gpu"].device_bytes, truth["gpu"].seconds, truth["cpu"].seconds) == (3 * GIB, 10.0, 30.0)
    outcome = run_dispatcher(trace)
    assert (outcome.done, outcome.lost) == (3, 0)


def test_a_run_without_success_and_a_file_that_is_no_journal_are_refused(journal, tmp_path):
    with closing(sqlite3.connect(journal)) as file, file:
        file.execute("UPDATE job SET state = 'failed'")
    with pytest.raises(ValueError, match="nothing to replay"):
        read_journal(journal)
    other = tmp_path / "other.sqlite"
    other.write_text("no database at all, but long enough to be looked at")
    with pytest.raises(ValueError, match="no journal of a run"):
        read_journal(other)
