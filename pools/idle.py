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
        nbytes = block.nbytes
        block.since = monotonic()
        self._by_age[block] = None
        same = self._by_size.get(nbytes)
        if same is None:
            self._by_size[nbytes] = [block]
        else:
            same.append(block)
        self.nbytes += nbytes

    def take(self, nbytes: int) -> Block | None:
        """The most recently used block of exactly this size; None if there is none that is ready."""
        blocks = self._by_size.get(nbytes)
        if not blocks:
            return None
        for block in reversed(blocks):
            if block.pending is None or block.pending():
                block.pending = None
                self.remove(block)
                return block
        return None

    def oldest(self) -> Block | None:
        """The block that was used least recently and has no work under way, still kept."""
        for block in self._by_age:
            if block.pending is None or block.pending():
                return block
        return None

    def remove(self, block: Block) -> None:
        """Forget a block that is to be lent or freed."""
        nbytes = block.nbytes
        same = self._by_size[nbytes]
        if same[-1] is block:
            same.pop()
        else:
            same.remove(block)
        if not same:
            del self._by_size[nbytes]
        del self._by_age[block]
        self.nbytes -= nbytes
