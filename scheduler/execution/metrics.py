"""A run's figures for Prometheus, on the page that Dask's scheduler serves as /metrics.

The driver announces them, and the events of the run, to the scheduler's process, which is the driver's own
on a local cluster and on Slurm. Dask writes there whatever is registered with `prometheus_client`, if that
is installed.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from distributed import Scheduler

from scheduler.execution.events import TOPIC, Event
from scheduler.execution.status import DeviceStatus


@dataclass(frozen=True, slots=True)
class RunFigures:
    """What is told of a run: counts by name, and its devices as they were last seen."""

    run: str
    jobs: Mapping[str, int] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    decisions: Mapping[str, int] = field(default_factory=dict)
    devices: tuple[DeviceStatus, ...] = ()
    longest_wait_s: float = 0.0


class Registry(Protocol):
    """What a `prometheus_client.CollectorRegistry` does for a collector."""

    def register(self, collector: Any) -> None: ...

    def unregister(self, collector: Any) -> None: ...


class RunsCollector:
    """Gives the figures of the runs that go on when somebody asks; registered as long as there is one."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], RunFigures] = {}

    def show(self, client: str, session: str, figures: RunFigures, registry: Registry) -> None:
        """Show the newest figures of a session of a client."""
        if not self._runs:
            registry.register(self)
        self._runs[client, session] = figures

    def forget(self, client: str, session: str | None, registry: Registry) -> None:
        """Show no more of a session, or of all that a client had."""
        gone = [key for key in self._runs if key[0] == client and session in (None, key[1])]
        for key in gone:
            del self._runs[key]
        if gone and not self._runs:
            registry.unregister(self)

    def describe(self) -> list[Any]:
        """Nothing: which metrics there are is known when they are collected."""
        return []

    def collect(self) -> Iterator[Any]:
        """The metric families, as `prometheus_client` asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        jobs = GaugeMetricFamily("stackyard_jobs", "Jobs of a run by state", labels=["run", "state"])
        attempts = CounterMetricFamily(
            "stackyard_attempts", "Attempts that have ended by outcome", labels=["run", "outcome"]
        )
        decisions = CounterMetricFamily(
            "stackyard_decisions", "Decisions about jobs by verdict", labels=["run", "verdict"]
        )
        wait = GaugeMetricFamily(
            "stackyard_longest_wait_seconds", "How long the job has waited that waits longest", labels=["run"]
        )
        device_labels = ["run", "device", "uuid", "virtual"]
        memory = GaugeMetricFamily(
            "stackyard_device_bytes",
            "Memory of a device; used and free are missing while its probe has no answer",
            labels=[*device_labels, "kind"],
        )
        running = GaugeMetricFamily(
            "stackyard_device_running_jobs", "Jobs that a device has now", labels=device_labels
        )
        for figures in list(self._runs.values()):
            for family, label in ((jobs, figures.jobs), (attempts, figures.attempts)):
                for name, count in label.items():
                    family.add_metric([figures.run, name], count)
            for name, count in figures.decisions.items():
                decisions.add_metric([figures.run, name], count)
            wait.add_metric([figures.run], figures.longest_wait_s)
            for device in figures.devices:
                labels = [figures.run, device.name, device.uuid, str(device.virtual).lower()]
                running.add_metric(labels, len(device.running))
                for kind, nbytes in _memory(device):
                    memory.add_metric([*labels, kind], nbytes)
        yield from (jobs, attempts, decisions, wait, memory, running)


def _memory(device: DeviceStatus) -> Iterator[tuple[str, int]]:
    yield "total", device.total_bytes
    yield "reserved", device.reserved_bytes
    yield "idle", device.idle_bytes
    yield "external", device.external_bytes
    if device.free_bytes is not None:
        yield "free", device.free_bytes
        yield "used", device.total_bytes - device.free_bytes


_RUNS = RunsCollector()


def _registry() -> Registry | None:
    """The registry whose metrics Dask serves; None where `prometheus_client` isn't installed."""
    if importlib.util.find_spec("prometheus_client") is None:
        return None
    from prometheus_client import REGISTRY

    return REGISTRY


# In the scheduler's process, by Client.run_on_scheduler.


def announce(
    client: str,
    session: str,
    events: list[Event],
    figures: RunFigures,
    dask_scheduler: Scheduler,
) -> None:
    """Put events on their topic, and the figures where Prometheus finds them."""
    for event in events:
        dask_scheduler.log_event(TOPIC, event)
    registry = _registry()
    if registry is not None:
        _RUNS.show(client, session, figures, registry)


def withdraw(client: str, session: str | None = None) -> None:
    """Take the figures of a session away, or of every session of a client that has gone."""
    registry = _registry()
    if registry is not None:
        _RUNS.forget(client, session, registry)
