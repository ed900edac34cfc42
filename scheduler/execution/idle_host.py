"""Host memory that a worker process keeps for jobs to come, and can give up: arrays, state, files."""

from dataclasses import dataclass

from pools import PoolSet
from scheduler.execution.array_files import ArrayFiles
from scheduler.execution.heap import trim_heap
from scheduler.execution.residents import Residents
from scheduler.images.arrays import ArrayFile


@dataclass(frozen=True, slots=True)
class OwnIdle:
    """What an attempt will take up again: the name of its steps' state, and the files of their arrays."""

    state: str = ""
    files: frozenset[ArrayFile] = frozenset()


NOTHING = OwnIdle()


class IdleHost:
    """The idle bytes of host memory in one worker process of a run.

    Each job reserves its state and files with its own bytes, as if it had to make them: kept between jobs,
    they count as memory that can be given back, and so never twice.

    Notes
    -----
    Thread-safe, as its parts are.
    """

    def __init__(self, pools: PoolSet, residents: Residents, files: ArrayFiles) -> None:
        self._pools = pools
        self._residents = residents
        self._files = files

    @property
    def nbytes(self) -> int:
        """All that `reclaim` could give back."""
        return self._pools.idle_bytes("cpu") + self._residents.idle_on_host() + self._files.idle_bytes

    def nbytes_for(self, own: OwnIdle) -> int:
        """What of it an attempt would use again: the pools' arrays, its own state and files."""
        return (
            self._pools.memory("cpu").idle
            + self._residents.idle_on_host(own.state)
            + self._files.idle_bytes_of(own.files)
        )

    def reclaim(self, nbytes: int, *, but: OwnIdle = NOTHING) -> int:
        """Give idle bytes back: the pools' first, then state, the longest unused first, then files.

        Returns how many were given back, which may be fewer than `nbytes`. What `but` names stays.
        """
        given = self._pools.reclaim("cpu", nbytes)
        if given < nbytes:
            given += self._residents.give_up_on_host(nbytes - given, but=[but.state])
        if given < nbytes:
            given += self._files.give_up(nbytes - given, but=but.files)
        if given < nbytes:
            trim_heap()  # nobody can say how much that was
        return given
