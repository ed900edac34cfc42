"""What jobs need and how long they take: the declared model, corrected by what was measured.

A family's peaks are learned as the logarithm of measured over declared bytes, so that one measurement speaks
for every shape of the family. The estimate is the upper end of a normal predictive interval with a weak prior
on the spread (Gelman et al., Bayesian Data Analysis, 3.2), never below what was measured for the same kind.
That prior is itself learned from the spread within all families: where declared footprints scatter little,
margins are small from a family's first measurement on. Durations are `rates`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any, TypeVar

from scheduler.core.model import JobPlan
from scheduler.core.rates import Rate

# Peaks of one family scatter by a few per cent (allocator rounding, data-dependent temporaries): the prior
# spread weighs as much as PRIOR_COUNT measurements. WIDTH standard deviations cover 99.5 % of a normal's
# upper side.
PRIOR_SPREAD = 0.03
PRIOR_COUNT = 3
WIDTH = 2.6
# However much the declarations of others are off, a family's first measurement is believed within a factor of
# exp(WIDTH * sqrt(2) * MOST_SPREAD), which is 2.5; what its own scatter says comes on top.
MOST_SPREAD = 0.25
# Before anything was measured a declared host footprint gets this margin; device footprints run alone
# instead.
COLD_MARGIN = 1.25
# Fewer measurements than this on a device model say less than those on all models together.
ENOUGH = 3
# A measurement further from its family's mean than this many deviations counts as this many.
OUTLIER = 3.0
# When the spread within all families has changed by this much, every estimate is due.
NEWS = 0.15
FORMAT = 3
# Its peaks are kept as they are now; its rates had no fixed part, so durations are learned anew.
_FORMAT_WITHOUT_FIXED_PART = 2

_Key = TypeVar("_Key")


@dataclass(slots=True)
class _Spread:
    """The variance within families, pooled over all of them."""

    squares: float = 0.0
    freedom: int = 0

    @property
    def variance(self) -> float:
        pooled = (PRIOR_COUNT * PRIOR_SPREAD**2 + self.squares) / (PRIOR_COUNT + self.freedom)
        return min(pooled, MOST_SPREAD**2)


@dataclass(slots=True)
class _Ratio:
    """Running mean and spread of log(measured / declared), by Welford's method."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, ratio: float) -> float:
        """Take a measurement in; by how much the sum of squares grew."""
        value = log(max(ratio, 1e-6))
        self.count += 1
        delta = value - self.mean
        self.mean += delta / self.count
        growth = delta * (value - self.mean)
        self.squares += growth
        return growth

    def upper(self, spread: _Spread) -> float:
        """What hardly any job of the family exceeds."""
        variance = (PRIOR_COUNT * spread.variance + self.squares) / (PRIOR_COUNT + self.count - 1)
        return exp(self.mean + WIDTH * sqrt(variance * (1 + 1 / self.count)))


class Estimates:
    """Learned peaks and durations by family, plan and device model.

    `version(family)` grows whenever an estimate of that family changes by more than a per cent, `epoch` when
    those of every family have: who caches an estimate compares them.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._spread = _Spread()
        self._host_spread = _Spread()
        self._told = self._spread.variance
        self._device: dict[tuple[str, str, str], _Ratio] = {}
        self._device_any: dict[tuple[str, str], _Ratio] = {}
        self._host: dict[tuple[str, str], _Ratio] = {}
        self._peaks: dict[tuple[str, str, str], int] = {}
        self._host_peaks: dict[tuple[str, str], int] = {}
        self._rates: dict[tuple[str, str, str], Rate] = {}
        # the first rate of each family on any device, for guesses elsewhere
        self._paces: dict[str, Rate] = {}
        self._unmeasurable: set[tuple[str, str]] = set()
        self._versions: dict[str, int] = {}

    def version(self, family: str) -> int:
        """A counter that grows when the family's estimates change noticeably."""
        return self._versions.get(family, 0)

    def measured(self, family: str, plan: JobPlan) -> bool:
        """True once a device peak of this family and plan was attributed, on any device model."""
        return (family, plan.name) in self._device_any or (family, plan.name) in self._unmeasurable

    def device_bytes(self, family: str, kind: str, plan: JobPlan, model: str) -> int:
        """Device bytes to reserve for a job.

        The declared ones while nothing was measured (it then runs alone).
        """
        declared = plan.footprint.device_bytes
        ratio = self._device.get((family, plan.name, model))
        if ratio is None or ratio.count < ENOUGH:
            ratio = self._device_any.get((family, plan.name))
        floor = self._peaks.get((kind, plan.name, model), 0)
        if ratio is not None:
            return max(floor, int(declared * ratio.upper(self._spread)))
        return int(declared * COLD_MARGIN) if (family, plan.name) in self._unmeasurable else declared

    def device_floor(self, kind: str, plan: JobPlan, model: str) -> int:
        """What was once measured for this kind, 0 if nothing was: less would be wrong, more is margin."""
        return self._peaks.get((kind, plan.name, model), 0)

    def host_bytes(self, family: str, kind: str, plan: JobPlan) -> int:
        """Host bytes to reserve: declared with a margin until measured."""
        declared = plan.footprint.host_bytes
        ratio = self._host.get((family, plan.name))
        floor = self._host_peaks.get((kind, plan.name), 0)
        return max(
            floor, int(declared * (ratio.upper(self._host_spread) if ratio is not None else COLD_MARGIN))
        )

    def seconds(self, family: str, plan: JobPlan, model: str) -> float | None:
        """Expected seconds on a device model, from measured durations; None while unmeasured."""
        rate = self._rates.get((family, plan.name, model))
        return None if rate is None else rate.seconds(plan.cost)

    def expected_seconds(self, family: str, plan: JobPlan) -> float:
        """A guess for a device model on which nothing was measured.

        What its declared cost takes where something of the family was measured first; else the cost itself.
        """
        pace = self._paces.get(family)
        return plan.cost if pace is None else pace.seconds(plan.cost)

    def observe_device_peak(self, family: str, kind: str, plan: JobPlan, model: str, peak: int) -> bool:
        """Learn an attributed device peak; True if the family's estimates changed noticeably."""
        declared = plan.footprint.device_bytes
        if declared <= 0 or peak <= 0:
            return False
        raised = peak > self.device_bytes(family, kind, plan, model)
        key = (kind, plan.name, model)
        self._peaks[key] = max(peak, self._peaks.get(key, 0))
        ratio = peak / declared
        changed = _observe(self._device, (family, plan.name, model), ratio, self._spread, pooled=False)
        changed |= _observe(self._device_any, (family, plan.name), ratio, self._spread)
        if abs(sqrt(self._spread.variance / self._told) - 1) > NEWS:
            self._told = self._spread.variance
            self.epoch += 1
        return self._noted(family, changed or raised)

    def accept_declared(self, family: str, plan: JobPlan) -> bool:
        """A job ended well and nothing could measure its device peak.

        Believe the declared one, with a margin.
        """
        if self.measured(family, plan):
            return False
        self._unmeasurable.add((family, plan.name))
        return self._noted(family, True)

    def observe_host_peak(self, family: str, kind: str, plan: JobPlan, peak: int) -> bool:
        """Learn an attributed host peak; True if the family's estimates changed noticeably."""
        declared = plan.footprint.host_bytes
        if declared <= 0 or peak <= 0:
            return False
        raised = peak > self.host_bytes(family, kind, plan)
        key = (kind, plan.name)
        self._host_peaks[key] = max(peak, self._host_peaks.get(key, 0))
        changed = _observe(self._host, (family, plan.name), peak / declared, self._host_spread)
        return self._noted(family, changed or raised)

    def observe_seconds(self, family: str, plan: JobPlan, model: str, seconds: float) -> bool:
        """Learn a duration; True if the family's expected seconds changed noticeably."""
        if plan.cost <= 0 or seconds < 0:
            return False
        key = (family, plan.name, model)
        rate = self._rates.get(key)
        if rate is None:
            rate = self._rates[key] = Rate()
            self._paces.setdefault(family, rate)
        return self._noted(family, rate.add(plan.cost, seconds))

    def _noted(self, family: str, changed: bool) -> bool:
        if changed:
            self._versions[family] = self._versions.get(family, 0) + 1
        return changed

    def to_json(self) -> dict[str, Any]:
        """Everything learned, as plain JSON types."""
        return {
            "format": FORMAT,
            "device": [[*key, ratio.count, ratio.mean, ratio.squares] for key, ratio in self._device.items()],
            "device_any": [[*key, r.count, r.mean, r.squares] for key, r in self._device_any.items()],
            "host": [[*key, ratio.count, ratio.mean, ratio.squares] for key, ratio in self._host.items()],
            "peaks": [[*key, peak] for key, peak in self._peaks.items()],
            "host_peaks": [[*key, peak] for key, peak in self._host_peaks.items()],
            "spread": [self._spread.squares, self._spread.freedom],
            "host_spread": [self._host_spread.squares, self._host_spread.freedom],
            "rates": [[*key, rate.to_json()] for key, rate in self._rates.items()],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Estimates":
        """The inverse of `to_json`; a record of another format gives empty estimates, not wrong ones.

        Of format 2 the peaks are kept and the rates are not.
        """
        estimates = cls()
        if record.get("format") not in (_FORMAT_WITHOUT_FIXED_PART, FORMAT):
            return estimates
        estimates._device = {(f, p, m): _Ratio(*rest) for f, p, m, *rest in record["device"]}
        estimates._device_any = {(f, p): _Ratio(*rest) for f, p, *rest in record["device_any"]}
        estimates._host = {(f, p): _Ratio(*rest) for f, p, *rest in record["host"]}
        estimates._spread = _Spread(*record["spread"])
        estimates._host_spread = _Spread(*record["host_spread"])
        estimates._told = estimates._spread.variance
        estimates._peaks = {(k, p, m): int(peak) for k, p, m, peak in record["peaks"]}
        estimates._host_peaks = {(k, p): int(peak) for k, p, peak in record["host_peaks"]}
        if record["format"] == FORMAT:
            estimates._rates = {(f, p, m): Rate.from_json(rows) for f, p, m, rows in record["rates"]}
        for (family, _, _), rate in estimates._rates.items():
            estimates._paces.setdefault(family, rate)
        return estimates


def _observe(
    ratios: dict[_Key, _Ratio], key: _Key, ratio: float, spread: _Spread, pooled: bool = True
) -> bool:
    """Add one measurement; True if the upper end moved by more than a per cent, or is the first."""
    known = ratios.get(key)
    if known is None:
        known = ratios[key] = _Ratio()
    before = known.upper(spread) if known.count else 0.0
    growth = known.add(ratio)
    if pooled and known.count > 1:
        # one outlier mustn't widen the margins of every other family
        spread.squares += min(growth, OUTLIER**2 * spread.variance)
        spread.freedom += 1
    return abs(known.upper(spread) - before) > 0.01 * before
