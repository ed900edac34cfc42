"""A thread that does the same few things again and again."""

import logging
import threading
from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)


class Regularly:
    """Does each of `tasks`, by what it is for, every `interval_s` seconds until it is closed.

    What raises is tried again the next time: a full or busy table is over in a moment. A problem is logged
    once for as long as it lasts.
    """

    def __init__(self, interval_s: float, tasks: Mapping[str, Callable[[], None]], *, name: str) -> None:
        self._interval_s = interval_s
        self._tasks = tasks
        self._closing = threading.Event()
        self._problems: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for what is being done."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            for what, do in self._tasks.items():
                try:
                    do()
                except Exception as error:  # noqa: BLE001  tried again in a moment
                    if repr(error) != self._problems.get(what):
                        self._problems[what] = repr(error)
                        _log.warning("this worker can't %s now: %r", what, error)
