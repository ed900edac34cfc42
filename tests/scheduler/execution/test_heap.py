"""What a worker process's heap keeps of freed memory: enough to spare page faults, and no more."""

import os
import platform
import subprocess
import sys

import pytest

from scheduler.execution import heap
from scheduler.execution.heap import BUSY_S, DASKS_TRIM_THRESHOLD, IDLE_S, KEPT_BYTES, MUCH_BYTES, FreedMemory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

# Arrays as a step makes and drops them, in a thread as a worker's; faults of the second half are counted.
CODE = """
import resource, sys, threading
import numpy as np
import psutil
from scheduler.execution.heap import keep_freed_memory, trim_heap

kept = keep_freed_memory(*map(int, sys.argv[2:])) if sys.argv[1] == "keep" else False

def work():
    for _ in range(20):
        arrays = [np.ones(1 << 20, np.uint8) for _ in range(24)]
        del arrays

def measured():
    global faults
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

thread = threading.Thread(target=measured)
thread.start()
thread.join()
held = psutil.Process().memory_info().rss
assert trim_heap()
print(kept, faults, held - psutil.Process().memory_info().rss)
"""


def run(mode: str, **variables: str) -> tuple[bool, int, int]:
    """Whether the heap was told to keep, page faults, and bytes that a trim gave back."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *mode.split()],
        env=clean | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    kept, faults, given = done.stdout.split()
    return kept == "True", int(faults), int(given)


def test_memory_that_a_step_frees_is_there_for_the_next_one_without_faults() -> None:
    dasks = {"MALLOC_TRIM_THRESHOLD_": DASKS_TRIM_THRESHOLD}
    kept, faults, given = run("keep", **dasks)
    assert kept
    not_kept, faults_before, _ = run("leave", **dasks)
    assert not not_kept
    assert faults < faults_before / 10
    assert given <= KEPT_BYTES


@pytest.mark.parametrize(("mib", "kept"), [(0, True), (1023, False), (1024, True)])
def test_a_process_with_a_small_limit_keeps_nothing(mib: int, kept: bool) -> None:
    assert run(f"keep {mib << 20}")[0] == kept


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
def test_what_somebody_has_chosen_stays(name: str) -> None:
    kept, _, _ = run("keep", **{name: "131072"})
    assert not kept


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the heap was trimmed."""
    made: list[int] = []
    monkeypatch.setattr(heap, "trim_heap", lambda: made.append(1))
    return made


def test_an_idle_process_keeps_nothing_and_is_asked_once(trims: list[int]) -> None:
    freed = FreedMemory()
    assert not freed.look(0.0, busy=True, unmanaged_bytes=MUCH_BYTES)
    assert not freed.look(1.0, busy=False, unmanaged_bytes=MUCH_BYTES)
    assert not freed.look(1.0 + IDLE_S / 2, busy=False, unmanaged_bytes=MUCH_BYTES)
    assert freed.look(1.0 + IDLE_S, busy=False, unmanaged_bytes=MUCH_BYTES)
    assert not any(freed.look(float(now), busy=False, unmanaged_bytes=0) for now in range(2, 60))
    assert len(trims) == 1


def test_a_process_that_never_worked_has_nothing_to_give_back(trims: list[int]) -> None:
    freed = FreedMemory()
    assert not any(freed.look(float(now), busy=False, unmanaged_bytes=MUCH_BYTES) for now in range(60))
    assert trims == []


def test_a_busy_process_gives_back_what_is_a_lot_now_and_then(trims: list[int]) -> None:
    freed = FreedMemory()
    freed.look(0.0, busy=True, unmanaged_bytes=1000)
    assert not freed.look(100.0, busy=True, unmanaged_bytes=1000 + MUCH_BYTES)
    assert freed.look(101.0, busy=True, unmanaged_bytes=1001 + MUCH_BYTES)
    assert not freed.look(101.0 + BUSY_S / 2, busy=True, unmanaged_bytes=1001 + MUCH_BYTES)
    assert freed.look(101.0 + BUSY_S, busy=True, unmanaged_bytes=1001 + MUCH_BYTES)
    assert len(trims) == 2
