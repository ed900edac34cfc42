"""Pressure: when a device or the host runs low, idle memory goes back within a second."""

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Final

from memcore.info import bytes_text
from memcore.memory_type import GpuId
from pools.cgroup import Cgroup
from pools.pool_set import HOST, PoolSet
from pools.sizes import parse_size

INTERVAL_S: Final = 0.2
RETRY_S: Final = 5.0
_log = logging.getLogger(__name__)


class Gauge:
    """Decides how much to give back, with hysteresis: pure, told the free bytes now and then.

    Under pressure below `headroom`; relieved only when `enough` is free again, a quarter more, so that a
    value about the threshold doesn't make the pools give back and take anew by turns.
    """

    def __init__(self, headroom: int) -> None:
        self.headroom = headroom
        self.enough = headroom + headroom // 4
        self.under_pressure = False

    def wanted(self, free: int | None) -> int:
        """Bytes to give back now. None (the probe has no answer) changes nothing and wants nothing."""
        if free is None:
            return 0
        if self.under_pressure:
            self.under_pressure = free < self.enough
        else:
            self.under_pressure = free < self.headroom
        return self.enough - free if self.under_pressure else 0


class PressureWatcher:
    """A thread that watches free memory and makes a `PoolSet` give back what is idle when it runs low.

    Parameters
    ----------
    headroom
        Bytes that are to stay free on each device watched, an int or "512MiB"; or the same for each device,
        of which then only these are watched.
    free
        For each device a function that says how many bytes are free there now, or None if it doesn't know.
        The host ("cpu") and virtual devices are watched without one.
    reclaim
        Gives back idle bytes of a device, and says how many: `pools.reclaim`, or what can give back more.
    interval_s
        Seconds between two looks: memory is given back within this time and what unmapping takes.

    Notes
    -----
    Stop it with `stop()` or at the end of a `with` block; it also ends with the process.
    """

    def __init__(
        self,
        pools: PoolSet,
        headroom: int | str | Mapping[GpuId, int | str],
        free: Mapping[GpuId, Callable[[], int | None]] | None = None,
        *,
        reclaim: Callable[[GpuId, int], int] | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._pools = pools
        self._reclaim = reclaim or pools.reclaim
        self._interval_s = interval_s
        readers: dict[GpuId, Callable[[], int | None]] = {HOST: partial(host_free, Cgroup.of_this_process())}
        readers |= {gpu_id: memory.free for gpu_id, memory in pools.virtual_devices.items()}
        readers |= free or {}
        rooms = headroom if isinstance(headroom, Mapping) else dict.fromkeys(readers, headroom)
        if unknown := rooms.keys() - readers.keys():
            raise ValueError(f"nothing tells how much is free on {unknown}: give a function in `free`")
        self._watched = {device: (readers[device], Gauge(parse_size(room))) for device, room in rooms.items()}
        self._fruitless: dict[GpuId, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pool-pressure", daemon=True)
        self._thread.start()

    def look(self) -> int:
        """Look at every device once; returns the bytes given back."""
        given = 0
        for device, (reader, gauge) in self._watched.items():
            wanted = gauge.wanted(reader())
            if wanted and self._worth_trying(device):
                back = self._reclaim(device, wanted)
                given += back
                if back:
                    _log.info("%s runs low: gave back %s", device, bytes_text(back))
                else:
                    self._fruitless[device] = monotonic()
        return given

    def _worth_trying(self, device: GpuId) -> bool:
        # reclaiming collects garbage and empties caches: not five times a second for nothing
        last = self._fruitless.get(device)
        return last is None or monotonic() - last >= RETRY_S or self._pools.memory(device).idle > 0

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self.look()
            except Exception:  # noqa: BLE001  a probe that fails once may answer the next time
                _log.exception("looking for memory pressure failed")

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> "PressureWatcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def host_free(cgroup: Cgroup | None) -> int:
    """Bytes of host memory that this process may still take: the machine's, and the cgroup's."""
    import psutil

    free = int(psutil.virtual_memory().available)
    return free if cgroup is None else min(free, cgroup.limit - cgroup.used())
