"""What a step prints goes to its job's log, never into the live progress."""

import contextlib
import faulthandler
import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_attempt = threading.local()


class _AttemptStream(io.TextIOBase):
    """Writes to the log of the attempt that runs in this thread, else to the worker's own stream."""

    def __init__(self, fallback: TextIO) -> None:
        self.fallback = fallback

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        log: AttemptLog | None = getattr(_attempt, "log", None)
        return log.write(text) if log is not None else self.fallback.write(text)

    def flush(self) -> None:
        self.fallback.flush()

    def fileno(self) -> int:
        return self.fallback.fileno()


class AttemptLog:
    """One attempt's part of `logs/JOB.log`; the file appears with the first line written.

    Without a path its lines go to the worker's own standard error.
    """

    def __init__(self, path: Path | None, header: str) -> None:
        self._path = path
        self._header = header
        self._file: TextIO | None = None

    def write(self, text: str) -> int:
        """Append `text`, and on the first call the attempt's header line before it."""
        if self._path is None:
            return sys.stderr.write(text)
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
            self._file.write(f"--- {self._header}\n")
        return self._file.write(text)

    def note(self, text: str) -> None:
        """Write what isn't the step's own; where there is no room for it the attempt doesn't end by that."""
        with contextlib.suppress(OSError):
            self.write(text)

    def close(self) -> None:
        """Close the file if it was opened."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # no room for the last lines
                self._file.close()


@contextlib.contextmanager
def attempt_log(path: Path | None, header: str) -> Iterator[AttemptLog]:
    """Send what this thread prints to `path`, if there is one, while the block runs."""
    log = AttemptLog(path, header)
    _attempt.log = log if path is not None else None
    try:
        yield log
    finally:
        _attempt.log = None
        log.close()


def redirect_worker_output(path: Path) -> None:
    """Send everything that this process prints, C libraries and crash traces included, to `path`.

    Python's print goes to the log of the attempt that prints, see `attempt_log`; the rest can't be
    told apart by attempt and goes to the worker's file. Done once, when a worker process starts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable(file=sys.__stderr__ or 2)
    route_attempts_output()


def route_attempts_output() -> None:
    """Send what Python prints within an attempt to the attempt's log; everything else goes where it went."""
    if not isinstance(sys.stdout, _AttemptStream):
        sys.stdout = _AttemptStream(sys.stdout)
    if not isinstance(sys.stderr, _AttemptStream):
        sys.stderr = _AttemptStream(sys.stderr)


def restore_output() -> None:
    """Undo it, where nobody has put something else in its place since."""
    if isinstance(sys.stdout, _AttemptStream):
        sys.stdout = sys.stdout.fallback
    if isinstance(sys.stderr, _AttemptStream):
        sys.stderr = sys.stderr.fallback
