"""Standard streams that may be closed or full: what is told of a run can get lost, and the run goes on."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


@contextmanager
def lossy(stream: IO[str]) -> Iterator[None]:
    """What the block writes to `stream` is dropped if nobody takes it, and so is all that comes after it.

    A pipe's reader may have ended, a log's disk may be full. Standard error says so of standard output.
    """
    try:
        yield
        stream.flush()
    except OSError as error:
        _drop(stream.fileno())
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            with lossy(sys.stderr):
                print(f"stackyard: standard output can't be written: {error.strerror}", file=sys.stderr)


def write_past_buffer(data: bytes) -> None:
    """Write to standard error as `lossy` would, taking no lock: a signal handler may call it."""
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(2, left) :]
    except OSError:
        _drop(2)


def open_closed_streams() -> None:
    """Give the standard streams that this process was started without the null device.

    Otherwise the next file that is opened gets the stream's number, and with it what is printed.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:  # closed
            _drop(number)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _drop(number: int) -> None:
    """Let the descriptor lead to nowhere: what a buffer still holds can then be flushed at the exit."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
