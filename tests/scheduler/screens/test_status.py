"""`stackyard status` reads a run's folder, while it is written or long after."""

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scheduler.execution.journal import Journal
from scheduler.execution.status import write_status
from scheduler.screens import cli
from scheduler.screens.run_folder import RunFolderError, find_run, read_failures, read_status


def make_run(run_dir: Path, status=None, *, failed: dict[str, str] | None = None) -> Path:
    run_dir.mkdir(parents=True)
    journal = Journal.create(run_dir / "journal.sqlite", version="1", host="here", started_at=0.0, config={})
    for job in ("a", "b", "c"):
        journal.add_job(job, output=None, shape=(1, 2, 3), dtype="uint8", at=0.0)
    for job, reason in (failed or {}).items():
        journal.end_job(job, state="failed", reason=reason, at=1.0)
    journal.commit()
    journal.close()
    if status is not None:
        write_status(run_dir, replace(status, run_dir=str(run_dir)))
    return run_dir


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, ["status", *arguments])


def test_what_was_written_is_read(tmp_path, status):
    status = replace(status, remarks=("gpu0: torch isn't used",))
    run_dir = make_run(tmp_path / "run", status)
    assert read_status(run_dir) == replace(status, run_dir=str(run_dir))
    assert "gpu0: torch isn't used\n" in invoke(str(run_dir)).stdout


def test_failures_are_read_from_the_journal(tmp_path):
    run_dir = make_run(tmp_path / "run", failed={"b": "z2 is missing"})
    assert [(failure.job, failure.reason) for failure in read_failures(run_dir)] == [("b", "z2 is missing")]


def test_a_run_is_found_by_its_folder_or_as_the_newest_of_an_output_folder(tmp_path):
    first = make_run(tmp_path / "out/.stackyard/2026-11-23T01")
    newest = make_run(tmp_path / "out/.stackyard/2026-11-23T02")
    assert find_run(first) == first
    assert find_run(tmp_path / "out") == newest
    assert find_run(tmp_path / "out/.stackyard") == newest
    with pytest.raises(RunFolderError, match="no run in"):
        find_run(tmp_path)


def test_screen_of_a_run_that_goes_on(tmp_path, status):
    make_run(tmp_path / "out/.stackyard/1", status, failed={"b": "not shown yet"})
    result = invoke(str(tmp_path / "out"))
    assert result.exit_code == 0
    assert "120/480 done" in result.stdout
    assert "needs 9 GiB on gpu0" in result.stdout
    assert "not shown yet" not in result.stdout
    assert "No news" not in result.stdout


def test_a_driver_that_went_silent_is_noticed(tmp_path, status):
    run_dir = make_run(tmp_path / "run", status)
    long_ago = time.time() - 3600
    os.utime(run_dir / "status.json", (long_ago, long_ago))
    assert "No news for 1 h 00 min" in invoke(str(run_dir)).stdout


def test_screen_of_a_run_that_has_ended(tmp_path, status):
    run_dir = make_run(tmp_path / "run", replace(status, state="interrupted"), failed={"b": "z2 is missing"})
    long_ago = time.time() - 3600
    os.utime(run_dir / "status.json", (long_ago, long_ago))
    text = invoke(str(run_dir)).stdout
    assert "interrupted" in text
    assert "Failed   b\n         z2 is missing" in text
    assert "No news" not in text


def test_json(tmp_path, status):
    run_dir = make_run(tmp_path / "run", replace(status, state="done"), failed={"c": "why"})
    record = json.loads(invoke(str(run_dir), "--json").stdout)
    assert record.pop("age_s") >= 0
    assert record.pop("failures") == [{"job": "c", "reason": "why"}]
    expected = asdict(replace(status, state="done", run_dir=str(run_dir)))
    assert record == json.loads(json.dumps(expected))


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "has no status yet"), ("{", "can't be read"), ("{}", "can't be read"), ("[]", "can't be read")],
)
def test_no_or_another_status(tmp_path, text, said):
    run_dir = make_run(tmp_path / "run")
    if text is not None:
        (run_dir / "status.json").write_text(text)
    result = invoke(str(run_dir))
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_journal_that_is_none(tmp_path, status):
    run_dir = make_run(tmp_path / "run", replace(status, state="done"))
    (run_dir / "journal.sqlite").write_bytes(b"no database" * 100)
    result = invoke(str(run_dir))
    assert result.exit_code == 2
    assert "file is not a database" in result.stderr


def cancel(*arguments: object):
    return CliRunner().invoke(cli.app, ["cancel", *map(str, arguments)])


def test_cancel_leaves_the_file_that_the_driver_looks_for(tmp_path, status):
    run_dir = make_run(tmp_path / "out/.stackyard/1", status)
    result = cancel(tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("asked the run in ")
    assert len(result.stdout.splitlines()) == 1
    assert (run_dir / "cancel").exists()
    long_ago = time.time() - 3600
    os.utime(run_dir / "status.json", (long_ago, long_ago))
    assert "no news of it for 1 h 00 min" in cancel(run_dir).stdout
    record = json.loads(cancel(run_dir, "--json").stdout)
    assert (record.pop("age_s") >= 3600, record) == (True, {"run_dir": str(run_dir), "state": "running"})


def test_a_run_that_has_ended_cannot_be_cancelled(tmp_path, status):
    run_dir = make_run(tmp_path / "run", replace(status, state="done"))
    result = cancel(run_dir)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has ended: done" in result.stderr
    assert not (run_dir / "cancel").exists()


def test_no_run(tmp_path):
    result = invoke(str(tmp_path / "gone"))
    assert result.exit_code == 2
    assert "no run in" in result.stderr
