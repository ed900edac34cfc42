"""NVIDIA devices through NVML: who is there, and how much of their memory is used."""

import os
import re
from collections.abc import Mapping
from typing import Any

import psutil
import pynvml

from scheduler.core.model import Device, DeviceKind
from scheduler.host.reading import Probe, Reading
from scheduler.host.visible import Candidate, visible_devices

# After these the driver may come back with new handles: initialise again before the next reading.
_GONE = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_NOT_FOUND,
    pynvml.NVML_ERROR_UNKNOWN,
)
# NVML has no memory figures for these, since the GPU works in the host's memory.
_UNIFIED = re.compile(r"\b(GB10|Orin|Thor|Xavier|Tegra)\b")


class NvmlProbe(Probe):
    """The GPUs and MIG instances that the inherited CUDA_VISIBLE_DEVICES leaves to this process.

    No NVIDIA driver is a normal state: no devices, no problem. A driver that is there and doesn't work is a
    `problem` in words. NVML makes no CUDA context, so probing costs no device memory.

    Parameters
    ----------
    environment
        Where CUDA_VISIBLE_DEVICES is looked up; by default this process's environment.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._visible = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
        self._handles: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._totals: dict[str, int] = {}
        self._devices: tuple[Device, ...] = ()
        self._running = False
        self.problem = ""
        try:
            self._start()
            self._devices = tuple(self._describe(candidate) for candidate in self._candidates())
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                self.problem = f"the NVIDIA driver doesn't work: {error} (does nvidia-smi?)"

    def devices(self) -> tuple[Device, ...]:
        return self._devices

    def read(self, uuid: str) -> Reading:
        total = self._totals[uuid]
        try:
            if not self._running:
                self._start()
                self._candidates()
            return self._read(uuid)
        except pynvml.NVMLError as error:
            if error.value in _GONE:
                self._stop()
            return Reading(uuid, total, None, f"NVML: {error}")

    def close(self) -> None:
        self._stop()

    def _start(self) -> None:
        pynvml.nvmlInit()
        self._running = True

    def _stop(self) -> None:
        self._handles.clear()
        if self._running:
            self._running = False
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                # a driver that is gone can't be shut down either
                self.problem = self.problem or f"NVML: {error}"

    def _candidates(self) -> tuple[Candidate, ...]:
        """Every device that may be used; fills the table of handles."""
        found: list[Candidate] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
            except pynvml.NVMLError as error:
                # one lost GPU doesn't hide the others, but its number stays its own
                self.problem = f"GPU {index}: {error}"
                continue
            instances = _mig_instances(handle)
            if instances is None:
                self._handles[uuid] = handle
                found.append(Candidate(uuid, index))
            for instance in instances or ():
                own = _text(pynvml.nvmlDeviceGetUUID(instance))
                self._handles[own] = instance
                found.append(Candidate(own, index, parent=uuid))
        return visible_devices(found, self._visible)

    def _describe(self, candidate: Candidate) -> Device:
        handle = self._handles[candidate.uuid]
        name = _text(pynvml.nvmlDeviceGetName(handle))
        self._names[candidate.uuid] = name
        try:
            total, _ = self._memory(candidate.uuid)
        except pynvml.NVMLError as error:
            total = 0
            self.problem = f"{name} ({candidate.uuid}): NVML doesn't tell its memory: {error}"
        self._totals[candidate.uuid] = total
        return Device(candidate.uuid, f"gpu{len(self._totals) - 1}", DeviceKind.CUDA, total, model=name)

    def _read(self, uuid: str) -> Reading:
        total, used = self._memory(uuid)
        self._totals[uuid] = total
        return Reading(uuid, total, used)

    def _memory(self, uuid: str) -> tuple[int, int]:
        """(total, used): v2 where the driver has it; used counts what the driver keeps for itself in both."""
        handle = self._handles.get(uuid)
        if handle is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_NOT_SUPPORTED and _UNIFIED.search(self._names.get(uuid, "")):
                host = psutil.virtual_memory()
                return int(host.total), int(host.total - host.available)
            if error.value not in (
                pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
                pynvml.NVML_ERROR_NOT_SUPPORTED,
            ):
                raise
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return int(memory.total), int(memory.total - memory.free)


def _mig_instances(handle: Any) -> list[Any] | None:
    """The MIG instances of a GPU in MIG mode; None if it isn't, or can't be."""
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            return None
        raise
    if current != pynvml.NVML_DEVICE_MIG_ENABLE:
        return None
    instances = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instances.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except pynvml.NVMLError as error:
            # numbers of instances that don't exist are gaps, not faults
            if error.value != pynvml.NVML_ERROR_NOT_FOUND:
                raise
    return instances


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
