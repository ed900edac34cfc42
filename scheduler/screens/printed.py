"""What modules of steps print while they are imported: told on standard error, never amid the JSON."""

import ctypes
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from scheduler.screens.event_lines import write_event
from scheduler.screens.streams import lossy
from scheduler.screens.words import printable

_TOLD_BYTES = 16 << 10


@contextmanager
def prints_told(*, log_json: bool = False, quiet: bool = False) -> Iterator[None]:
    """Take what the block prints by any means, C libraries included, and tell it at the block's end.

    A message on standard error, or with `log_json` an event, "printed"; its first 16 KiB. `quiet` drops it.
    Warnings come after it as they would have come without.
    """
    show, shown = warnings.showwarning, []
    warnings.showwarning = lambda *given, **keywords: shown.append((given, keywords))
    try:
        with tempfile.TemporaryFile() as taken:
            try:
                with _redirected(taken.fileno()):
                    yield
            finally:
                taken.seek(0)
                text = taken.read(_TOLD_BYTES).decode(errors="replace").strip()
                if text and not quiet:
                    _tell(text, log_json=log_json)
    finally:
        warnings.showwarning = show
        for given, keywords in shown:
            show(*given, **keywords)


def _tell(text: str, *, log_json: bool) -> None:
    if log_json:
        write_event({"at": time.time(), "event": "printed", "text": text})
        return
    with lossy(sys.stderr):
        print(f"stackyard: printed while the steps were imported:\n{printable(text)}", file=sys.stderr)


@contextmanager
def _redirected(target: int) -> Iterator[None]:
    """Standard output and error of the process lead to the descriptor `target` inside the block.

    The stream objects stay, as a module may keep one, in a logging handler for instance.
    """
    _flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        for number, _ in kept:
            os.dup2(target, number)
        yield
    finally:
        _flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


def _flush() -> None:
    """Python's buffers and the C library's."""
    for stream in (sys.stdout, sys.stderr):
        with lossy(stream):
            pass
    ctypes.CDLL(None).fflush(None)
