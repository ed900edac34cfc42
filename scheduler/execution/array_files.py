"""The arrays that steps take from files, read once for each worker process and given up when it must be."""

import contextlib
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from numpy.typing import NDArray

from scheduler.images.arrays import ArrayFile


class ArrayFiles:
    """Keeps what was read until `give_up`, or for as long as the process serves its run.

    Notes
    -----
    Thread-safe. The arrays are read-only for good: they are shared by all attempts.
    """

    def __init__(self) -> None:
        self._arrays: dict[ArrayFile, NDArray[Any]] = {}
        self._users: Counter[ArrayFile] = Counter()
        self._lock = threading.Lock()
        self._reading = threading.Lock()

    @contextlib.contextmanager
    def in_use(self, files: Collection[ArrayFile]) -> Iterator[None]:
        """Keep what is read of these files while the block runs."""
        with self._lock:
            self._users.update(files)
        try:
            yield
        finally:
            with self._lock:
                self._users.subtract(files)

    def get(self, file: ArrayFile) -> NDArray[Any]:
        """The array in `file`, in host memory. Raises ImageError as `ArrayFile.read`."""
        # One at a time: two threads would read the same twice. What takes so long leaves the figures free.
        with self._reading:
            with self._lock:
                found = self._arrays.get(file)
            if found is None:
                found = file.read()
                with self._lock:
                    self._arrays[file] = found
            return found

    @property
    def idle_bytes(self) -> int:
        """Bytes of the arrays that no attempt uses."""
        return self.idle_bytes_of(self._arrays)

    def idle_bytes_of(self, files: Collection[ArrayFile]) -> int:
        """The same of these files alone."""
        with self._lock:
            return sum(file.nbytes for file in set(files) & self._arrays.keys() if not self._users[file])

    def give_up(self, nbytes: int, *, but: Collection[ArrayFile] = ()) -> int:
        """Forget arrays that no attempt uses, the first read first, until `nbytes` are free; how many are."""
        given = 0
        with self._lock:
            for file in [file for file in self._arrays if not self._users[file] and file not in but]:
                if given >= nbytes:
                    break
                del self._arrays[file]
                given += file.nbytes
        return given
