"""How long jobs take: a fixed part and a part in proportion to their declared cost.

A small stack takes the time to open files and start kernels whatever its size, so that a rate in seconds for
each unit of cost, learned from small stacks, is many times too high for large ones. Durations are therefore
kept by classes of cost, each with its own memory, and a line is laid through the classes. Its fixed part is
averaged over what it may be: the likelihood of the classes, times a heavy-tailed prior that expects no more
than about `TYPICAL_FIXED_S`, times a slope of which only the order of magnitude is unknown (Gelman et al.,
Bayesian Data Analysis, 2.8). So a family of one small size isn't taken to be all slope, one of long jobs is,
and where sizes differ the measurements decide.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp, floor, inf, log, log1p, log2

# Classes are half an octave of cost wide: of two sizes that tell anything about the slope each has its own.
CLASSES_PER_OCTAVE = 2
# Of so many that were measured last the middle one says which are outliers; of two it is the shorter, as the
# first job in a process often pays for imports and compilation.
RECENT = 5
# A duration this many times off the middle one is an outlier: it is left out while there are few, and counts
# as this many times off later. When the middle one is so far off what is typical, the machine has changed.
FAR = 1.5
# The newest duration moves what is typical of its class by this share once there are many.
DRIFT = 0.05
# Durations of equal jobs scatter by about this much, taken to be known as well as from SCATTER_COUNT jobs;
# the line itself is never better than MISFIT.
SCATTER = 0.1
SCATTER_COUNT = 3
MISFIT = 0.01
# Opening, reading, starting kernels and writing take tens of milliseconds; the prior falls off beyond.
TYPICAL_FIXED_S = 0.1
# The part of the shortest duration that isn't fixed may be this many decades below the whole.
DECADES = 2
_STEPS = tuple(DECADES * step / 24 for step in range(25))
_FIXED_SHARES = tuple(1 - 10**-decades for decades in _STEPS)
# Fewer jobs than this in a class don't bound the fixed part where others have more.
_SUPPORT = 3
_NEGLIGIBLE = 12.0
# When expected seconds have moved by this factor, those who cache them should know.
_NEWS = log(1.25)

_Point = tuple[float, float, float]


@dataclass(slots=True)
class _CostClass:
    """Jobs of about one cost: what is typical of them, and the last few (seconds, cost) as measured."""

    count: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    scatter: float = 0.0
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, cost: float, seconds: float) -> None:
        self.recent.append((seconds, cost))
        self.count += 1
        middle = sorted(self.recent)[(len(self.recent) - 1) // 2][0]
        if self.count <= RECENT or not middle / FAR <= self.seconds <= middle * FAR:
            near = [each for each in self.recent if middle / FAR <= each[0] <= middle * FAR]
            self.seconds = sum(each[0] for each in near) / len(near)
            self.cost = sum(each[1] for each in near) / len(near)
            self.count = min(self.count, RECENT)
            return
        gain = max(1 / self.count, DRIFT)
        seconds = min(max(seconds, middle / FAR), middle * FAR)
        self.scatter += gain * ((seconds / self.seconds - 1) ** 2 - self.scatter)
        self.seconds += gain * (seconds - self.seconds)
        self.cost += gain * (cost - self.cost)


class Rate:
    """Seconds by declared cost of one family, plan and device model: `fixed_s` + `slope` * cost."""

    __slots__ = ("_classes", "_due", "_told", "count", "fixed_s", "slope")

    def __init__(self) -> None:
        self.count = 0
        self.fixed_s = 0.0
        self.slope = 0.0
        self._classes: dict[int, _CostClass] = {}
        self._due = 0
        self._told = (0.0, 0.0)

    def seconds(self, cost: float) -> float:
        """Expected seconds of a job of this cost."""
        return self.fixed_s + self.slope * cost

    def add(self, cost: float, seconds: float) -> bool:
        """Learn a duration of a job with cost > 0; True if expected seconds have changed noticeably."""
        self.count += 1
        index = floor(CLASSES_PER_OCTAVE * log2(cost))
        known = self._classes.get(index)
        if known is None:
            known = self._classes[index] = _CostClass()
        known.add(cost, max(seconds, 1e-6))
        if known.count > RECENT and self.count < self._due:
            return False
        # the more there are the less one more can change
        self._due = self.count + min(1 + self.count // 10, 100)
        self._fit()
        expected = self.seconds(known.cost), self.slope
        told = self._told[0] + self._told[1] * known.cost, self._told[1]
        if all(was > 0.0 and abs(log(now / was)) <= _NEWS for now, was in zip(expected, told, strict=True)):
            return False
        self._told = self.fixed_s, self.slope
        return True

    def _fit(self) -> None:
        classes = self._classes.values()
        jobs = [max(0, each.count - RECENT) for each in classes]
        squares = sum(number * each.scatter for number, each in zip(jobs, classes, strict=True))
        variance = (SCATTER_COUNT * SCATTER**2 + squares) / (SCATTER_COUNT + sum(jobs))
        points = [
            (each.cost, each.seconds, 1 / (variance / min(each.count, 2 / DRIFT) + MISFIT**2))
            for each in classes
        ]
        supported = [each.seconds for each in classes if each.count >= _SUPPORT]
        shortest = min(supported or [each.seconds for each in classes])
        scores: list[float] = []
        best = -inf
        for share in _FIXED_SHARES:
            fixed = share * shortest
            prior = -2 * log1p((fixed / TYPICAL_FIXED_S) ** 2)
            if prior < best - _NEGLIGIBLE:
                break  # for long jobs the first few shares say it all
            scores.append(prior - _line(points, fixed)[1] / 2)
            best = max(best, scores[-1])
        weights = [exp(score - best) for score in scores]
        decades = sum(step * weight for step, weight in zip(_STEPS, weights, strict=False)) / sum(weights)
        self.fixed_s = shortest * (1 - 10**-decades)
        self.slope = _line(points, self.fixed_s)[0]

    def to_json(self) -> list[list[object]]:
        """What was learned, as plain JSON types: a row for each class of cost."""
        return [
            [index, each.count, each.cost, each.seconds, each.scatter, [list(pair) for pair in each.recent]]
            for index, each in self._classes.items()
        ]

    @classmethod
    def from_json(cls, rows: Iterable[tuple[int, int, float, float, float, list[list[float]]]]) -> "Rate":
        """The inverse of `to_json`."""
        rate = cls()
        for index, count, cost, seconds, scatter, recent in rows:
            pairs = deque(((float(each[0]), float(each[1])) for each in recent), maxlen=RECENT)
            rate._classes[int(index)] = _CostClass(count, cost, seconds, scatter, pairs)
            rate.count += count
        rate._fit()
        rate._told = rate.fixed_s, rate.slope
        return rate


def _line(points: list[_Point], fixed: float) -> tuple[float, float]:
    """The slope that goes best with a fixed part, and the weighted sum of squared relative errors.

    An error is relative to the larger of measured and fixed, so that one absurdly short duration can't
    outweigh all others.
    """
    above = below = 0.0
    for cost, seconds, weight in points:
        scaled = weight * cost / max(seconds, fixed) ** 2
        above += scaled * max(0.0, seconds - fixed)
        below += scaled * cost
    slope = above / below
    misfit = sum(
        weight * ((fixed + slope * cost - seconds) / max(seconds, fixed)) ** 2
        for cost, seconds, weight in points
    )
    return slope, misfit
