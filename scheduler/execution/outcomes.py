"""How the outcomes of attempts are written down."""

from typing import Any

from scheduler.core.events import Cancelled, Done, Failed, Outcome, OutOfMemory, Refused, TimedOut, WorkerDied

OUTCOME_NAMES: dict[type[Outcome], str] = {
    Done: "done",
    OutOfMemory: "out_of_memory",
    Failed: "failed",
    Refused: "refused",
    WorkerDied: "worker_died",
    TimedOut: "timed_out",
    Cancelled: "cancelled",
}


def outcome_detail(outcome: Outcome) -> dict[str, Any]:
    """An outcome's own words and figures, as plain JSON types."""
    match outcome:
        case Done():
            return {
                "device_peak_bytes": outcome.device_peak_bytes,
                "host_peak_bytes": outcome.host_peak_bytes,
                "duration_s": outcome.duration_s,
                "attributed": outcome.attributed,
            }
        case OutOfMemory():
            return {"error": outcome.error, "peak_bytes": outcome.peak_bytes, "on_host": outcome.on_host}
        case Failed():
            return {"error": outcome.error}
        case _:
            return {"reason": outcome.reason}
