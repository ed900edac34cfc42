"""Measuring on a device: candidates take turns, and the clock is read when the device has nothing to do."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from memcore import BackendUnavailableError, DeviceError
from memcore.memory_type import GpuId
from memcore.registry import backend_of

MIB = 1 << 20
DEVICE_TYPES = ("torch", "cupy", "jax", "tensorflow")
LEAST_S = 0.002
LEAST_ROUNDS, MOST_ROUNDS = 3, 15

Candidates = Mapping[str, Callable[[], object]]


@dataclass
class Bench:
    """Where a piece measures, and how long it may take.

    `gpu` False rehearses on host memory: every line runs, and the figures mean nothing. Sizes are divided by
    `shrink`. `notes` collects what didn't work.
    """

    gpu: bool = True
    seconds: float = 60.0
    shrink: int = 1
    types: Sequence[str] = DEVICE_TYPES
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ends_at = time.monotonic() + self.seconds

    @property
    def place(self) -> GpuId:
        """Where arrays live: device 0, or host memory in a rehearsal."""
        return 0 if self.gpu else "cpu"

    def libraries(self, among: Sequence[str] = DEVICE_TYPES) -> tuple[str, ...]:
        """Those of the memory types that work at `place`."""
        found = []
        for name in [name for name in self.types if name in among]:
            backend = backend_of(name)
            try:
                if backend.installed() and backend.validate_gpu_id(self.place) == self.place:
                    found.append(name)
            except (BackendUnavailableError, DeviceError) as error:
                self.notes.append(f"without {name}: {error}")
        return tuple(found)

    def size(self, nbytes: int) -> int:
        """Bytes, fewer in a rehearsal; a multiple of 4096."""
        return max(4096, nbytes // self.shrink // 4096 * 4096)

    def compare(
        self, candidates: Candidates, libraries: Sequence[str], share: float = 1.0
    ) -> dict[str, Timing]:
        """Time the candidates in turns, after a warm-up of each; one that fails is noted and left out.

        Parameters
        ----------
        libraries
            Whose device work is waited for before the clock is read.
        share
            Of the time that is left for the piece, how much this comparison may take.
        """
        ends_at = time.monotonic() + share * max(0.0, self.ends_at - time.monotonic())
        going = {
            name: each for name, call in candidates.items() if (each := self._warm(name, call, libraries))
        }
        gc.collect()
        times: dict[str, list[float]] = {name: [] for name in going}
        for number in range(MOST_ROUNDS):
            if number >= LEAST_ROUNDS and time.monotonic() > ends_at:
                break
            for name, (call, count) in going.items():
                times[name].append(self._timed(call, count, libraries))
        return {name: Timing(tuple(sorted(each))) for name, each in times.items()}

    def _warm(
        self, name: str, call: Callable[[], object], libraries: Sequence[str]
    ) -> tuple[Callable[[], object], int] | None:
        try:
            call()
            once = self._timed(call, 1, libraries)
        except Exception as error:  # noqa: BLE001  one that can't take part must not end the others' race
            self.notes.append(f"{name} failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            return None
        return call, max(1, min(1000, int(LEAST_S / max(once, 1e-7))))

    def _timed(self, call: Callable[[], object], count: int, libraries: Sequence[str]) -> float:
        self.wait(libraries)
        began = time.perf_counter()
        for _ in range(count):
            call()
        self.wait(libraries)
        return (time.perf_counter() - began) / count

    def wait(self, libraries: Sequence[str]) -> None:
        """Wait for the device work of these libraries."""
        for name in libraries:
            backend_of(name).synchronize(self.place)


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.seconds)

    def row(self, **also: Any) -> dict[str, Any]:
        """A row of a table, in milliseconds."""
        low, high = self.seconds[0], self.seconds[-1]
        return {
            **also,
            "ms": 1e3 * self.median,
            "least": 1e3 * low,
            "most": 1e3 * high,
            "rounds": len(self.seconds),
        }


def rows_of(timings: Mapping[str, Timing], ours: str, nbytes: int, **also: Any) -> list[dict[str, Any]]:
    """A row for each candidate: its time, its bytes a second, and its time against ours."""
    own = timings.get(ours)
    return [
        {
            **timing.row(**also, what=name),
            "GB/s": nbytes / timing.median / 1e9,
            "times ours": timing.median / own.median if own else None,
        }
        for name, timing in timings.items()
    ]
