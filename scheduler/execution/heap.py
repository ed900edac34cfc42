"""The C library's heap of a worker process: what it keeps of freed memory, and how that is given back."""

import ctypes
import os
import sys

# mallopt(3); the numbers are glibc's.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
KEPT_BYTES = 64 << 20
LIMIT_FOR_ONE_KEPT = 16
LARGEST_ON_HEAP = 32 << 20
# After so many seconds without an attempt nothing is kept, and beside attempts no more than this for so long.
IDLE_S = 0.5
BUSY_S = 10.0
MUCH_BYTES = 256 << 20
# Dask's nannies set it for their workers: arrays of 128 KiB and more are fresh pages each time then.
DASKS_TRIM_THRESHOLD = "65536"
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "MALLOC_TOP_PAD_")


def keep_freed_memory(limit_bytes: int = 0) -> bool:
    """Have the heap of this process keep up to 64 MiB of what is freed, for the next step to take.

    A fresh page costs a fault and is cleared first. Arrays of up to 32 MiB come from one heap for all
    threads; a larger one has pages of its own.

    False where somebody has chosen otherwise in the environment, where the C library isn't glibc, and where
    the process may have so little in all (`limit_bytes`, 0: as much as there is) that it can't spare that.
    """
    if 0 < limit_bytes < LIMIT_FOR_ONE_KEPT * KEPT_BYTES:
        return False
    chosen = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if chosen not in ({}, {"MALLOC_TRIM_THRESHOLD_": DASKS_TRIM_THRESHOLD}):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {_ARENA_MAX: 1, _MMAP_THRESHOLD: LARGEST_ON_HEAP, _TRIM_THRESHOLD: KEPT_BYTES}
    answers = [mallopt(option, value) for option, value in options.items()]
    return answers == [1] * len(options)


def trim_heap() -> bool:
    """Give free heap memory back to the kernel; False where that can't be asked (malloc_trim(3), glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True


class FreedMemory:
    """Has the heap of a process give back what it keeps once nobody takes it, or when it is a lot.

    Freed memory below a small block that is still in use stays, however much that is.
    """

    def __init__(self) -> None:
        self._trimmed_at = float("-inf")
        self._idle_since: float | None = None
        self._used = False
        self._least = sys.maxsize

    def look(self, now: float, *, busy: bool, unmanaged_bytes: int) -> bool:
        """Trim the heap if it is time; `unmanaged_bytes` are resident, and in no pool. True if it was."""
        self._least = min(self._least, unmanaged_bytes)
        if busy:
            self._used, self._idle_since = True, None
            due = unmanaged_bytes > self._least + MUCH_BYTES and now - self._trimmed_at >= BUSY_S
        else:
            self._idle_since = now if self._idle_since is None else self._idle_since
            due = self._used and now - self._idle_since >= IDLE_S
            self._used = self._used and not due
        if due:
            self._trimmed_at = now
            trim_heap()
        return due
