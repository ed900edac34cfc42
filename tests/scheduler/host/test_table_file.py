"""Who holds the reservation table's lock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.host.reservations import Reservations
from scheduler.host.table_file import FOLDER_VARIABLE, LOCKS, NAME, TableFile, default_path

needs_locks = pytest.mark.skipif(not LOCKS.exists(), reason="needs /proc/locks, which is Linux's")
HOLD = """
import sys
from pathlib import Path
from scheduler.host.table_file import TableFile

with TableFile(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@needs_locks
def test_nobody_holds_a_table_that_is_left_alone(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "own" / "table.sqlite")
    assert table.holder() is None
    with table.locked():
        assert table.holder() == os.getpid()
    assert table.holder() is None


@needs_locks
def test_another_process_is_named_and_not_who_waits(tmp_path: Path) -> None:
    path = tmp_path / "own" / "table.sqlite"
    table = TableFile(path)

    def hold() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    with hold() as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "held\n"
        with hold() as second:
            assert table.holder() == first.pid
            first.stdin.close()
            assert second.stdout is not None
            assert second.stdin is not None
            assert second.stdout.readline() == "held\n"
            assert table.holder() == second.pid
            second.stdin.close()


def test_the_table_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "own"))
    with Reservations():
        assert (tmp_path / "own" / NAME).is_file()
    monkeypatch.delenv(FOLDER_VARIABLE)
    assert tmp_path not in default_path().parents


def test_a_group_may_share_the_folder_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    tmp_path.chmod(0o2770)
    assert default_path() == tmp_path / NAME


@pytest.mark.parametrize(("mode", "fault"), [(0o777, "written by everybody"), (0o770, "belong to its group")])
def test_a_folder_that_strangers_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, fault: str
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    tmp_path.chmod(mode)
    with pytest.raises(PermissionError, match=fault):
        default_path()
