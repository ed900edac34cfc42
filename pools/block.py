"""One buffer of a pool, and who has it."""

from typing import Any

from pools.holder import Holder


class Block:
    """Memory that a pool lends again and again, at an address where its framework has addresses.

    The pool's lock guards every field but `address`, `nbytes` and `memory`. `exports` counts the owners that
    make the memory visible: when none is left, nothing sees it.
    """

    __slots__ = (
        "address", "charge", "dtype", "ended", "exports", "holder", "memory", "nbytes", "pending", "shape",
        "since", "streams",
    )  # fmt: skip

    def __init__(self, nbytes: int, address: int, memory: Any) -> None:
        self.nbytes = nbytes
        self.address = address
        self.memory = memory
        self.charge: Any = None
        # streams whose work may use the memory, and what tells when that work is done
        self.streams: list[Any] = []
        self.pending: Any = None
        self.exports = 0
        self.shape: tuple[int, ...] = ()
        self.dtype: Any = None
        self.holder: Holder = (None, None)
        self.since = 0.0
        self.ended = False
