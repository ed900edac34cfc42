"""The most memory that an attempt held: of its host as the kernel counts, of its device as libraries do."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import psutil

from memcore import BackendUnavailableError, DeviceError
from memcore.backend import Backend
from memcore.memory_type import GpuId
from pools import PoolSet
from pools.oom import loaded_backends
from scheduler.core.model import Device, DeviceKind
from scheduler.execution.heap import trim_heap

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
RESET_PEAK_RSS = "5"
# A worker of a GPU calls it so, whatever it is called elsewhere.
OWN_DEVICE = 0


class HostPeak:
    """Measures a block's peak of resident memory over what was resident when it began, in bytes.

    Linux keeps one high-water mark for each process (VmHWM in proc(5)) and lets a process reset its own; the
    figure belongs to the block only if nothing else ran in the process meanwhile. `nbytes` is None where the
    kernel has no such mark.
    """

    def __init__(self) -> None:
        self.nbytes: int | None = None
        self._before: int | None = None

    def start(self, *, idle_bytes: int = 0) -> None:
        """Reset the high-water mark.

        What earlier work left behind would be used again unseen: the C library's free memory is given back
        first, and `idle_bytes`, resident in pools, count as not there yet.
        """
        gc.collect()
        if not trim_heap():
            return
        try:
            CLEAR_REFS.write_text(RESET_PEAK_RSS)
        except (
            OSError
        ):  # not Linux, or a kernel without page monitoring: no figure is better than a wrong one
            return
        self._before = psutil.Process().memory_info().rss - idle_bytes

    def stop(self) -> None:
        """Read the high-water mark."""
        if self._before is None:
            return
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                self.nbytes = max(0, int(line.split()[1]) * 1024 - self._before)


class Place(Protocol):
    """A worker process: its device, its pools there, and by which number a library knows it."""

    @property
    def device(self) -> Device: ...

    @property
    def pools(self) -> PoolSet: ...

    def gpu_id(self, memory_type: str) -> GpuId: ...


class DevicePeak:
    """Measures the most device bytes that the arrays of a `with` block took beyond those that were there.

    What steps keep between jobs, set up before the block, isn't in it, nor are contexts and what allocators
    cache. Each library that the process has loaded tells by its own counter; the sum of several is an upper
    bound, for they needn't reach their peaks together. Of several blocks, an attempt's stays on its device
    one after another, the largest counts.

    `nbytes` is None where nothing can be known: a library that counts nothing was there, or was loaded
    meanwhile. So it is on a virtual device, whose account holds what was reserved and not what was used, and
    whose arrays lie in host memory.

    Notes
    -----
    To be entered and left in the thread that computes. Libraries count what all threads take: the figure
    belongs to the block only if no other one ran in the process meanwhile.
    """

    def __init__(self, worker: Place) -> None:
        self.nbytes: int | None = None
        self._worker = worker
        self._unknown = worker.device.kind in (DeviceKind.CPU, DeviceKind.VIRTUAL)
        self._ended: dict[str, Callable[[], int | None]] = {}

    def __enter__(self) -> Self:
        self._ended = {}
        if not self._unknown:
            # What pools lend again no library sees: from its cache it is taken as cheaply, and counted.
            self._worker.pools.trim(OWN_DEVICE)
            self._ended = {each.memory_type: each.measure_peak(place) for each, place in self._counting()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unknown:
            return
        peaks = [ended() for ended in self._ended.values()]
        told = [peak for peak in peaks if peak is not None]
        late = {backend.memory_type for backend, _ in self._counting()} - self._ended.keys()
        # Nothing at all is no peak of a job on a GPU: it allocated where no library looks.
        if late or len(told) < len(peaks) or not sum(told):
            self._unknown, self.nbytes = True, None
        else:
            self.nbytes = max(self.nbytes or 0, sum(told))

    def _counting(self) -> Iterator[tuple[Backend, GpuId]]:
        """The libraries that are loaded and can have arrays on the device."""
        for backend in loaded_backends():
            try:
                place = backend.validate_gpu_id(self._worker.gpu_id(backend.memory_type))
            except (DeviceError, BackendUnavailableError):
                continue  # a build for CPUs: it has nothing there
            if not backend.in_host_memory(place):
                yield backend, place
