"""The object behind every lent array: it dies with the last alias, and so tells when a buffer is free."""

from collections import deque
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pools.block import Block


class Owner:
    """What NumPy keeps as `.base` of a lent array, and with it every view, memoryview and DLPack import.

    A weak reference or finalizer on the lent array itself would fire while its views still live: NumPy
    makes a view's base the array that *owns*, skipping those between. It never skips this object.

    Notes
    -----
    `__del__` may run anywhere, in the middle of a pool's own work on the same thread: it takes no lock and
    only appends to a queue, which the pool drains under its lock.
    """

    __slots__ = ("__array_interface__", "__weakref__", "block", "readonly", "returned")

    def __init__(self, block: Block, returned: "deque[Block]") -> None:
        self.block = block
        self.returned = returned
        self.readonly = False
        self.__array_interface__: dict[str, Any] = {}

    def __del__(self) -> None:
        self.returned.append(self.block)


def view_of(owner: Owner, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The owner's memory as a C-contiguous array of this shape and dtype; it keeps the owner alive.

    Read-only if the owner is, and then for good: NumPy makes an array writeable again only if its base
    exports a writeable buffer, and the owner exports none.
    """
    if dtype.isbuiltin == 1:
        owner.__array_interface__ = {
            "data": (owner.block.address, owner.readonly),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }
        return np.asarray(owner)
    # structured and extension dtypes (bfloat16) have no faithful typestr
    owner.__array_interface__ = {
        "data": (owner.block.address, owner.readonly),
        "shape": (prod(shape) * dtype.itemsize,),
        "typestr": "|u1",
        "version": 3,
    }
    return np.asarray(owner).view(dtype).reshape(shape)
