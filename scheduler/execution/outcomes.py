"""How attempts end, in the words of the journal and of a run's events."""

from dataclasses import fields
from typing import Any

from pools.stats import PoolStats
from scheduler.core.events import Cancelled, Done, Failed, Outcome, OutOfMemory, Refused, TimedOut, WorkerDied
from scheduler.execution.task import AttemptReport, StepRecord

_STEP = tuple(field.name for field in fields(StepRecord))
_POOL = tuple(field.name for field in fields(PoolStats))
_NAMES: dict[type[Outcome], str] = {
    Done: "done",
    OutOfMemory: "out_of_memory",
    Failed: "failed",
    Refused: "refused",
    WorkerDied: "worker_died",
    TimedOut: "timed_out",
    Cancelled: "cancelled",
}


def outcome_name(outcome: Outcome) -> str:
    """One word for the kind of outcome."""
    return _NAMES[type(outcome)]


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


def report_detail(report: AttemptReport | None) -> dict[str, Any]:
    """How an attempt went, as plain JSON types; empty where its worker could not report."""
    if report is None:
        return {}
    return {
        "times": dict(report.times),
        "steps": [_plain(step, _STEP) for step in report.steps],
        "worker_pid": report.worker_pid,
        "on_device": [list(stay) for stay in report.on_device],
        "pools": {name: _plain(stats, _POOL) for name, stats in report.pools.items()},
    }


def _plain(record: StepRecord | PoolStats, names: tuple[str, ...]) -> dict[str, Any]:
    """As `asdict`, which copies deeply: that is felt at the end of every attempt."""
    return {name: getattr(record, name) for name in names}
