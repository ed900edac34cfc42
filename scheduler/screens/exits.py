"""How a command ends: its exit status, its JSON, and errors as messages instead of tracebacks."""

import json
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import typer

from scheduler.screens.event_lines import write_event
from scheduler.screens.streams import lossy
from scheduler.screens.words import printable

SOME_JOBS_FAILED = 1
UNUSABLE = 2
INTERRUPTED = 130


@contextmanager
def errors_as_messages(
    *, debug: bool, unusable: tuple[type[Exception], ...], log_json: bool = False
) -> Iterator[None]:
    """Turn an exception that leaves the block into a message on standard error and an exit status.

    `unusable` errors say that the config or the arguments can't be used: exit 2. So do errors of the
    operating system, such as a folder that can't be written. Any other is a fault of this program: exit 1.
    With `debug` the traceback is printed too. With `log_json` the message is an event, "error", on a line.
    Warnings are messages too, without the line of this program that they come from.
    """
    show_before = warnings.showwarning
    if not debug:
        warnings.showwarning = partial(_show_warning, log_json)
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        expected = isinstance(error, (*unusable, OSError))
        said = _message(error) if expected else f"internal error: {type(error).__name__}: {error}"
        if debug and not log_json:
            with lossy(sys.stderr):
                traceback.print_exception(error, file=sys.stderr)
        elif not expected:
            said += "\n(the same with --debug says where)"
        if log_json:
            write_event({"at": time.time(), "event": "error", "text": said})
        else:
            gap = "\n" if "\n" in said else " "
            with lossy(sys.stderr):
                print(f"stackyard:{gap}{printable(said)}", file=sys.stderr)
        raise typer.Exit(UNUSABLE if expected else SOME_JOBS_FAILED) from error
    finally:
        warnings.showwarning = show_before


def _show_warning(log_json: bool, message: Warning | str, *_where: object, **_more: object) -> None:
    if log_json:
        write_event({"at": time.time(), "event": "warning", "text": str(message)})
    else:
        with lossy(sys.stderr):
            print(f"stackyard: {printable(str(message))}", file=sys.stderr)


def _message(error: Exception) -> str:
    # Errors of the operating system print as "[Errno 13] Permission denied: 'out'".
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the block with KeyboardInterrupt.

    `say` is called inside the signal handler: it must take no lock and write to no buffered stream.
    Must be entered in the main thread, as Python runs signal handlers there.
    """
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("stopping; what is done is kept. Ctrl-C again stops at once.")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=2))
