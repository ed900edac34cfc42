"""A step that never ends costs its own job: it is named, and stopped with its process; others go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from memcore import backend_of
from scheduler.core.events import Done, TimedOut, WorkerDied
from scheduler.execution.activity import WAITS, Attempts
from scheduler.execution.messages import Pulse
from scheduler.execution.run import run
from scheduler.execution.status import RunStatus
from scheduler.execution.watchdog import STUCK_S, Watchdog
from scheduler.execution.worker_plugin import read_worker_pids
from scheduler.host.reservations import Reservations
from tests.scheduler.execution.fake_cluster import MIB, ON_CPU, FakeFuture, World, job
from tests.scheduler.execution.tiny_runs import MakeConfig, decided, outcomes, stacks, step_config, tried

DEADLINE_S = 120.0
# A fresh process loads a library first, which counts.
TIMEOUT_S = 30.0
A, B = ("a", 1), ("b", 1)
# libc's sleep, called without giving up the interpreter's lock: no other thread of the process runs.
HANGS = {"sleeps": "time.sleep(3600)", "holds the GIL": "ctypes.PyDLL(None).sleep(3600)"}


def hanging_step(folder: Path, how: str, job_id: str) -> None:
    """A module `hanging` whose step hangs at one job."""
    (folder / "hanging.py").write_text(
        "import ctypes, time\n"
        "def step(stack, *, context):\n"
        f"    if context.job_id == '{job_id}':\n"
        f"        {how}\n"
        "    return stack\n"
    )


@pytest.mark.skipif(not backend_of("pyclesperanto").installed(), reason="needs pyclesperanto")
@pytest.mark.parametrize("how", HANGS.values(), ids=HANGS)
def test_a_hung_step_is_stopped_in_time_and_its_neighbours_are_requeued_without_a_strike(
    tmp_path: Path, make_config: MakeConfig, how: str
) -> None:
    hanging_step(tmp_path, how, "name-n04")
    config = step_config(
        make_config,
        stacks(tmp_path / "in", 9),
        "hanging",
        "pyclesperanto",
        devices={"gpus": {"virtual": ["8MiB"]}, "cpu": False},
        jobs={"timeout_s": TIMEOUT_S},
    )
    summary = run(config)
    assert (summary.done, summary.failed, summary.lost) == (8, 1, 0), summary.failures
    (failure,) = summary.failures
    assert failure.job == "name-n04"
    ends = outcomes(summary)
    last = ends.pop("name-n04")[-1]
    # What had been admitted behind it was in the process too.
    beside = [name for name, tries in ends.items() if tries != ("done",)]
    assert beside, ends
    assert {tries[-1] for tries in ends.values()} == {"done"}
    assert {each for tries in ends.values() for each in tries[:-1]} == {"worker_died"}
    if how == HANGS["sleeps"]:
        assert last == "timed_out"
        assert "its timeout_s is 30" in failure.reason
        assert all("through no fault of its own" in decided(summary, name) for name in beside)
    else:
        # A process that can't speak can't tell which attempt holds it up: each is tried again, alone. And it
        # may be held up in the middle of a look at the reservation table, which can't wait for a timeout.
        assert last in ("timed_out", "worker_died")
    hung = tried(summary, "name-n04")[-1]
    print(f"hung for {hung.ended - hung.began:.1f} s with a timeout_s of {TIMEOUT_S:g} s")


def test_a_job_that_seems_stuck_is_named_while_it_runs(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.execution.devices.usable_cores", lambda: 1)
    hanging_step(tmp_path, HANGS["sleeps"], "name-n00")
    named: dict[str, str] = {}

    def look(status: RunStatus) -> None:
        named.update((each.job, each.reason) for each in status.stuck)

    config = step_config(make_config, stacks(tmp_path / "in", 2), "hanging", jobs={"timeout_s": 25.0})
    summary = run(config, on_status=look)
    assert (summary.done, summary.failed) == (1, 1)
    assert named.keys() == {"name-n00"}
    assert named["name-n00"].startswith("computes step for ")
    assert "its process has used no processor time" in named["name-n00"]


@pytest.mark.parametrize("how", HANGS.values(), ids=HANGS)
def test_a_second_ctrl_c_ends_a_hung_run_at_once_and_leaves_nothing(
    tmp_path: Path, write_config: Callable[..., Path], how: str
) -> None:
    hanging_step(tmp_path, f"open({str(tmp_path / 'hangs')!r}, 'w').close(); {how}", "name-n00")
    config = write_config(
        input={"path": str(stacks(tmp_path / "in", 3)), "pattern": "{name}.tif"},
        steps=[{"use": "hanging:step", "declare": {"input": "numpy"}}],
        output={"path": "out", "name": "{name}"},
    )
    command = [sys.executable, "-m", "scheduler.screens", "run", str(config)]
    # As from a terminal: in a process group of its own, every process of which gets the signal.
    program = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        assert program.stderr is not None
        wait_until(lambda: (tmp_path / "hangs").exists(), program)
        workers = psutil.Process(program.pid).children(recursive=True)
        assert workers
        os.killpg(program.pid, signal.SIGINT)
        (journal,) = (tmp_path / "out" / ".stackyard").glob("*/journal.sqlite")
        run_dir = journal.parent
        wait_until(lambda: '"stopping"' in (run_dir / "status.json").read_text(), program)
        os.killpg(program.pid, signal.SIGINT)
        asked = time.monotonic()
        program.wait(DEADLINE_S)
        print(f"ended {time.monotonic() - asked:.1f} s after the second Ctrl-C")
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    assert program.returncode == 130
    # The last of them, multiprocessing's resource tracker, ends once it sees that the others have.
    _, alive = psutil.wait_procs(workers, timeout=DEADLINE_S)
    assert alive == []
    left = set(read_worker_pids(run_dir))
    assert left
    with Reservations() as table:
        assert [row for row in table.rows() if row.process.pid in left] == []
    assert [path.name for path in (tmp_path / "out").rglob("*") if ".part" in path.name] == []


def wait_until(look: Callable[[], bool], program: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not look():
        assert program.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


# who is to blame, without processes


def pulse(*attempts: tuple[tuple[str, int], tuple[float, str, float]]) -> Pulse:
    return Pulse("w1", dict(attempts))


def both() -> Watchdog:
    watchdog = Watchdog()
    watchdog.submitted(A, "w1", 100.0)
    watchdog.submitted(B, "w1", 100.5)
    return watchdog


def test_waiting_for_its_turn_is_no_part_of_the_seconds_that_an_attempt_runs() -> None:
    attempts = Attempts()
    with attempts.begin("a", 1) as activity:
        activity.turn_to(WAITS)
        assert activity.waits_since is not None
        activity.began -= 60.0
        activity.waits_since -= 50.0
        ((elapsed, doing, _),) = attempts.pulse(older_than_s=0.5).values()
        assert (round(elapsed), doing) == (10, WAITS)
        activity.turn_to("computes")
        ((elapsed, _, _),) = attempts.pulse(older_than_s=0.5).values()
        assert round(elapsed) == 10


def test_an_attempt_that_has_waited_since_is_told_of_again() -> None:
    watchdog = both()
    assert watchdog.heard(pulse((A, (1.0, "reads", 0.0))), 102.0) == [(A, 1.0)]
    assert watchdog.heard(pulse((A, (1.5, WAITS, 0.0))), 102.5) == []
    assert watchdog.heard(pulse((A, (1.5, WAITS, 0.0))), 110.0) == [(A, 1.5)]


def test_of_those_in_a_silent_worker_the_first_one_counts_as_begun() -> None:
    assert both().silent(100.5 + STUCK_S) == [(A, 0.5 + STUCK_S)]


def test_one_that_is_known_to_have_begun_holds_up_those_that_are_not() -> None:
    watchdog = both()
    watchdog.heard(pulse((B, (1.0, "computes step", 0.0))), 102.0)
    assert watchdog.silent(200.0) == []


def test_a_worker_is_silent_once_nothing_was_heard_of_it_for_a_while() -> None:
    watchdog = both()
    watchdog.heard(pulse((A, (9.0, "reads", 0.0)), (B, (1.0, "computes step", 0.0))), 110.0)
    assert not watchdog.fell_silent(A, 110.0 + STUCK_S - 0.1)
    assert watchdog.fell_silent(A, 110.0 + STUCK_S)
    assert watchdog.fell_silent(B, 110.0 + STUCK_S)
    assert not watchdog.fell_silent(("c", 1), 1000.0)


def run_two_overdue() -> World:
    """Two jobs, a and b, that have both had their time in one process; what comes after them is done."""

    def work(future: FakeFuture) -> None:
        if len(world.futures) == 2:
            late = {(each.task.job_id, each.task.number): (9.0, "computes", 0.0) for each in world.futures}
            world.driver.hear(Pulse("w1", late))
        elif len(world.futures) > 2:
            world.end(future)

    world = World(work)
    world.join("w1", slots=2)
    world.dispatcher.estimates.observe_host_peak("kind", "kind", ON_CPU, MIB)
    world.replace_when_restarted("w1", by="w2")
    assert world.run(job("a", timeout_s=5.0), job("b", timeout_s=5.0)) == "done"
    return world


@pytest.mark.usefixtures("impatient_driver")
def test_of_two_that_are_overdue_in_one_process_only_the_first_has_timed_out() -> None:
    world = run_two_overdue()
    assert [type(each) for each in world.record.outcomes["a"]] == [TimedOut]
    died, done = world.record.outcomes["b"]
    assert isinstance(died, WorkerDied)
    assert not died.blame
    assert isinstance(done, Done)


@pytest.mark.usefixtures("impatient_driver")
def test_of_two_in_a_silent_process_each_is_a_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.watchdog.STUCK_S", 0.0)
    world = run_two_overdue()
    for name in ("a", "b"):
        died, done = world.record.outcomes[name]
        assert isinstance(died, WorkerDied)
        assert died.blame
        assert "its worker process has fallen silent" in died.reason
        assert isinstance(done, Done)
