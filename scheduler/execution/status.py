"""What a run looks like at one moment: drawn by the screens, written to status.json."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scheduler.core.model import DeviceView


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device's memory and work. Bytes; `free_bytes` is None while the probe has no answer."""

    name: str
    uuid: str
    kind: str
    virtual: bool
    total_bytes: int
    free_bytes: int | None
    reserved_bytes: int
    idle_bytes: int
    external_bytes: int
    running: tuple[str, ...] = ()
    done: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that isn't running, and why. `waited_s` counts from when it was added, in seconds."""

    job: str
    reason: str
    waited_s: float


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A job that did not finish, and the reason a person can act on."""

    job: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One moment of a run; `waiting` holds the longest waits only, longest first.

    `stuck` names running jobs that seem to get nowhere, and why it seems so.
    `remarks` are what a person should know of the run as a whole, such as a device that can't be used.
    `metrics_url` is where Dask's scheduler serves the run's figures.
    """

    run_dir: str
    state: str
    jobs: int
    done: int
    failed: int
    running: int
    elapsed_s: float
    rate_per_s: float | None = None
    eta_s: float | None = None
    devices: tuple[DeviceStatus, ...] = ()
    waiting: tuple[WaitingJob, ...] = ()
    stuck: tuple[JobFailure, ...] = ()
    last_event: str = ""
    remarks: tuple[str, ...] = ()
    metrics_url: str = ""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended. `devices` maps a device's name to its uuid, kind, virtual and jobs done."""

    jobs: int
    done: int
    failed: int
    lost: int
    oom_attempts: int
    wall_s: float
    run_dir: str
    interrupted: bool = False
    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failures: tuple[JobFailure, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 all done, 1 some jobs failed, 130 interrupted (resumable)."""
        if self.interrupted:
            return 130
        return 0 if self.done == self.jobs else 1

    def to_json(self) -> dict[str, Any]:
        """The object that `run --json` prints."""
        record = asdict(self)
        del record["interrupted"], record["remarks"]
        return record


def device_status(view: DeviceView) -> DeviceStatus:
    """A device's account as the screens draw it."""
    return DeviceStatus(
        name=view.name,
        uuid=view.uuid,
        kind=str(view.kind),
        virtual=view.virtual,
        total_bytes=view.total_bytes,
        free_bytes=view.free_bytes,
        reserved_bytes=view.reserved_bytes,
        idle_bytes=view.idle_bytes,
        external_bytes=view.external_bytes,
        running=view.running,
        done=view.done,
        problem=view.problem,
    )


def write_status(run_dir: Path, status: RunStatus) -> None:
    """Put status.json in its place, whole."""
    partial = run_dir / ".status.json.part"
    partial.write_text(json.dumps(asdict(status)))
    os.replace(partial, run_dir / "status.json")
