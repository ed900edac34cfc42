"""What steps write down is there whatever becomes of their process."""

import os
import signal
import subprocess
import sys

from scheduler.stress.diary import Diary, StepRun, read_diaries

CHILD = """
import os, signal, sys
from pathlib import Path
from scheduler.stress.diary import Diary
diary = Diary(Path(sys.argv[1]))
diary.write("began", "0", "a")
diary.write("charged", "0", "a", charged=500)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_runs_of_a_step_are_told_apart(tmp_path):
    diary = Diary(tmp_path)
    for run, job in (("0", "a"), ("1", "a"), ("2", "b")):
        diary.write("began", run, job)
        diary.write("charged", run, job, charged=1000)
    diary.write("touched", "2", "b", touched=13)
    diary.write("ended", "2", "b")
    diary.close()
    me = os.getpid()
    assert read_diaries(tmp_path) == [
        StepRun("a", me, 1000),
        StepRun("a", me, 1000),
        StepRun("b", me, 1000, 13, ended=True),
    ]


def test_a_killed_process_leaves_what_it_has_written(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)])
    assert child.wait(60) == -signal.SIGKILL
    assert read_diaries(tmp_path) == [StepRun("a", child.pid, 500)]


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    diary = Diary(tmp_path)
    diary.write("began", "0", "a")
    diary.close()
    (path,) = (tmp_path / "stress").iterdir()
    path.write_bytes(path.read_bytes() + b'{"event": "char')
    assert read_diaries(tmp_path) == [StepRun("a", os.getpid())]


def test_a_run_without_a_diary(tmp_path):
    assert read_diaries(tmp_path) == []
