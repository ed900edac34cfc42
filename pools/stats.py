"""What a pool did and holds: records that are read by screens, logs and tests."""

from dataclasses import dataclass
from typing import Any

from memcore.info import bytes_text


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One moment of a pool, or of several added up. Bytes are those of whole buffers.

    `bytes_peak` is the most that was in use at once (of a sum: the sum of the peaks, an upper bound);
    `bytes_trimmed` is all that was ever given back; `refused` counts `PoolExhaustedError`.
    """

    hits: int = 0
    misses: int = 0
    bytes_in_use: int = 0
    bytes_idle: int = 0
    bytes_peak: int = 0
    bytes_trimmed: int = 0
    refused: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of requests served by a recycled buffer; 0.0 before the first request."""
        requests = self.hits + self.misses
        return self.hits / requests if requests else 0.0

    @property
    def bytes_held(self) -> int:
        """In use and idle: what the pool takes from its device."""
        return self.bytes_in_use + self.bytes_idle

    def __add__(self, other: "PoolStats") -> "PoolStats":
        return PoolStats(
            self.hits + other.hits,
            self.misses + other.misses,
            self.bytes_in_use + other.bytes_in_use,
            self.bytes_idle + other.bytes_idle,
            self.bytes_peak + other.bytes_peak,
            self.bytes_trimmed + other.bytes_trimmed,
            self.refused + other.refused,
        )


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """Who holds a buffer. `ended` says that its lease is over, so that only an alias keeps it."""

    memory_type: str
    device: int | str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    age_s: float
    job: str | None
    step: str | None
    ended: bool

    def __str__(self) -> str:
        holder = " ".join(filter(None, (self.job and f"job {self.job}", self.step and f"step {self.step}")))
        how = "an alias outlives its lease" if self.ended else "its lease was never released"
        return (
            f"{self.memory_type} {self.dtype} {self.shape} on {self.device}, {bytes_text(self.nbytes)}, "
            f"held for {self.age_s:.1f} s by {holder or 'nobody named'}: {how}"
        )


def holder_text(holder: tuple[Any, ...]) -> str:
    """The holder for an error message; empty where nobody gave a name."""
    job, step = holder
    return "".join(f" {what} {name}" for what, name in (("job", job), ("step", step)) if name)
