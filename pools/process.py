"""Which process: a pid alone is reused, so a process is known by its pid and when it started."""

import os
import select
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process of this host.

    `started` is in the kernel's own ticks (elsewhere than on Linux: microseconds) and only good for
    comparing. `namespace` tells whose pids these are: a container's are another's strangers.
    """

    pid: int
    started: int
    namespace: int

    def is_dead(self) -> bool:
        """Whether the process is known to be gone. One of another pid namespace can't be judged from here."""
        this = this_process()
        return self != this and self.namespace == this.namespace and not _lives(self)


def this_process() -> ProcessId:
    """The process that asks; after a fork it is another."""
    global _this
    pid = os.getpid()
    if _this is None or _this.pid != pid:
        started = _started(pid)
        if started is None:
            raise RuntimeError(f"process {pid} can't find its own start time: is /proc mounted?")
        _this = ProcessId(pid, started, _namespace())
    return _this


_this: ProcessId | None = None


# A descriptor for each process that was seen alive: asking it costs a tenth of looking into /proc, and it
# can't be taken for that of a later process with the same pid. No lock: a fork might find it taken for good.
_seen: dict[ProcessId, int] = {}
MOST_SEEN = 64


def _lives(process: ProcessId) -> bool:
    descriptor = _seen.get(process)
    if descriptor is None:
        return _started(process.pid) == process.started and _see(process)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(0):
        return True
    if _seen.pop(process, None) is not None:
        os.close(descriptor)
    return False


def _see(process: ProcessId) -> bool:
    """Keep a descriptor of a living process, where there is such a thing; False if it has just ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # Linux 5.3 and later; or it has gone, which the next look tells
        return True
    # Looked at again: the pid may have been given to another process before it was opened.
    if len(_seen) >= MOST_SEEN:
        for other in list(_seen):
            _lives(other)  # drops those of the dead, after whom nobody may ask again
    lives = _started(process.pid) == process.started
    if not lives or _seen.setdefault(process, descriptor) != descriptor:
        os.close(descriptor)
    return lives


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino if sys.platform == "linux" else 0


def _started(pid: int) -> int | None:
    """When the process started; None if there is none, or only a zombie whose memory is gone."""
    if sys.platform != "linux":
        import psutil

        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 1e6)
        except psutil.NoSuchProcess:
            return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the name, in parentheses, may itself hold spaces and parentheses; state is field 3, start 22
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
