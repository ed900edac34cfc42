"""The attempts in one worker process: which are in it, since when, what they do, and which were alone."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

# Below this share of one core a process does nothing.
STILL_SHARE = 0.05
# Threads that report, probe and talk to Dask: what they use tells nothing of an attempt.
UPKEEP = ("MainThread", "IO loop", "Profile", "pool-pressure", "stackyard-")
# What an attempt does while others compute on its device: it gets nowhere then, and that isn't its fault.
WAITS = "waits for its turn"


BEHIND = "it waited behind one that takes long"


class CancelledAttemptError(Exception):
    """The attempt was cancelled; it stops where nothing is half done."""


class GivenBackError(Exception):
    """The attempt waits in vain, and is wanted elsewhere."""


@dataclass(slots=True, eq=False)
class Activity:
    """One attempt under way. `doing` says in a word or two what it does now.

    `waited_s` are the seconds in which it has waited for its turn on the device, `waits_since` is when it
    began to do so now.
    """

    job_id: str
    number: int
    began: float
    alone_at_start: bool
    overlaps_before: int
    attempts: "Attempts"
    doing: str = "begins"
    cancelled: bool = False
    given_back: bool = False
    waited_s: float = 0.0
    waits_since: float | None = None

    def turn_to(self, doing: str) -> None:
        """Note what the attempt does next.

        Raises
        ------
        CancelledAttemptError
            It was cancelled meanwhile.
        """
        if self.cancelled:
            raise CancelledAttemptError(f"stopped before it {doing}")
        now = time.monotonic()
        self.waited_s, self.waits_since = self._waited(now), now if doing == WAITS else None
        self.doing = doing

    def ran_s(self, now: float) -> float:
        """Seconds since it began, without those in which it waited for its turn."""
        return now - self.began - self._waited(now)

    def _waited(self, now: float) -> float:
        return self.waited_s + (0.0 if self.waits_since is None else now - self.waits_since)

    @property
    def alone(self) -> bool:
        """True while no other attempt has been in the process beside this one."""
        return self.alone_at_start and self.attempts.overlaps == self.overlaps_before


@dataclass(slots=True)
class _Stillness:
    """Since when a process has used no processor time."""

    since: float
    used_s: float
    seen: float

    def look(self, used_s: float, now: float) -> float:
        """Seconds of stillness, given the process's seconds of processor time."""
        if used_s - self.used_s > STILL_SHARE * (now - self.seen):
            self.since = now
        self.used_s, self.seen = used_s, now
        return now - self.since


def processor_s() -> float:
    """Seconds of processor time that this process has used for anything but its upkeep."""
    process = psutil.Process()
    upkeep = {thread.native_id for thread in threading.enumerate() if thread.name.startswith(UPKEEP)}
    of_upkeep = sum(each.user_time + each.system_time for each in process.threads() if each.id in upkeep)
    times = process.cpu_times()
    return float(times.user + times.system - of_upkeep)


@dataclass(slots=True, eq=False)
class Attempts:
    """Counts the attempts of this process, of which `slots` may compute at one time.

    Notes
    -----
    Thread-safe. `overlaps` says how often an attempt has begun beside another one, `leaving` why no further
    one is let in, if that is so.
    """

    slots: int = 1
    overlaps: int = 0
    leaving: str = ""
    _computing: int = 0
    _refused: set[tuple[str, int]] = field(default_factory=set)
    _asked_back: set[tuple[str, int]] = field(default_factory=set)
    _present: set[tuple[str, int]] = field(default_factory=set)
    _running: dict[tuple[str, int], Activity] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stillness: _Stillness | None = None

    @contextlib.contextmanager
    def present(self, job_id: str, number: int) -> Iterator[bool]:
        """Count an attempt as being here until the block ends; False if it may not begin."""
        key = job_id, number
        with self._changed:
            admitted = not self.leaving
            if admitted:
                self._present.add(key)
        try:
            yield admitted
        finally:
            with self._changed:
                for keys in (self._present, self._refused, self._asked_back):
                    keys.discard(key)
                self._changed.notify_all()

    def leave(self, reason: str) -> frozenset[tuple[str, int]]:
        """Let no further attempt in; those that are here, by (job, number), may end."""
        with self._changed:
            self.leaving = self.leaving or reason
            return frozenset(self._present)

    def abandon(self, reason: str) -> None:
        """Let no further attempt in, and wait for none of those that are here."""
        with self._changed:
            self.leaving = self.leaving or reason
            self._present.clear()
            self._changed.notify_all()

    def cancel_all(self) -> None:
        """Stop every attempt before its next step, and let no further one in."""
        self.leave("the run is over")
        with self._changed:
            for activity in self._running.values():
                activity.cancelled = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def begin(self, job_id: str, number: int) -> Iterator[Activity]:
        """Count one attempt while the block runs.

        Raises
        ------
        CancelledAttemptError
            It was cancelled before it began.
        """
        with self._changed:
            if (job_id, number) in self._refused:
                raise CancelledAttemptError("cancelled before it began")
            self.overlaps += bool(self._running)
            activity = Activity(job_id, number, time.monotonic(), not self._running, self.overlaps, self)
            activity.given_back = (job_id, number) in self._asked_back
            self._running[job_id, number] = activity
        try:
            yield activity
        finally:
            with self._changed:
                del self._running[job_id, number]
                self._changed.notify_all()

    def cancel(self, job_id: str, number: int) -> bool:
        """Stop an attempt before its next step, or from beginning at all; True if it is in the process."""
        with self._changed:
            key = job_id, number
            activity = self._running.get(key)
            if activity is not None:
                activity.cancelled = True
                self._changed.notify_all()
            else:
                self._refused.add(key)
            # One that is here tells its own end, which may be that it is done.
            return key in self._present or activity is not None

    def give_back(self, job_id: str, number: int) -> bool:
        """Keep an attempt from beginning; False if it is in the process, where it may only wait for its turn.

        Then it ends by that, and tells so itself.
        """
        with self._changed:
            key = job_id, number
            activity = self._running.get(key)
            if activity is not None:
                activity.given_back = True
                self._changed.notify_all()
            elif key in self._present:
                self._asked_back.add(key)
            else:
                self._refused.add(key)
                return True
            return False

    @contextlib.contextmanager
    def turn(self, activity: Activity) -> Iterator[None]:
        """Let the attempt compute while the block runs, once fewer than `slots` do.

        Raises
        ------
        CancelledAttemptError
            It was cancelled meanwhile.
        GivenBackError
            It was asked back meanwhile.
        """
        activity.turn_to(WAITS)
        with self._changed:
            self._changed.wait_for(
                lambda: self._computing < self.slots or activity.cancelled or activity.given_back
            )
            if activity.cancelled:
                raise CancelledAttemptError("stopped while it waited for its turn")
            if self._computing >= self.slots:
                raise GivenBackError(BEHIND)
            self._computing += 1
        try:
            yield
        finally:
            with self._changed:
                self._computing -= 1
                self._changed.notify_all()

    @property
    def count(self) -> int:
        """How many attempts are in the process."""
        return len(self._running)

    def wait_for_none(self, timeout_s: float | None) -> bool:
        """Wait until no attempt is here any more, and the end of each is told; False if one still is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._present, timeout_s)

    def pulse(self, *, older_than_s: float) -> dict[tuple[str, int], tuple[float, str, float]]:
        """The attempts that have lasted so long: for how long each has run, what it does, its stillness.

        In seconds; waiting for its turn on the device isn't running. Stillness is the whole process's: how
        long it has used no processor time.
        """
        now = time.monotonic()
        used = processor_s()
        if self._stillness is None:
            self._stillness = _Stillness(now, used, now)
        still = self._stillness.look(used, now)
        with self._changed:
            running = list(self._running.values())
        return {
            (each.job_id, each.number): (each.ran_s(now), each.doing, min(still, now - each.began))
            for each in running
            if now - each.began >= older_than_s
        }
