"""The arrays that steps take from files, read once for each worker process."""

import threading
from typing import Any

from numpy.typing import NDArray

from scheduler.images.arrays import ArrayFile


class ArrayFiles:
    """Keeps what was read, for as long as the process serves its run.

    Notes
    -----
    Thread-safe. The arrays are read-only for good: they are shared by all attempts.
    """

    def __init__(self) -> None:
        self._arrays: dict[ArrayFile, NDArray[Any]] = {}
        self._lock = threading.Lock()

    def get(self, file: ArrayFile) -> NDArray[Any]:
        """The array in `file`, in host memory. Raises ImageError as `ArrayFile.read`."""
        with self._lock:
            found = self._arrays.get(file)
            if found is None:
                found = self._arrays[file] = file.read()
            return found
