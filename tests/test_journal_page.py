"""docs/journal.md describes the journal that there is, and its queries answer."""

import re
import sqlite3
from pathlib import Path

import pytest

from scheduler.execution.journal import Journal
from scheduler.execution.task import OutputRecord

PAGE = (Path(__file__).parent.parent / "docs/journal.md").read_text(encoding="utf-8")
MIB = 1 << 20


@pytest.fixture
def journal(tmp_path: Path) -> sqlite3.Connection:
    """A run of two jobs: one waited 3 s, fell back to the CPU and is done; the other failed."""
    path = tmp_path / "journal.sqlite"
    writer = Journal.create(path, version="1", host="here", started_at=0.0, config={})
    writer.add_device("CPU-1", "cpu", "cpu", virtual=False, total_bytes=100 * MIB, slots=1)
    for job in ("a", "b"):
        writer.add_job(job, output=None, shape=(1, 2, 3), dtype="uint8", at=0.0)
    writer.add_decision("a", verdict="fall_back", reason="goes to cpu: no room", inputs={}, at=1.0)
    writer.start_attempt("a", 1, device="CPU-1", plan={}, device_bytes=0, host_bytes=9 * MIB, at=3.0)
    detail = {"host_peak_bytes": 7 * MIB, "on_device": [[3.5, 4.0], [5.0, 5.5]]}
    writer.end_attempt("a", 1, outcome="done", detail=detail, at=5.5)
    outputs = [
        OutputRecord("labels", "/out/a.tif", (1, 2, 3), "uint8"),
        OutputRecord("seg", "/out/a.csv", (4, 2)),
    ]
    writer.set_result("a", shape=(1, 2, 3), dtype="uint8", outputs=outputs)
    writer.end_job("a", state="done", reason="done on cpu", at=5.5)
    writer.end_job("b", state="failed", reason="boom", at=6.0)
    writer.end_run(state="done", at=6.0)
    writer.close()
    return sqlite3.connect(path)


def test_every_table_and_column_is_described(journal):
    described = {
        name: re.findall(r"`(\w+)`", columns)
        for name, columns in re.findall(r"^\| `(\w+)` \|[^|]*\|(.*)\|$", PAGE, re.MULTILINE)
    }
    tables = [name for (name,) in journal.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert described == {
        table: [row[1] for row in journal.execute(f"PRAGMA table_info({table})")] for table in tables
    }


def test_queries(journal):
    answers = [
        journal.execute(query).fetchall() for query in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    ]
    assert answers == [
        [("b", "boom")],
        [("a", "labels", "/out/a.tif"), ("a", "seg", "/out/a.csv")],
        [("a", "goes to cpu: no room")],
        [("cpu", 1, 2.5)],
        [("a", 0, None, 9 * MIB, 7 * MIB)],
        [("a", 3.0)],
        [("cpu", 1.0, 2.0)],
    ]
