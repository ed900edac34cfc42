"""`--log-json`: what happens in a run as one JSON object on each line of standard error, for programs."""

import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from scheduler.execution.status import RunStatus
from scheduler.screens.streams import write_past_buffer


class EventLines:
    """Takes the place of the progress, which it leaves out: a line is an event."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, status: RunStatus) -> None:
        """Say nothing: the moments of a run are in its status.json."""

    def say(self, what: str) -> None:
        """Write `what` as the event "said"."""
        write_event({"at": time.time(), "event": "said", "text": what})


def write_event(event: Mapping[str, Any]) -> None:
    """Write one line, whole: past the stream's buffer, whose lock the interrupted code may hold."""
    # ASCII only: nothing in a name can drive a terminal or end a line.
    write_past_buffer((json.dumps(event, default=str) + "\n").encode("ascii"))
