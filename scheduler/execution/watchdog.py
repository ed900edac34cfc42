"""Names the attempts that get nowhere, from what workers tell and don't tell."""

from dataclasses import dataclass, field

from scheduler.execution.activity import WAITS
from scheduler.execution.messages import Pulse

STUCK_S = 8.0
# By less than this a beginning isn't told again: messages take their time.
LATER_S = 0.1
Key = tuple[str, int]


@dataclass(slots=True)
class _Watched:
    address: str
    submitted: float
    began: float | None = None
    doing: str = ""
    still_s: float = 0.0


@dataclass(slots=True)
class Watchdog:
    """Follows the attempts of a run by the pulses of their workers. Seconds on one monotonic clock.

    An attempt is stuck if its worker has fallen silent, if the worker never got to it though it does nothing
    else, or if the worker's process has used no processor time all the while.
    """

    _watched: dict[Key, _Watched] = field(default_factory=dict)
    _heard: dict[str, float] = field(default_factory=dict)

    def submitted(self, key: Key, address: str, now: float) -> None:
        """An attempt was sent to a worker."""
        self._watched[key] = _Watched(address, now)
        self._heard.setdefault(address, now)

    def ended(self, key: Key) -> None:
        """It is over."""
        self._watched.pop(key, None)

    def heard(self, pulse: Pulse, now: float) -> list[tuple[Key, float]]:
        """Take a pulse in; the attempts whose beginning is news, with the seconds that each has run.

        It is the first time, or since then they have waited for their turn.
        """
        self._heard[pulse.address] = now
        new = []
        for key, (elapsed, doing, still) in pulse.attempts.items():
            watched = self._watched.get(key)
            if watched is None:
                continue
            if watched.began is None or now - elapsed > watched.began + LATER_S:
                watched.began = now - elapsed
                new.append((key, elapsed))
            watched.doing, watched.still_s = doing, still
        return new

    def silent(self, now: float) -> list[tuple[Key, float]]:
        """Attempts whose worker fell silent before it told of any, with the seconds since they were sent.

        They count as begun from then: a process that is held up altogether can't say so. Of those in one
        process it is the first one that holds it up.
        """
        first: dict[str, tuple[Key, _Watched]] = {}
        for key, watched in self._watched.items():
            first.setdefault(watched.address, (key, watched))
            if watched.began is not None:
                first[watched.address] = key, watched
        return [
            (key, now - watched.submitted)
            for key, watched in first.values()
            if watched.began is None and self._silence(watched, now) >= STUCK_S
        ]

    def fell_silent(self, key: Key, now: float) -> bool:
        """Whether nothing is heard of the attempt's process, so that nobody knows what happens there."""
        own = self._watched.get(key)
        return own is not None and self._silence(own, now) >= STUCK_S

    def stuck(self, now: float) -> dict[str, str]:
        """Why each stuck job is thought to be so, by its id."""
        found = {}
        for (job_id, _), watched in self._watched.items():
            reason = self._why(watched, now)
            if reason:
                found[job_id] = reason
        return found

    def _silence(self, watched: _Watched, now: float) -> float:
        return now - max(self._heard.get(watched.address, now), watched.submitted)

    def _why(self, watched: _Watched, now: float) -> str:
        silence = self._silence(watched, now)
        if silence >= STUCK_S:
            return f"its worker process has said nothing for {silence:.0f} s"
        if watched.began is None:
            busy = any(
                other.began is not None and other.address == watched.address
                for other in self._watched.values()
            )
            waited = now - watched.submitted
            return "" if busy or waited < STUCK_S else f"its worker hasn't begun it in {waited:.0f} s"
        if watched.still_s >= STUCK_S and watched.doing != WAITS:
            return (
                f"{watched.doing} for {now - watched.began:.0f} s, and its process has used no processor "
                f"time for {watched.still_s:.0f} s"
            )
        return ""
