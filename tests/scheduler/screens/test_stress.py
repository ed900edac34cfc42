"""`stackyard stress`: a small one for real, and what it says of itself."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from scheduler.screens import cli
from scheduler.screens.stress_command import draw_account
from scheduler.stress.account import StressAccount

CONFIG = Path(__file__).parents[3] / "configs/stress.yaml"
GIB = 1 << 30

ACCOUNT = StressAccount(
    jobs=2000,
    done=2000,
    failed=0,
    lost=0,
    duplicates=0,
    wrong_values=0,
    oom_attempts=123,
    worker_kills=4,
    reservations_left=0,
    overcommit_bytes=0,
    bytes_charged=3000 * GIB,
    bytes_touched=40 * GIB,
    wall_s=200.4,
    oom_deliberate=120,
    virtual=True,
    seed=3,
    interrupted=False,
    notes=("9 readings of probes failed or came late",),
)
KEYS = [
    "jobs",
    "done",
    "failed",
    "lost",
    "duplicates",
    "wrong_values",
    "oom_attempts",
    "worker_kills",
    "reservations_left",
    "overcommit_bytes",
    "bytes_charged",
    "bytes_touched",
    "wall_s",
]


def drawn(account: StressAccount, folder: Path | None = None) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(draw_account(account, folder))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def invoke(*arguments: object):
    return CliRunner().invoke(cli.app, ["stress", *map(str, arguments)])


def test_the_account_of_a_test_in_which_all_went_well():
    assert drawn(ACCOUNT) == (
        "2,000 of 2,000 jobs done in 3 min 20 s, seed 3\n"
        "       0  failed\n"
        "       0  lost\n"
        "       0  done twice\n"
        "       0  with wrong values\n"
        "     123  attempts out of memory, 3 of them at jobs that declare what they need\n"
        "       4  workers killed\n"
        "       0  promises or charges left over\n"
        " 0 bytes  promised beyond what was there, at most\n"
        "2.93 TiB  charged to devices\n"
        "  40 GiB  of that really written\n"
        "The devices are virtual: accounts of bytes, no hardware. The CPU did the work.\n"
        "9 readings of probes failed or came late.\n"
        "Every job is done once, with the right values."
    )


def test_what_is_wrong_is_named_and_nothing_is_said_to_be_right():
    text = drawn(replace(ACCOUNT, lost=1, problems=("lost: job00001 never ended",)), Path("/tmp/kept"))
    assert text.endswith("lost: job00001 never ended\nFolder  /tmp/kept\nSomething is wrong.")


def test_an_interrupted_test_says_so_and_nothing_of_right_or_wrong():
    text = drawn(replace(ACCOUNT, done=12, interrupted=True))
    assert text.startswith("Interrupted: 12 of 2,000 jobs done")
    assert "Every job" not in text
    assert "wrong." not in text


def test_real_devices_are_not_called_virtual():
    assert "virtual" not in drawn(replace(ACCOUNT, virtual=False))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--virtual", "8GiB"), "--virtual: expected a number of devices and their size"),
        (("--virtual", "2x8GiB", "--jobs", "0"), "--jobs: "),
        (("--virtual", "2x8GiB", "--under-estimate", "lots"), "--under-estimate: expected per cent"),
        (("no-such.yaml",), "no-such.yaml"),
        (("--virtual", "2x8GiB", "--folder", Path(__file__).parent), "isn't empty"),
    ],
)
def test_what_can_t_be_started_is_exit_2(arguments, said):
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_gpu_virtual_ones_are_offered(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = invoke("--jobs", 1)
    assert result.exit_code == 2
    assert "for virtual ones, add --virtual 2x8GiB" in result.stderr


def test_a_small_one_for_real(tmp_path):
    """Everything that the large one does, in a few jobs: hogs, a kill, under-estimates, faults."""
    folder = tmp_path / "work"
    command = [
        Path(sys.executable).with_name("stackyard"),
        *("stress", CONFIG, "--virtual", "2x1GiB", "--jobs", "40", "--folder", folder, "--json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr
    record = json.loads(done.stdout)
    assert list(record)[: len(KEYS)] == KEYS
    for key in ("failed", "lost", "duplicates", "wrong_values", "reservations_left", "overcommit_bytes"):
        assert record[key] == 0, done.stderr
    assert (record["jobs"], record["done"], record["worker_kills"]) == (40, 40, 1)
    assert record["virtual"] is True
    assert record["bytes_touched"] * 100 >= record["bytes_charged"] > 0
    assert len(list((folder / "results").iterdir())) > 15
    (run,) = folder.glob("stress-*")
    assert not list(Path("/dev/shm").glob(f"*{run.name}*"))


def test_ctrl_c_ends_it_and_everything_that_it_has_started(tmp_path):
    folder = tmp_path / "work"
    command = [
        Path(sys.executable).with_name("stackyard"),
        *("stress", "--virtual", "2x1GiB", "--jobs", "5000", "--hog", "random", "--json"),
        *("--folder", folder),
    ]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert any(" running: " in line for line in process.stderr)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    record = json.loads(stdout)
    assert (record["jobs"], record["lost"], record["duplicates"]) == (5000, 0, 0)
    assert record["done"] < 5000
    assert len(children) >= 2 + 1 + 3  # hogs, the watch, workers
    assert not psutil.wait_procs(children, timeout=60)[1]
    (run,) = folder.glob("stress-*")
    assert not list(Path("/dev/shm").glob(f"*{run.name}*"))
