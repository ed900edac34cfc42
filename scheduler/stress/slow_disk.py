"""A disk that is slow, put where a process meets it: in the wait until its data is safe."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

FOLDER = "slow-disk"
"""Results in a folder of this name are on the slow disk."""

LEAST_S, MOST_S = 0.1, 0.6
_DESCRIPTORS = Path("/proc/self/fd")

Sync = Callable[[Any], None]

_lock = threading.Lock()
_slow = False


def make_disk_slow() -> None:
    """From now on `os.fsync` in this process takes its time for what lies in a folder named `slow-disk`.

    Where the kernel doesn't tell which file a descriptor is (there is no /proc), nothing is slow.
    """
    global _slow
    with _lock:
        if not _slow and _DESCRIPTORS.is_dir():
            os.fsync = slowed(os.fsync, threading.Event().wait)  # type: ignore[assignment]
            _slow = True


def slowed(sync: Sync, wait: Callable[[float], object]) -> Sync:
    """`sync` of a file or descriptor, for those on the slow disk after a wait of 0.1 to 0.6 s."""

    def fsync(fd: Any) -> None:
        descriptor = fd if isinstance(fd, int) else fd.fileno()
        path = os.readlink(_DESCRIPTORS / str(descriptor))
        if FOLDER in Path(path).parts:
            wait(LEAST_S + (MOST_S - LEAST_S) * crc32(path.encode()) / 0xFFFFFFFF)
        sync(fd)

    return fsync
