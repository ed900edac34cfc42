"""When memory may be shared between libraries that see it differently."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcore.backend import Backend
from memcore.errors import UnknownMemoryTypeError
from memcore.host import HostBuffer, root_owner
from memcore.registry import backend_for


def may_share(view: NDArray[Any], source: Backend, target: Backend) -> str | None:
    """Why an array of `target` over the host memory of `view` would be unsafe, or None if it is safe.

    A library of immutable arrays reads shared memory whenever it likes, also from code that was dispatched
    earlier: nobody may be able to write to it. A library without a read-only flag may write to what it is
    lent.
    """
    if target.immutable:
        if source.immutable or is_immutable(view):
            return None
        return f"{target.memory_type} takes shared memory to be immutable, and this can be written to"
    if not view.flags.writeable and not target.keeps_read_only:
        return f"{target.memory_type} can't keep read-only memory read-only"
    return None


def is_immutable(view: NDArray[Any]) -> bool:
    """True if nobody can write to the memory: a frozen buffer's, an immutable library's, or that of `bytes`.

    The read-only flag alone says nothing: the holder of the array below it can write, or set the flag back.
    """
    if view.flags.writeable:
        return False
    owner = root_owner(view)
    if isinstance(owner, HostBuffer):
        return owner.frozen
    if isinstance(owner, bytes):
        return True
    if isinstance(owner, np.ndarray):
        return False
    try:
        return backend_for(owner).immutable
    except UnknownMemoryTypeError:
        return False
