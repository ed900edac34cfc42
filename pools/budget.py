"""A limit in bytes that several pools of one device share."""

import threading

from memcore.info import bytes_text
from pools.sizes import parse_size


class Budget:
    """Bytes under a limit. `take` before allocating, `give` after freeing.

    Notes
    -----
    Thread-safe. Its lock is a leaf: nothing else is locked, called or allocated under it.
    """

    def __init__(self, limit: int | str) -> None:
        self.limit = parse_size(limit)
        self._used = 0
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes taken and not yet given."""
        return self._used

    @property
    def free(self) -> int:
        """Bytes that `take` would still grant."""
        return self.limit - self._used

    def take(self, nbytes: int, at_least: int) -> int:
        """Take `nbytes`, or what is left if that is no less than `at_least`; 0 if it is less.

        A request of exactly what is left is granted even though its size class would be larger.
        """
        with self._lock:
            granted = min(nbytes, self.limit - self._used)
            if granted < at_least:
                return 0
            self._used += granted
            return granted

    def give(self, nbytes: int) -> None:
        """Give back what `take` granted."""
        with self._lock:
            if nbytes > self._used:
                raise AssertionError(f"{nbytes} bytes given back, but only {self._used} are taken")
            self._used -= nbytes

    def __str__(self) -> str:
        return f"{bytes_text(self._used)} of {bytes_text(self.limit)}"
