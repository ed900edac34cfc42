"""Worker processes killed in the middle of their work."""

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.host.rows import ReservationRow


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker process that was killed, and the jobs that had memory there."""

    pid: int
    jobs: tuple[str, ...]


class Killer:
    """Kills workers when certain numbers of jobs have ended, spread over the run by the seed.

    A job that a kill has hit once is left alone: hit twice it would be set aside, as it should be, and
    counted as failed.
    """

    def __init__(self, jobs: int, kills: int, seed: int, kill: Callable[[int, int], None] = os.kill) -> None:
        self._random = np.random.default_rng((seed, kills))
        self._kill = kill
        self._due = due_after(jobs, kills, self._random)
        self._hit: set[str] = set()
        self.done: list[Kill] = []

    def act(self, ended: int, pids: Sequence[int], rows: Iterable[ReservationRow]) -> Kill | None:
        """Kill one of the workers `pids` if a kill is due after `ended` jobs; one that has work.

        `rows` are the run's reservations, which say who works on what.
        """
        if len(self.done) == len(self._due) or ended < self._due[len(self.done)]:
            return None
        work: dict[int, set[str]] = {}
        for row in rows:
            if row.process.pid in pids:
                work.setdefault(row.process.pid, set()).add(row.job)
        candidates = sorted(pid for pid, jobs in work.items() if not jobs & self._hit)
        if not candidates:
            return None
        pid = candidates[int(self._random.integers(len(candidates)))]
        try:
            self._kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended by itself meanwhile: another one next time
            return None
        self._hit |= work[pid]
        self.done.append(Kill(pid, tuple(sorted(work[pid]))))
        return self.done[-1]

    @property
    def is_due_after(self) -> int | None:
        """How many jobs must have ended before the next kill; None if there is none left."""
        return self._due[len(self.done)] if len(self.done) < len(self._due) else None


def due_after(jobs: int, kills: int, random: np.random.Generator) -> list[int]:
    """After how many ended jobs each kill is due: one in each of as many equal parts of the run.

    None in the last tenth, where too little work may be left.
    """
    width = 0.9 * jobs / max(1, kills)
    return [int((number + random.random()) * width) for number in range(kills)]
