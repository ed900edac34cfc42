import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from pools import ArrayPool
from pools.holder import held_by
from pools.virtual import VirtualDeviceMemory
from scheduler.core.model import DeviceSnapshot, ProcessMemory
from scheduler.host.reading import Reading
from scheduler.host.reservations import Denial, Grant, Reservations

GIB, MIB = 1 << 30, 1 << 20


def reading(total=8 * GIB, used=0):
    return lambda uuid: Reading(uuid, total, used)


@pytest.fixture
def table(tmp_path):
    with Reservations(tmp_path / "own" / "table.sqlite", run="a") as reservations:
        yield reservations


def test_a_reservation_holds_until_it_is_released(table):
    grant = table.reserve("j1", {"gpu": 5 * GIB}, read=reading())
    assert isinstance(grant, Grant)
    denied = table.reserve("j2", {"gpu": 4 * GIB}, read=reading())
    assert isinstance(denied, Denial)
    assert "needs 4 GiB and 0 bytes of headroom; 3 GiB are free of 8 GiB" in denied.reason
    table.release(grant)
    table.release(grant)
    assert isinstance(table.reserve("j2", {"gpu": 4 * GIB}, read=reading()), Grant)


@pytest.mark.parametrize(("need", "granted"), [(7 * GIB, True), (7 * GIB + 1, False)])
def test_the_limit_is_exact(table, need, granted):
    found = table.reserve("j", {"gpu": need}, read=reading(), headroom={"gpu": GIB})
    assert isinstance(found, Grant) is granted


def test_all_devices_or_none(table):
    denied = table.reserve("j", {"gpu": GIB, "host": 9 * GIB}, read=reading())
    assert isinstance(denied, Denial)
    assert table.rows() == []
    table.reserve("j", {"gpu": GIB, "host": 8 * GIB}, read=reading())
    assert {(row.device, row.nbytes) for row in table.rows()} == {("gpu", GIB), ("host", 8 * GIB)}


def test_unknown_is_not_free(table):
    denied = table.reserve("j", {"gpu": 0}, read=lambda uuid: Reading(uuid, 8 * GIB, None, "GPU is lost"))
    assert isinstance(denied, Denial)
    assert "unknown (GPU is lost)" in denied.reason


def test_two_runs_respect_each_other(tmp_path):
    path = tmp_path / "own" / "table.sqlite"
    with Reservations(path, run="a") as ours, Reservations(path, run="b") as theirs:
        theirs.reserve("x", {"gpu": 6 * GIB}, read=reading())
        assert isinstance(ours.reserve("j", {"gpu": 3 * GIB}, read=reading()), Denial)
        # both tables are of one process here, which counts as the run that wrote last
        assert [process.reserved_bytes for process in ours.processes("gpu")] == [6 * GIB]


def test_bytes_beyond_every_reservation_count_a_worked_case():
    """One device of 8 GiB with 7 GiB used, 1.5 GiB of it by a stranger.

    A holds 3.5 GiB: a context of 0.5, an arena of 2 that a job of 1.5 has grown, 1 idle in its pool; reserved
    1.5. B holds 2 GiB, all of it in use, and has reserved 3 for a job that is still loading. external  = 7 -
    (3.5 + 2)                   = 1.5 committed = max(1.5, 3.5 - 1) + max(3, 2)   = 2.5 + 3 = 5.5 room      =
    8 - 1.5 - 5.5                   = 1 GiB By reservations alone 8 - 1.5 - 4.5 = 2 GiB would be promised, 1
    GiB of which A's context and arena hold.
    """
    processes = (
        ProcessMemory(1, 7 * GIB // 2, GIB, 3 * GIB // 2),
        ProcessMemory(2, 2 * GIB, 0, 3 * GIB, ours=False),
    )
    snapshot = DeviceSnapshot("gpu", 8 * GIB, 7 * GIB, processes)
    assert snapshot.external_bytes == 3 * GIB // 2
    assert snapshot.committed_bytes == 11 * GIB // 2
    assert snapshot.admits(GIB)
    assert not snapshot.admits(GIB + 1)
    assert not snapshot.admits(GIB, headroom_bytes=1)


def test_idle_bytes_do_not_turn_a_job_away_and_are_to_be_trimmed(table):
    """7 of 8 GiB are ours, 6 of them idle: a job of 5 GiB is admitted, and 4 GiB must be trimmed for it."""
    grant = table.reserve("j", {"gpu": 5 * GIB}, read=reading(used=7 * GIB), held={"gpu": (7 * GIB, 6 * GIB)})
    assert isinstance(grant, Grant)
    assert grant.trim == {"gpu": 4 * GIB}


def test_impossible_measurements_are_refused(table):
    with pytest.raises(ValueError, match="reclaimable"):
        table.measure("gpu", 1, 2)
    assert table.processes("gpu") == ()


def test_of_a_process_of_two_runs_each_has_its_own(tmp_path):
    path = tmp_path / "own" / "table.sqlite"
    with Reservations(path, run="a") as ours, Reservations(path, run="b") as theirs:
        ours.reserve("j", {"gpu": GIB}, read=reading())
        theirs.reserve("x", {"gpu": 2 * GIB}, read=reading())
        for table in (ours, theirs):
            table.measure("gpu", 3 * GIB, 0)  # whoever measures last
            for seen, other in ((ours, 2 * GIB), (theirs, GIB)):
                (process,) = seen.processes("gpu")
                assert (process.ours, process.reserved_bytes, process.of_other_runs) == (True, 3 * GIB, other)


def test_a_dead_process_counts_no_more(table):
    script = (
        "import sys; from pathlib import Path; from scheduler.host.reservations import Reservations\n"
        "from scheduler.host.reading import Reading\n"
        "table = Reservations(Path(sys.argv[1]), run='b')\n"
        "table.reserve('x', {'gpu': 6 << 30}, read=lambda uuid: Reading(uuid, 8 << 30, 0))\n"
        "table.measure('gpu', 7 << 30, 0)\n"
        "print('reserved', flush=True); sys.stdin.read()\n"
    )
    path = str(table._file.path)
    with subprocess.Popen([sys.executable, "-c", script, path], stdin=-1, stdout=-1, cwd=Path.cwd()) as other:
        assert other.stdout.readline() == b"reserved\n"
        (process,) = table.processes("gpu")
        assert (process.pid, process.reserved_bytes, process.held_bytes) == (other.pid, 6 * GIB, 7 * GIB)
        assert not process.ours
        assert isinstance(table.reserve("j", {"gpu": 3 * GIB}, read=reading()), Denial)
        other.kill()
        other.wait()
    assert isinstance(table.reserve("j", {"gpu": 3 * GIB}, read=reading()), Grant)
    assert table.reap() == 0


def test_the_users_own_table_is_closed_to_others(tmp_path):
    path = tmp_path / "own" / "table.sqlite"
    Reservations(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="expected user"):
        Reservations(path)


def test_a_link_in_place_of_the_table_is_refused(tmp_path):
    (tmp_path / "elsewhere").touch()
    (tmp_path / "table.sqlite").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="not a plain file"):
        Reservations(tmp_path / "table.sqlite")


def test_a_groups_folder_is_checked_and_its_table_belongs_to_the_group(tmp_path):
    with pytest.raises(PermissionError, match="no folder; make it with: mkdir"):
        Reservations.shared(tmp_path / "missing")
    folder = tmp_path / "shared"
    folder.mkdir()
    for mode, complaint in ((0o777, "everybody"), (0o750, "doesn't belong to its group")):
        folder.chmod(mode)
        with pytest.raises(PermissionError, match=complaint):
            Reservations.shared(folder)
    folder.chmod(0o2770)
    before = os.umask(0o077)
    try:
        with Reservations.shared(folder, run="a") as table:
            table.reserve("j", {"gpu": GIB}, read=reading())
            assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o660}
    finally:
        os.umask(before)


def test_a_failure_within_a_reservation_leaves_nothing_behind(table):
    def fails(uuid):
        raise OSError("the probe broke")

    with pytest.raises(OSError, match="the probe broke"):
        table.reserve("j", {"gpu": GIB}, read=fails)
    assert table.rows() == []
    assert isinstance(table.reserve("j", {"gpu": GIB}, read=reading()), Grant)


class TableMachine(RuleBasedStateMachine):
    """Random reservations of three runs against a model.

    What is granted never adds up to more than there is.
    """

    grants = Bundle("grants")

    def __init__(self):
        super().__init__()
        self.folder = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp", f"test-{uuid.uuid4().hex}")
        self.table = Reservations(self.folder / "table.sqlite", run="a")
        self.total = 100 * MIB
        self.external = 0
        self.held = (0, 0)
        self.live = {}

    @rule(target=grants, need=st.integers(0, 120 * MIB), headroom=st.integers(0, 5 * MIB))
    def reserve(self, need, headroom):
        used = min(self.total, self.external + self.held[0])
        found = self.table.reserve(
            "j", {"gpu": need}, read=reading(self.total, used), headroom={"gpu": headroom}
        )
        reserved = sum(self.live.values())
        committed = max(reserved, self.held[0] - self.held[1])
        external = used - min(used, self.held[0])
        expected = committed + need + headroom <= self.total - external
        assert isinstance(found, Grant) is expected
        if isinstance(found, Grant):
            self.live[found.ids] = need
            assert sum(self.live.values()) <= self.total - external
            return found
        return None

    @rule(grant=grants)
    def release(self, grant):
        if grant is not None:
            self.table.release(grant)
            self.live.pop(grant.ids, None)

    @rule(held=st.integers(0, 60 * MIB), idle=st.floats(0, 1))
    def measure(self, held, idle):
        self.held = (held, int(held * idle))
        self.table.measure("gpu", *self.held)

    @rule(external=st.integers(0, 40 * MIB))
    def strangers(self, external):
        self.external = external

    @invariant()
    def table_is_the_model(self):
        assert sum(row.nbytes for row in self.table.rows()) == sum(self.live.values())

    def teardown(self):
        self.table.close()
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def start(table, names, seed, events):
    command = [
        sys.executable,
        "-m",
        "tests.scheduler.host.reserver",
        str(table),
        names,
        str(seed),
        str(events),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())


def test_eight_processes_with_kill_9_never_overcommit(tmp_path):
    """Random events from 8 processes, some killed in the middle.

    What is promised is there, what is dead is back.
    """
    events = int(os.environ.get("STACKYARD_RESERVATION_EVENTS", "8000"))
    choose = random.Random(5)
    memories = [VirtualDeviceMemory(f"test-{uuid.uuid4().hex[:8]}", 64 * MIB) for _ in range(2)]
    names = ",".join(str(memory.path) for memory in memories)
    table_path = tmp_path / "own" / "table.sqlite"
    try:
        with Reservations(table_path, run="watch") as table:
            processes = [start(table_path, names, seed, events // 8) for seed in range(8)]
            slowest = 0.0
            output = []
            for victim in choose.sample(processes, 4):
                for _ in range(choose.randint(1, 3)):
                    output.append(victim.stdout.readline())
                victim.send_signal(signal.SIGKILL)
                victim.wait()
                output.append(victim.stdout.read())
                killed = time.monotonic()
                while any(row.process.pid == victim.pid for row in table.rows()):
                    assert time.monotonic() < killed + 2
                slowest = max(slowest, time.monotonic() - killed)
                processes.append(start(table_path, names, 100 + len(processes), events // 8))
            for process in processes:
                output.append(process.communicate(timeout=240)[0])
            text = "".join(output)
            assert text.count("end") == 8
            assert "overcommit" not in text
            assert text.count("events 100") * 100 >= events // 2
            assert table.rows() == []
            assert [memory.used() for memory in memories] == [0, 0]
        print(json.dumps({"events": text.count("events 100") * 100, "dead_rows_back_s": round(slowest, 4)}))
    finally:
        for memory in memories:
            memory.unlink()


def test_leases_are_shown_by_job_and_step_until_the_process_shows_others(table):
    pool = ArrayPool("1MiB")
    with held_by("A01", "gaussian"):
        lease = pool.lease((3, 5, 7), "uint16")
    table.note_leases(pool.leases())
    (shown,) = table.leases()
    assert (shown.job, shown.step, shown.pid) == ("A01", "gaussian", os.getpid())
    assert shown.what == "numpy uint16 (3, 5, 7)"
    assert shown.nbytes == lease.nbytes
    assert shown.since <= time.time()
    lease.release()
    table.note_leases(pool.leases())
    assert table.leases() == []


def test_leases_of_a_dead_process_are_gone(tmp_path):
    path = tmp_path / "table.sqlite"
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from pools import ArrayPool\n"
        "from scheduler.host.reservations import Reservations\n"
        "pool = ArrayPool('1MiB')\n"
        "lease = pool.lease((3, 5, 7), 'uint16')\n"
        "table = Reservations(Path(sys.argv[1]))\n"
        "table.note_leases(pool.leases())\n"
        "print(len(table.leases()), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n", done.stderr
    with Reservations(path) as table:
        assert table.leases() == []
