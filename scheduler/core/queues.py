"""Waiting groups of one device class, found by what fits: O(log n) in the number of groups and of jobs.

Needs fall into size buckets, 32 for each power of two. A set bit in one integer marks a bucket with waiting
groups, so that the largest need that surely fits is one mask and one `bit_length` away.
"""

from collections.abc import Iterator
from heapq import heappop, heappush

from scheduler.core.records import Group, Option

_Entry = tuple[float, int, int, int, Group, Option, int]
_SMALLEST_BITS = 20
_MANTISSA_BITS = 5


def bucket_below(nbytes: int) -> int:
    """The highest bucket whose upper edge is at most `nbytes`, for nbytes >= 0; bucket 0 ends at 1 MiB."""
    bits = nbytes.bit_length()
    if bits <= _SMALLEST_BITS:
        return 0 if nbytes == 1 << _SMALLEST_BITS else -1
    shift = bits - _MANTISSA_BITS - 1
    return (bits - _SMALLEST_BITS - 1 << _MANTISSA_BITS) + (nbytes >> shift) - (1 << _MANTISSA_BITS)


def bucket_of(nbytes: int) -> int:
    """The bucket of a need: the lowest whose upper edge is at least `nbytes`."""
    return bucket_below(nbytes - 1) + 1 if nbytes > 1 << _SMALLEST_BITS else 0


class _Level:
    """The groups of one priority."""

    __slots__ = ("buckets", "mask", "priority", "smallest")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.mask = 0
        self.buckets: dict[int, list[_Entry]] = {}
        self.smallest: list[_Entry] = []

    def insert(self, group: Group, option: Option, size: int) -> None:
        bucket = bucket_of(size)
        heap = self.buckets.get(bucket)
        if heap is None:
            heap = self.buckets[bucket] = []
        # the longest first within a bucket: short ones fill the end of a run better
        heappush(heap, (-option.seconds, group.order, option.index, group.version, group, option, size))
        heappush(self.smallest, (size, group.order, option.index, group.version, group, option, size))
        self.mask |= 1 << bucket

    def top(self, bucket: int) -> _Entry | None:
        heap = self.buckets[bucket]
        while heap:
            entry = heap[0]
            group = entry[4]
            if entry[3] == group.version:
                return entry
            heappop(heap)
        self.mask &= ~(1 << bucket)
        return None

    def candidates(self, free: int) -> Iterator[tuple[Group, Option]]:
        """Groups that fit into `free` bytes, the largest first.

        One from each bucket, and the smallest of all.
        """
        below = bucket_below(free)
        found = False
        if self.mask >> (below + 1) & 1:
            # the bucket that `free` falls into: its first may fit or not
            entry = self.top(below + 1)
            if entry is not None and entry[6] <= free:
                found = True
                yield entry[4], entry[5]
        mask = self.mask & ((1 << below + 1) - 1)
        while mask:
            bucket = mask.bit_length() - 1
            entry = self.top(bucket)
            if entry is not None:
                found = True
                yield entry[4], entry[5]
            mask &= (1 << bucket) - 1
        if not found:
            # only here can a group that fits hide behind another in the one bucket that `free` falls into
            least = self.least()
            if least is not None and self.smallest[0][6] <= free:
                yield least

    def least(self) -> tuple[Group, Option] | None:
        heap = self.smallest
        while heap:
            entry = heap[0]
            if entry[3] == entry[4].version:
                return entry[4], entry[5]
            heappop(heap)
        return None


class FitQueue:
    """Waiting groups by priority and need.

    A group that is emptied or moved increments its version; entries of older versions are dropped when they
    surface.
    """

    __slots__ = ("_levels", "_order")

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._order: list[_Level] = []

    def insert(self, group: Group, option: Option, size: int) -> None:
        """Queue a group under one of its options, by `size`."""
        level = self._levels.get(group.priority)
        if level is None:
            level = self._levels[group.priority] = _Level(group.priority)
            self._order = sorted(self._levels.values(), key=lambda level: -level.priority)
        level.insert(group, option, size)

    def candidates(self, free: int) -> Iterator[tuple[Group, Option]]:
        """Groups whose need fits into `free` bytes: by priority, then the largest need first."""
        if free < 0:
            return
        for level in self._order:
            if level.mask:
                yield from level.candidates(free)

    def smallest(self) -> tuple[Group, Option] | None:
        """The group of the smallest size among those of the highest priority."""
        for level in self._order:
            found = level.least()
            if found is not None:
                return found
        return None


class FamilyQueues:
    """Waiting groups of each family by their expected time.

    Those that the CPU may take over from the GPUs.
    """

    __slots__ = ("_families",)

    def __init__(self) -> None:
        self._families: dict[str, FitQueue] = {}

    def insert(self, group: Group, option: Option) -> None:
        """Queue a group under its option on the CPU."""
        family = self._families.get(group.family)
        if family is None:
            family = self._families[group.family] = FitQueue()
        family.insert(group, option, microseconds(option.seconds))

    def families(self) -> list[tuple[FitQueue, Group, Option]]:
        """Each family that has waiting groups, with the shortest of them."""
        found = []
        for name, queue in list(self._families.items()):
            shortest = queue.smallest()
            if shortest is None:
                del self._families[name]
            else:
                found.append((queue, *shortest))
        return found


def microseconds(seconds: float) -> int:
    """A time as a size for a `FitQueue`."""
    return int(min(seconds, 1e12) * 1e6)
