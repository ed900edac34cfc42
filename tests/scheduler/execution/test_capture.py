"""What a step prints ends in its job's log; what a C library prints, in the worker's."""

import subprocess
import sys
import threading
from pathlib import Path

from scheduler.execution.capture import attempt_log


def run_script(tmp_path: Path, body: str) -> str:
    """Run `body` in a process whose output was redirected; returns what reached its own streams."""
    script = (
        "import os, sys, threading\n"
        "from pathlib import Path\n"
        "from scheduler.execution.capture import attempt_log, redirect_worker_output\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "redirect_worker_output(folder / 'worker.log')\n" + body
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_prints_of_two_threads_go_to_their_own_logs(tmp_path: Path) -> None:
    body = """
both = threading.Barrier(2)
def job(name):
    with attempt_log(folder / f"{name}.log", f"attempt of {name}"):
        both.wait()
        print("this is", name)
        print("warning of", name, file=sys.stderr)
        both.wait()
threads = [threading.Thread(target=job, args=(name,)) for name in "ab"]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("outside of any attempt")
os.write(1, b"a C library\\n")
"""
    assert run_script(tmp_path, body) == ""
    assert (tmp_path / "a.log").read_text() == "--- attempt of a\nthis is a\nwarning of a\n"
    assert (tmp_path / "b.log").read_text() == "--- attempt of b\nthis is b\nwarning of b\n"
    assert set((tmp_path / "worker.log").read_text().splitlines()) == {
        "outside of any attempt",
        "a C library",
    }


def test_a_crash_leaves_its_trace_in_the_workers_log(tmp_path: Path) -> None:
    assert run_script(tmp_path, "os.abort()") == ""
    assert "Fatal Python error: Aborted" in (tmp_path / "worker.log").read_text()


def test_a_second_attempt_is_appended(tmp_path: Path) -> None:
    for number in (1, 2):
        with attempt_log(tmp_path / "job.log", f"attempt {number}") as log:
            log.write(f"text {number}\n")
    assert (tmp_path / "job.log").read_text() == "--- attempt 1\ntext 1\n--- attempt 2\ntext 2\n"


def test_an_attempt_that_prints_nothing_leaves_no_file(tmp_path: Path) -> None:
    with attempt_log(tmp_path / "job.log", "attempt 1"):
        threading.Event()
    assert list(tmp_path.iterdir()) == []
