"""Probes that fail for a while: they raise, say that they don't know, or answer too late."""

import threading
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import numpy as np

from scheduler.core.model import Device, DeviceKind
from scheduler.host.probes import Discovery
from scheduler.host.reading import Probe, Reading
from scheduler.host.timed import TimedProbe

TIMEOUT_S = 0.25
LATE_S = 0.6
# Readings without a fault between two faults, on average, and how many a fault lasts.
WELL_READINGS = 40
FAULT_READINGS = (2, 7)


class Fault(StrEnum):
    """What a probe does instead of answering."""

    RAISES = "raises"
    UNKNOWN = "doesn't know"
    LATE = "answers late"


class FaultyProbe(Probe):
    """Another probe whose answers fail now and then, for each device by itself.

    `faults` counts the readings that failed.
    """

    def __init__(
        self, probe: Probe, seed: tuple[int, ...], wait: Callable[[float], object] | None = None
    ) -> None:
        self.problem = probe.problem
        self.faults = 0
        self._probe = probe
        self._random = np.random.default_rng(seed)
        self._wait = wait if wait is not None else threading.Event().wait
        # By device: the fault, or None, and how many readings it lasts.
        self._course: dict[str, tuple[Fault | None, int]] = {}

    def devices(self) -> tuple[Device, ...]:
        return self._probe.devices()

    def read(self, uuid: str) -> Reading:
        fault, left = self._course.get(uuid) or (None, self._well())
        if left == 0:
            fault, left = self._next(fault)
        self._course[uuid] = fault, left - 1
        self.faults += fault is not None
        reading = self._probe.read(uuid)
        if fault is Fault.RAISES:
            raise OSError(f"injected fault: the probe of {uuid} failed")
        if fault is Fault.UNKNOWN:
            return replace(reading, used_bytes=None, problem="injected fault: no answer")
        if fault is Fault.LATE:
            self._wait(LATE_S)
        return reading

    def close(self) -> None:
        self._probe.close()

    def _well(self) -> int:
        return int(self._random.geometric(1 / WELL_READINGS))

    def _next(self, fault: Fault | None) -> tuple[Fault | None, int]:
        if fault is not None:
            return None, self._well()
        chosen = list(Fault)[int(self._random.integers(len(Fault)))]
        return chosen, int(self._random.integers(*FAULT_READINGS))


def with_faults(found: Discovery, seed: int) -> tuple[Discovery, list[FaultyProbe]]:
    """The same devices; GPUs are read through faulty probes, behind the guard that real ones have."""
    faulty: dict[int, tuple[FaultyProbe, Probe]] = {}
    probes: dict[str, Probe] = {}
    for device in found.devices:
        probe = found._probes[device.uuid]
        if device.kind is DeviceKind.CPU:
            probes[device.uuid] = probe
            continue
        if id(probe) not in faulty:
            broken = FaultyProbe(probe, (seed, len(faulty)))
            faulty[id(probe)] = broken, TimedProbe(broken, TIMEOUT_S)
        probes[device.uuid] = faulty[id(probe)][1]
    return replace(found, _probes=probes), [broken for broken, _ in faulty.values()]
