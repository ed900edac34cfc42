"""A workload and the cluster it runs on, as the simulator takes them.

Arrivals, true peaks, durations, hogs, deaths.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scheduler.core.model import Device, DeviceKind, Footprint, Job, JobPlan


@dataclass(frozen=True, slots=True)
class TruePlan:
    """What a job really takes by one of its plans: peak bytes, and seconds on a device of speed 1."""

    device_bytes: int
    host_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TraceJob:
    """A job, when it arrives (seconds), and the truth that the dispatcher doesn't know, by plan name."""

    job: Job
    truth: Mapping[str, TruePlan]
    arrival_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Hog:
    """A program of somebody else: takes up to `nbytes` of a device (what is really free) for a while."""

    uuid: str
    at_s: float
    nbytes: int
    for_s: float


@dataclass(frozen=True, slots=True)
class Death:
    """A device's worker process dies and is back `back_s` later; its running jobs are lost."""

    uuid: str
    at_s: float
    back_s: float = 2.0


@dataclass(frozen=True)
class Trace:
    """A described cluster and its workload.

    `speeds` maps a device model to its speed (1 where absent). An attempt allocates its memory when
    `load_fraction` of its time is over. A failed attempt costs the time until then plus `oom_cost_s`. The
    dispatcher learns of a stranger's memory `staleness_s` after it changed.
    """

    name: str
    devices: tuple[Device, ...]
    jobs: tuple[TraceJob, ...]
    speeds: Mapping[str, float] = field(default_factory=dict)
    hogs: tuple[Hog, ...] = ()
    deaths: tuple[Death, ...] = ()
    load_fraction: float = 0.05
    oom_cost_s: float = 2.0
    staleness_s: float = 0.2

    def seconds(self, job: TraceJob, plan: str, device: Device) -> float:
        """How long a job's attempt by `plan` takes on a device."""
        return job.truth[plan].seconds / self.speeds.get(device.model, 1.0)

    def to_json(self) -> dict[str, Any]:
        """The trace as plain JSON types; jobs of one kind share their plans."""
        kinds = {trace_job.job.kind: _plans_json(trace_job.job) for trace_job in self.jobs}
        return {
            "name": self.name,
            "devices": [_device_json(device) for device in self.devices],
            "speeds": dict(self.speeds),
            "kinds": kinds,
            "jobs": [_job_json(trace_job) for trace_job in self.jobs],
            "hogs": [[hog.uuid, hog.at_s, hog.nbytes, hog.for_s] for hog in self.hogs],
            "deaths": [[death.uuid, death.at_s, death.back_s] for death in self.deaths],
            "load_fraction": self.load_fraction,
            "oom_cost_s": self.oom_cost_s,
            "staleness_s": self.staleness_s,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Trace":
        """The inverse of `to_json`. Raises KeyError or ValueError for what isn't a trace."""
        plans = {kind: _plans_from_json(found) for kind, found in record["kinds"].items()}
        return cls(
            name=record["name"],
            devices=tuple(_device_from_json(found) for found in record["devices"]),
            jobs=tuple(_job_from_json(found, plans) for found in record["jobs"]),
            speeds=record.get("speeds", {}),
            hogs=tuple(Hog(*found) for found in record.get("hogs", ())),
            deaths=tuple(Death(*found) for found in record.get("deaths", ())),
            load_fraction=record.get("load_fraction", 0.05),
            oom_cost_s=record.get("oom_cost_s", 2.0),
            staleness_s=record.get("staleness_s", 0.2),
        )


def _device_json(device: Device) -> dict[str, Any]:
    return {
        "uuid": device.uuid,
        "name": device.name,
        "kind": device.kind.value,
        "total_bytes": device.total_bytes,
        "slots": device.slots,
        "model": device.model,
        "host": device.host,
        "headroom_bytes": device.headroom_bytes,
    }


def _device_from_json(record: Mapping[str, Any]) -> Device:
    return Device(**{**record, "kind": DeviceKind(record["kind"])})


def _plans_json(job: Job) -> list[dict[str, Any]]:
    return [
        {
            "name": plan.name,
            "device_kinds": [kind.value for kind in plan.device_kinds],
            "device_bytes": plan.footprint.device_bytes,
            "host_bytes": plan.footprint.host_bytes,
            "cost": plan.cost,
        }
        for plan in job.plans
        if plan.split is None
    ]


def _plans_from_json(records: list[dict[str, Any]]) -> tuple[JobPlan, ...]:
    return tuple(
        JobPlan(
            record["name"],
            tuple(DeviceKind(kind) for kind in record["device_kinds"]),
            Footprint(record["device_bytes"], record["host_bytes"]),
            cost=record["cost"],
        )
        for record in records
    )


def _job_json(trace_job: TraceJob) -> dict[str, Any]:
    job = trace_job.job
    truth = {
        name: [true.device_bytes, true.host_bytes, true.seconds] for name, true in trace_job.truth.items()
    }
    return {
        "id": job.job_id,
        "kind": job.kind,
        "family": job.family,
        "priority": job.priority,
        "batch": job.batch,
        "arrival_s": trace_job.arrival_s,
        "truth": truth,
    }


def _job_from_json(record: Mapping[str, Any], plans: Mapping[str, tuple[JobPlan, ...]]) -> TraceJob:
    job = Job(
        record["id"],
        record["kind"],
        plans[record["kind"]],
        family=record.get("family", ""),
        priority=record.get("priority", 0),
        batch=record.get("batch", 0),
    )
    truth = {name: TruePlan(*found) for name, found in record["truth"].items()}
    return TraceJob(job, truth, record.get("arrival_s", 0.0))
