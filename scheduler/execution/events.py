"""What happens in a run, told to programs that follow it: one record for each event."""

import time
from collections import deque
from typing import Any

TOPIC = "stackyard-events"
"""The Dask topic on which the events of every run of a cluster are."""

Event = dict[str, Any]
"""`at` (seconds since 1970), `run`, `event` (its name), and what the event says; plain JSON types."""


class Events:
    """Hands a run's events to those who follow it, each at its own pace.

    Notes
    -----
    Any thread may tell an event or follow; events that are told before somebody follows are not kept.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._followers: list[deque[Event]] = []

    def follow(self) -> "deque[Event]":
        """A queue of the events from here on, oldest first; its holder takes them from the left."""
        queue: deque[Event] = deque()
        self._followers.append(queue)
        return queue

    def leave(self, queue: "deque[Event]") -> None:
        """Put no more events into `queue`."""
        # deques that are both empty are equal: it is this one that goes.
        self._followers = [each for each in self._followers if each is not queue]

    def tell(self, event: str, **said: Any) -> None:
        """Hand an event on."""
        record = {"at": time.time(), "run": self._run, "event": event, **said}
        for queue in self._followers:
            queue.append(record)


def taken(queue: "deque[Event]", limit: int | None = None) -> list[Event]:
    """Take the events that are there out of `queue`, `limit` at most."""
    count = len(queue) if limit is None else min(limit, len(queue))
    return [queue.popleft() for _ in range(count)]
