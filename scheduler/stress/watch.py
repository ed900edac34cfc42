"""A process of its own that looks at the reservation table: was more ever promised than was there?"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from memcore.info import bytes_text
from pools.process import ProcessId
from scheduler.core.model import Device
from scheduler.host.reservations import Reservations
from scheduler.host.rows import ReservationRow
from scheduler.stress.hogs import LEAST_PAUSE_S

LOOK_S = 0.02
START_S = 120.0


@dataclass(frozen=True, slots=True)
class WatchReport:
    """What the watch has seen.

    `overcommit_bytes` by device: the most by which promises exceeded what was there, and `moments` what was
    promised then, in words. `grants` counts promises seen for the first time; one that came and went between
    two looks is not among them.
    """

    looks: int = 0
    grants: int = 0
    overcommit_bytes: Mapping[str, int] = field(default_factory=dict)
    moments: Mapping[str, str] = field(default_factory=dict)

    @property
    def worst_bytes(self) -> int:
        """The most on any device, 0 if promises always had their memory."""
        return max(self.overcommit_bytes.values(), default=0)


@dataclass(frozen=True, slots=True)
class HogLook:
    """What the hogs held at least, in bytes by device, at a moment (seconds, monotonic).

    The moment of a look before the table was read isn't later than the look, and that of one after it isn't
    earlier.
    """

    at: float
    held: Mapping[str, int]


class Promises:
    """Judges one look at the reservation table after the other.

    A promise is held against what was there when it was made: the device's bytes without those of programs
    that aren't ours. What such a program takes afterwards is no fault of ours. The newest promise was made
    since the last look, and then all the others in the table were there too; of the hogs only what they held
    all that time counts, so that what is reported has certainly happened.
    """

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._totals = totals
        self._seen: dict[str, set[tuple[ProcessId, str, int]]] = {uuid: set() for uuid in totals}
        self._hogs: Mapping[str, int] = {}
        self._since = float("-inf")
        self._worst: dict[str, int] = {}
        self._moments: dict[str, str] = {}
        self._looks = self._grants = 0

    def look(self, rows: Iterable[ReservationRow], before: HogLook, after: HogLook) -> None:
        """Take in the table's rows, and looks at the hogs right before and after it was read."""
        rows = list(rows)
        # Looked away for longer than a hog keeps still: it may have gone and come back unseen.
        blind = after.at - self._since > LEAST_PAUSE_S
        for uuid, total in self._totals.items():
            promised = [row for row in rows if row.device == uuid]
            seen = {(row.process, row.job, row.nbytes) for row in promised}
            new = seen - self._seen[uuid]
            others = min(self._hogs.get(uuid, 0), after.held.get(uuid, 0)) if new and not blind else 0
            excess = sum(row.nbytes for row in promised) - (total - others)
            if excess > self._worst.get(uuid, 0):
                self._worst[uuid] = excess
                self._moments[uuid] = _told(promised, others, total)
            self._grants += len(new)
            self._seen[uuid] = seen
        self._hogs, self._since = before.held, before.at
        self._looks += 1

    def report(self) -> WatchReport:
        """What has been seen so far."""
        return WatchReport(self._looks, self._grants, dict(self._worst), dict(self._moments))


def _told(promised: Iterable[ReservationRow], others: int, total: int) -> str:
    jobs = ", ".join(f"{bytes_text(row.nbytes)} to {row.job}" for row in promised)
    return f"{jobs}, beside {bytes_text(others)} of others, of {bytes_text(total)}"


class Watch:
    """The process that looks, from when it is there until `stop`.

    Parameters
    ----------
    run
        The run whose promises are judged.
    held, hog_uuids
        What the hogs say that they hold, see `Hogs`.
    """

    def __init__(self, devices: Iterable[Device], run: str, held: Any, hog_uuids: tuple[str, ...]) -> None:
        context = get_context("spawn")
        self._end, theirs = context.Pipe()
        totals = {device.uuid: device.total_bytes for device in devices}
        self._process = context.Process(
            target=_watch, args=(theirs, totals, run, held, hog_uuids), name="stackyard-watch", daemon=True
        )
        self._process.start()
        theirs.close()
        if not self._end.poll(START_S):
            self.close()
            raise TimeoutError(f"the watch wasn't there after {START_S:g} s")
        self._end.recv()

    def stop(self) -> WatchReport:
        """End it after a last look, and what it has seen."""
        self._end.send("stop")
        report: WatchReport = self._end.recv()
        self.close()
        return report

    def close(self) -> None:
        """End it; what it has seen is gone."""
        self._end.close()
        self._process.join()


def _watch(
    end: Connection, totals: Mapping[str, int], run: str, held: Any, hog_uuids: tuple[str, ...]
) -> None:
    """The process: it ends when it is told to, or with its parent."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    promises = Promises(totals)
    with Reservations(run=f"watch-of-{run}") as table:
        try:
            end.send("there")
            told = False
            while not told:
                told = end.poll(LOOK_S)
                began = time.monotonic()
                before = dict(zip(hog_uuids, held, strict=False))
                rows = [row for row in table.rows() if row.run == run]
                after = dict(zip(hog_uuids, held, strict=False))
                promises.look(rows, HogLook(began, before), HogLook(time.monotonic(), after))
            end.recv()
            end.send(promises.report())
        except (EOFError, OSError):
            return
