"""What a worker process learns of the kinds of attempts that it runs."""

import threading
from collections import Counter

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

    def note_use(self, kind: str, *, computed_s: float, processor_s: float) -> None:
        """Note for how long an attempt computed, and for how much of that its thread had the processor."""
        self._busy[kind] = processor_s > BUSY_SHARE * computed_s

    def mostly_computes(self, kind: str) -> bool:
        """True if the thread of the kind's last attempt had the processor most of the time."""
        return self._busy.get(kind, False)
