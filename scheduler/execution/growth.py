"""A worker process whose memory keeps growing, beyond what its pools hold."""

from collections.abc import Callable

from scheduler.core.model import gib

# A process grows while libraries load and caches fill; a leak grows on.
SETTLED_AFTER = 2
RISES = 3


class Growth:
    """Watches the memory of a process that its pools don't account for, between its attempts.

    Parameters
    ----------
    allowed_bytes
        How far it may grow beyond the least that it had once a few attempts were done.
    """

    def __init__(self, allowed_bytes: int) -> None:
        self.allowed_bytes = allowed_bytes
        self._looks = 0
        self._rises = 0
        self._least = self._last = 0

    def look(self, unmanaged_bytes: int, *, trimmed: Callable[[], int]) -> str:
        """Take in the figure after an attempt; why the process should be replaced, or "" if it needn't be.

        `trimmed` gives the figure once free heap memory has gone back to the kernel: that is no leak.
        """
        self._looks += 1
        if self._looks <= SETTLED_AFTER:
            self._least = self._last = unmanaged_bytes
            return ""
        self._rises = self._rises + 1 if unmanaged_bytes > self._last else 0
        self._least = min(self._least, unmanaged_bytes)
        self._last = unmanaged_bytes
        grown = unmanaged_bytes - self._least
        if grown > self.allowed_bytes and self._rises >= RISES:
            self._last = trimmed()
            grown = self._last - self._least
        if grown <= self.allowed_bytes or self._rises < RISES:
            return ""
        return (
            f"its memory keeps growing: {gib(grown)} more than after its first jobs, and no array of the "
            "pools is the cause"
        )
