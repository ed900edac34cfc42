"""Workers are killed when it is time, only where they work, and no job is hit twice."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from pools.process import ProcessId
from scheduler.host.rows import ReservationRow
from scheduler.stress.kills import Killer, due_after


def row(pid: int, job: str) -> ReservationRow:
    return ReservationRow("V-0", ProcessId(pid, 2, 3), 10, job, "run")


@pytest.fixture
def killed() -> list[tuple[int, int]]:
    return []


def killer(killed, jobs=100, kills=2) -> Killer:
    return Killer(jobs, kills, seed=1, kill=lambda *pid_and_signal: killed.append(pid_and_signal))


@pytest.mark.parametrize("seed", range(20))
def test_kills_are_spread_over_the_run(seed):
    due = due_after(1000, 4, np.random.default_rng(seed))
    assert [number // 225 for number in due] == [0, 1, 2, 3]


def test_no_kills():
    assert due_after(1000, 0, np.random.default_rng(0)) == []


def test_a_kill_waits_until_it_is_due(killed):
    one = killer(killed)
    due = one.is_due_after
    assert due is not None
    assert one.act(due - 1, [11], [row(11, "a")]) is None
    kill = one.act(due, [11], [row(11, "a"), row(11, "b")])
    assert (kill.pid, kill.jobs) == (11, ("a", "b"))
    assert killed == [(11, signal.SIGKILL)]
    assert one.act(due, [11], [row(11, "c")]) is None


def test_nobody_is_killed_without_work_or_who_is_no_worker(killed):
    one = killer(killed)
    assert one.act(100, [11], []) is None
    assert one.act(100, [11], [row(12, "a")]) is None
    assert killed == []


def test_a_job_is_not_hit_twice_and_no_more_are_killed_than_asked(killed):
    one = killer(killed)
    one.act(100, [11], [row(11, "a")])
    assert one.act(100, [11, 12], [row(11, "b"), row(11, "a")]) is None
    assert one.act(100, [11, 12], [row(11, "a"), row(12, "b")]).pid == 12
    assert one.is_due_after is None
    assert one.act(100, [13], [row(13, "c")]) is None
    assert [pid for pid, _ in killed] == [11, 12]


def test_a_worker_that_has_just_ended_is_no_kill():
    def gone(_pid: int, _signal: int) -> None:
        raise ProcessLookupError

    one = Killer(100, 1, seed=1, kill=gone)
    assert one.act(100, [11], [row(11, "a")]) is None
    assert one.done == []


def test_a_kill_is_a_kill():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    one = Killer(100, 1, seed=1)
    assert one.act(100, [child.pid], [row(child.pid, "a")]).pid == child.pid
    assert child.wait(30) == -signal.SIGKILL
    assert child.stdin is not None
    child.stdin.close()
    assert child.pid != os.getpid()
