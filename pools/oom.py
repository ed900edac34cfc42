"""Is it out of memory? By the exact type and code of each framework's error, never by a guess."""

import sys
from collections.abc import Iterator

from memcore.backend import Backend
from memcore.registry import backend_of, memory_type_names


def is_oom(error: BaseException) -> bool:
    """Whether the error says that memory ran out, so that giving some back and trying again can help.

    An illegal address, a failed assertion or any other failure on a device is not.
    """
    return isinstance(error, MemoryError) or any(backend.is_oom(error) for backend in loaded_backends())


def loaded_backends() -> Iterator[Backend]:
    """The backends whose framework this process has imported: no other holds memory, or fails."""
    for name in memory_type_names():
        backend = backend_of(name)
        if sys.modules.get(backend.module) is not None:
            yield backend
