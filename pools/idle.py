"""The idle buffers of a pool, by size and by when they were last used."""

from collections import OrderedDict
from time import monotonic

from pools.block import Block


class IdleBlocks:
    """Free blocks: the newest of a size is taken first (its pages are warm), the oldest of all goes first.

    Notes
    -----
    Not thread-safe: the pool's lock guards it.
    """

    __slots__ = ("_by_age", "_by_size", "nbytes")

    def __init__(self) -> None:
        self._by_age: OrderedDict[Block, None] = OrderedDict()
        self._by_size: dict[int, list[Block]] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._by_age)

    def add(self, block: Block) -> None:
        """Keep a block that nothing sees any more."""
        block.since = monotonic()
        self._by_age[block] = None
        self._by_size.setdefault(block.nbytes, []).append(block)
        self.nbytes += block.nbytes

    def take(self, nbytes: int) -> Block | None:
        """The most recently used block of exactly this size; None if there is none that is ready."""
        blocks = self._by_size.get(nbytes)
        if not blocks:
            return None
        for index in range(len(blocks) - 1, -1, -1):
            block = blocks[index]
            if block.pending is None or block.pending():
                block.pending = None
                del blocks[index]
                del self._by_age[block]
                self.nbytes -= nbytes
                return block
        return None

    def oldest(self) -> Block | None:
        """The block that was used least recently, still kept."""
        return next(iter(self._by_age), None)

    def remove(self, block: Block) -> None:
        """Forget a block that is to be freed."""
        del self._by_age[block]
        self._by_size[block.nbytes].remove(block)
        if not self._by_size[block.nbytes]:
            del self._by_size[block.nbytes]
        self.nbytes -= block.nbytes
