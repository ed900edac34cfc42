"""The idle buffers of a pool, by size and by when they were last used."""

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
        self._by_age: dict[Block, None] = {}
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
        same = self._by_size.get(nbytes)
        if not same:
            return None
        if same[-1].pending is None:
            block = same.pop()
        else:
            ready = next((index for index in reversed(range(len(same))) if _is_ready(same[index])), None)
            if ready is None:
                return None
            block = same.pop(ready)
            block.pending = None
        del self._by_age[block]
        self.nbytes -= nbytes
        return block

    def oldest(self) -> Block | None:
        """The block that was used least recently and has no work under way, still kept."""
        return next(filter(_is_ready, self._by_age), None)

    def remove(self, block: Block) -> None:
        """Forget a block that is to be freed."""
        del self._by_age[block]
        self._by_size[block.nbytes].remove(block)
        self.nbytes -= block.nbytes


def _is_ready(block: Block) -> bool:
    return block.pending is None or bool(block.pending())
