"""A probe whose slow answers don't hold up anybody: asked in a thread, unknown until it answers."""

import queue
import threading

from scheduler.core.model import Device
from scheduler.host.reading import Probe, Reading


class TimedProbe(Probe):
    """Wraps a probe: a reading that takes longer than `timeout_s` is unknown, and so is every one until it is
    back.

    A driver call that hangs can't be interrupted; at most one hangs at a time, in a daemon thread.
    """

    def __init__(self, probe: Probe, timeout_s: float = 1.0) -> None:
        self._probe = probe
        self._timeout_s = timeout_s
        self._asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Reading] = queue.SimpleQueue()
        self._outstanding = ""
        self._totals = {device.uuid: device.total_bytes for device in probe.devices()}
        self.problem = probe.problem
        self._thread = threading.Thread(target=self._serve, name="stackyard-probe-call", daemon=True)
        self._thread.start()

    def devices(self) -> tuple[Device, ...]:
        return self._probe.devices()

    def read(self, uuid: str) -> Reading:
        total = self._totals[uuid]
        if self._outstanding:
            try:
                self._answers.get_nowait()
            except queue.Empty:
                return Reading(
                    uuid, total, None, f"its probe still waits for an answer of {self._outstanding}"
                )
            # that answer is as old as the wait was long: ask anew
        self._outstanding = uuid
        self._asked.put(uuid)
        try:
            reading = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            return Reading(uuid, total, None, f"its probe didn't answer within {self._timeout_s:g} s")
        self._outstanding = ""
        return reading

    def close(self) -> None:
        """End the thread, after the call that it may hang in."""
        self._asked.put(None)

    def _serve(self) -> None:
        while (uuid := self._asked.get()) is not None:
            try:
                reading = self._probe.read(uuid)
            except Exception as error:  # noqa: BLE001  a fault of the probe is an unknown device, not a dead thread
                reading = Reading(uuid, self._totals[uuid], None, f"{type(error).__name__}: {error}")
            self._answers.put(reading)
        self._probe.close()
