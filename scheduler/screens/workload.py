"""Random workloads from a described mix, seeded: what `simulate` runs and the policy benchmark measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

import numpy as np

from pools.sizes import parse_size
from scheduler.core.model import Device, DeviceKind, Footprint, Job, JobPlan
from scheduler.core.trace import Hog, Trace, TraceJob, TruePlan

_GPU = (DeviceKind.CUDA, DeviceKind.VIRTUAL)
_CPU = (DeviceKind.CPU,)
# What a stack needs on the host while it is read and written, against its peak on the device.
_HOST_SHARE = 0.5


@dataclass(frozen=True)
class Mix:
    """A workload in figures; the YAML files under configs/simulation say what each one means."""

    name: str
    jobs: int
    families: int
    shapes: int
    share: tuple[float, float]
    seconds: tuple[float, float]
    gpus: Sequence[Mapping[str, Any]]
    hosts: Mapping[str, Any] = field(default_factory=dict)
    headroom: int = 0
    declared_error: float = 0.0
    peak_noise: float = 0.0
    seconds_noise: float = 0.0
    cpu_slowdown: float = 10.0
    hogs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, record: Mapping[str, Any]) -> "Mix":
        """From the YAML's mapping. Raises ValueError naming an unknown or missing key."""
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(record) - known)
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r} in the mix; known are {', '.join(sorted(known))}")
        sized = dict(record)
        for key in ("share", "seconds"):
            if key in sized:
                low, high = sized[key]
                sized[key] = (float(low), float(high))
        sized["headroom"] = parse_size(record.get("headroom", 0))
        try:
            return cls(**sized)
        except TypeError as error:
            raise ValueError(f"the mix is not complete: {error}") from error


def make_trace(
    mix: Mix, seed: int, *, exact: bool = False, hogs: bool = False, jobs: int | None = None
) -> Trace:
    """Draw a trace from a mix: all jobs arrive at once.

    Parameters
    ----------
    exact
        Declared footprints are the true ones, with no scatter.
    hogs
        Random programs of others come and go on the GPUs.
    jobs
        Another number of jobs than the mix says.
    """
    random = np.random.default_rng(seed)
    devices = _devices(mix)
    gpus = [device for device in devices if device.kind is not DeviceKind.CPU]
    kinds = _kinds(mix, random, min(device.total_bytes for device in gpus), exact=exact)
    count = mix.jobs if jobs is None else jobs
    chosen = random.integers(0, len(kinds), count)
    peak_noise = np.exp(random.normal(0.0, 0.0 if exact else mix.peak_noise, count))
    time_noise = np.exp(random.normal(0.0, mix.seconds_noise, count))
    # a job that fits on no device would be rejected, which is no question of policy
    largest = max(device.total_bytes - device.headroom_bytes for device in gpus)
    trace_jobs = []
    for number in range(count):
        kind = kinds[chosen[number]]
        peak = min(int(kind.peak * peak_noise[number]), int(largest * 0.95))
        seconds = float(kind.seconds * time_noise[number])
        truth = {
            "gpu": TruePlan(peak, int(peak * _HOST_SHARE), seconds),
            "cpu": TruePlan(0, int(peak * _HOST_SHARE), seconds * mix.cpu_slowdown),
        }
        job = Job(f"job{number}", kind.name, kind.plans, family=kind.family)
        trace_jobs.append(TraceJob(job, truth))
    total = sum(job.truth["gpu"].seconds for job in trace_jobs) / sum(device.slots for device in gpus)
    speeds = {str(spec["model"]): float(spec.get("speed", 1.0)) for spec in mix.gpus}
    strangers = _hogs(mix, random, gpus, 3 * total) if hogs else ()
    return Trace(mix.name, tuple(devices), tuple(trace_jobs), speeds, strangers)


@dataclass(frozen=True)
class _Kind:
    name: str
    family: str
    plans: tuple[JobPlan, ...]
    peak: float
    seconds: float


def _devices(mix: Mix) -> list[Device]:
    hosts = int(mix.hosts.get("count", 1)) if mix.hosts else 1
    devices: list[Device] = []
    for spec in mix.gpus:
        for _ in range(int(spec["count"])):
            number = len(devices)
            devices.append(
                Device(
                    f"gpu-{number}",
                    f"gpu{number}",
                    DeviceKind.CUDA,
                    parse_size(spec["memory"]),
                    slots=int(spec.get("slots", 1)),
                    model=str(spec["model"]),
                    host=f"host{number % hosts}",
                    headroom_bytes=mix.headroom,
                )
            )
    if mix.hosts:
        memory, slots = parse_size(mix.hosts["memory"]), int(mix.hosts["slots"])
        for host in range(hosts):
            name = f"host{host}"
            devices.append(Device(f"cpu-{host}", f"cpu{host}", DeviceKind.CPU, memory, slots, "CPU", name))
    return devices


def _kinds(mix: Mix, random: np.random.Generator, smallest: int, *, exact: bool) -> list[_Kind]:
    kinds = []
    for family in range(mix.families):
        error = exp(random.normal(0.0, mix.declared_error)) if not exact else 1.0
        pace = exp(random.normal(0.0, 0.3))
        for shape, at in enumerate(random.uniform(0.0, 1.0, mix.shapes)):
            peak = smallest * mix.share[0] * (mix.share[1] / mix.share[0]) ** at
            seconds = mix.seconds[0] * (mix.seconds[1] / mix.seconds[0]) ** at * pace
            declared = int(peak / error)
            host = int(peak * _HOST_SHARE) if exact else int(declared * _HOST_SHARE)
            plans = (
                JobPlan("gpu", _GPU, Footprint(declared, host), cost=seconds),
                JobPlan("cpu", _CPU, Footprint(0, host), cost=seconds * mix.cpu_slowdown),
            )
            name = f"family{family}"
            kinds.append(
                _Kind(f"{name}-shape{shape}", name, plans if mix.hosts else plans[:1], peak, seconds)
            )
    return kinds


def _hogs(mix: Mix, random: np.random.Generator, gpus: list[Device], until_s: float) -> tuple[Hog, ...]:
    """Programs of others on random GPUs, `every_s` apart on average over the whole cluster."""
    spec = mix.hogs
    hogs = []
    at = 0.0
    while at < until_s:
        at += random.exponential(float(spec["every_s"]))
        device = gpus[random.integers(0, len(gpus))]
        share, for_s = random.uniform(*spec["share"]), random.uniform(*spec["for_s"])
        hogs.append(Hog(device.uuid, at, int(share * device.total_bytes), for_s))
    return tuple(hogs)
