"""The most host memory that a process has held since a moment, as the kernel counts it."""

import contextlib
import os
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

    def start(self) -> None:
        """Reset the high-water mark."""
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text(RESET_PEAK_RSS)
            self._before = psutil.Process(os.getpid()).memory_info().rss

    def stop(self) -> None:
        """Read the high-water mark."""
        if self._before is None:
            return
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                self.nbytes = max(0, int(line.split()[1]) * 1024 - self._before)
