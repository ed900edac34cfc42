"""Who holds the reservation table's lock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.host.table_file import LOCKS, TableFile

pytestmark = pytest.mark.skipif(not LOCKS.exists(), reason="needs /proc/locks, which is Linux's")
HOLD = """
import sys
from pathlib import Path
from scheduler.host.table_file import TableFile

with TableFile(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_nobody_holds_a_table_that_is_left_alone(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "own" / "table.sqlite")
    assert table.holder() is None
    with table.locked():
        assert table.holder() == os.getpid()
    assert table.holder() is None


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
