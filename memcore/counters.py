"""How many conversions took which route, off until somebody asks."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RouteCount:
    """Conversions of one kind: how many, bytes copied and seconds taken, from every thread."""

    conversions: int
    bytes_copied: int
    seconds: float


class ConversionCounters:
    """Counts by (source type, target type, route), for the whole process.

    Notes
    -----
    Thread-safe. While `enabled` is False a conversion pays for one attribute read.
    """

    def __init__(self) -> None:
        self.enabled = False
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str], RouteCount] = {}

    def enable(self) -> None:
        """Count from now on, in every thread."""
        self.enabled = True

    def disable(self) -> None:
        """Stop counting; what was counted stays readable."""
        self.enabled = False

    def reset(self) -> None:
        """Forget what was counted."""
        with self._lock:
            self._counts.clear()

    def record(self, source: str, target: str, route: str, nbytes: int, seconds: float) -> None:
        """Add one conversion."""
        key = (str(source), str(target), str(route))
        with self._lock:
            count = self._counts.get(key, RouteCount(0, 0, 0.0))
            self._counts[key] = RouteCount(
                count.conversions + 1, count.bytes_copied + nbytes, count.seconds + seconds
            )

    def snapshot(self) -> dict[tuple[str, str, str], RouteCount]:
        """The counts so far, by (source type, target type, route)."""
        with self._lock:
            return dict(self._counts)


conversion_counters = ConversionCounters()
