"""The most host memory that a process has held since a moment, as the kernel counts it."""

import ctypes
import gc
from pathlib import Path

import psutil

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
RESET_PEAK_RSS = "5"


class HostPeak:
    """Measures a block's peak of resident memory over what was resident when it began, in bytes.

    Linux keeps one high-water mark for each process (VmHWM in proc(5)) and lets a process reset its own; the
    figure belongs to the block only if nothing else ran in the process meanwhile. `nbytes` is None where the
    kernel has no such mark.
    """

    def __init__(self) -> None:
        self.nbytes: int | None = None
        self._before: int | None = None

    def start(self, *, idle_bytes: int = 0) -> None:
        """Reset the high-water mark.

        What earlier work left behind would be used again unseen: the C library's free memory is given back
        first, and `idle_bytes`, resident in pools, count as not there yet.
        """
        gc.collect()
        if not _trim_heap():
            return
        try:
            CLEAR_REFS.write_text(RESET_PEAK_RSS)
        except (
            OSError
        ):  # not Linux, or a kernel without page monitoring: no figure is better than a wrong one
            return
        self._before = psutil.Process().memory_info().rss - idle_bytes

    def stop(self) -> None:
        """Read the high-water mark."""
        if self._before is None:
            return
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                self.nbytes = max(0, int(line.split()[1]) * 1024 - self._before)


def _trim_heap() -> bool:
    """Give free heap memory back to the kernel; False where that can't be asked (malloc_trim(3), glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True
