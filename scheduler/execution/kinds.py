"""What a worker process learns of the kinds of attempts that it runs."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

MEASURED_ATTEMPTS = 2
# Above this share of its time a step's thread computes; below it waits for something.
BUSY_SHARE = 0.5


class Kinds:
    """Which kinds are still to be measured here, and which hardly wait while they compute; thread-safe."""

    def __init__(self) -> None:
        self._measured: Counter[str] = Counter()
        self._busy: dict[str, bool] = {}
        self._lock = threading.Lock()

    def measures(self, kind: str) -> bool:
        """True for the first attempts of a kind: measuring costs fresh memory, and soon tells no news."""
        with self._lock:
            self._measured[kind] += 1
            return self._measured[kind] <= MEASURED_ATTEMPTS

    def would_measure(self, kind: str) -> bool:
        """True if the next attempt of the kind is to be measured, which has to be alone for that."""
        return self._measured[kind] < MEASURED_ATTEMPTS

    @contextlib.contextmanager
    def computing(self, kind: str) -> Iterator[None]:
        """Note for how much of the block its thread has the processor, unless the block raises."""
        began, used = time.monotonic(), time.thread_time()
        yield
        self._busy[kind] = time.thread_time() - used > BUSY_SHARE * (time.monotonic() - began)

    def mostly_computes(self, kind: str) -> bool:
        """True if the thread of the kind's last attempt had the processor most of the time."""
        return self._busy.get(kind, False)
