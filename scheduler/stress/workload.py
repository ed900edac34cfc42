"""The jobs of a stress test: random shapes, dtypes and footprints, with results that are known exactly.

Everything here is drawn from the seed alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]

# Values stay below these, so that each result is exact in its dtype and in 64-bit integers on the way.
MODULI = {"uint8": 1 << 8, "uint16": 1 << 16, "int16": 1 << 15, "int32": 1 << 20, "float32": 1 << 16}

FAMILIES = 8
# Declared bytes against the smallest device, from the lightest job to the heaviest: 0.2 to 6 GiB of 8.
LEAST_SHARE, MOST_SHARE = 0.025, 0.75
# Jobs of one family differ from its middle by at most this factor; rounding of the sides is left some room.
REACH = 1.7
ROUNDING = 1.06
MIDDLE_VOXELS = 24_000

# A job that needs more than it declares: in per cent of that, beyond the scheduler's own margin of 25 %.
LEAST_EXCESS, MOST_EXCESS = 140, 200
# It must fit on an empty device, or it would only ever end on the CPU.
LARGEST_NEED = 0.95

FROM_FILE, TO_FILE, ON_SLOW_DISK, URGENT = 0.3, 0.7, 0.1, 0.1


@dataclass(frozen=True, slots=True)
class Mixing:
    """Integer arithmetic on a stack, repeated `rounds` times.

    A voxel becomes the sum, weighted by `weights`, of itself and of its neighbours one plane, one row and one
    column before it (the stack's edges are joined), plus `offset`, modulo what the dtype holds.
    """

    rounds: int
    weights: tuple[int, int, int, int]
    offset: int


@dataclass(frozen=True, slots=True)
class Family:
    """Jobs with the same steps and parameters, which the scheduler learns about together.

    `bytes_per_voxel` is the device workspace that they declare; `hold_s` how long they keep it at least.
    `turned` ones have a second step, written for NumPy only: planes in reverse, rows and columns swapped.
    """

    name: str
    mixing: Mixing
    bytes_per_voxel: int
    hold_s: float
    turned: bool


@dataclass(frozen=True, slots=True)
class StressJob:
    """One job. `need_percent` is what it really needs of the device, in per cent of what its steps declare.

    `to_file` False brings the result back as an array instead of writing it.
    """

    name: str
    family: Family
    shape: Shape
    dtype: str
    seed: tuple[int, int]
    need_percent: int = 100
    from_file: bool = False
    to_file: bool = True
    slow_disk: bool = False
    priority: int = 0

    @property
    def declared_bytes(self) -> int:
        """Device workspace, as declared."""
        return self.family.bytes_per_voxel * prod(self.shape)

    @property
    def under_estimates(self) -> bool:
        """It was made to need more than it declares."""
        return self.need_percent > 100


def make_workload(jobs: int, *, capacity: int, under_estimate: float, seed: int) -> list[StressJob]:
    """Draw the jobs.

    Parameters
    ----------
    capacity
        Bytes of the smallest device, against which footprints are drawn.
    under_estimate
        Per cent of the jobs that need more than they declare; exactly as many are made, rounded.
    """
    random = np.random.default_rng(seed)
    families = _families(random, capacity)
    sly = set(random.permutation(jobs)[: round(jobs * under_estimate / 100)].tolist())
    return [_job(random, number, families, capacity, seed, sly=number in sly) for number in range(jobs)]


def input_stack(job: StressJob) -> NDArray[Any]:
    """The job's [Z, Y, X] stack. The first voxel says what the job will need: a step sees it in its data."""
    random = np.random.default_rng(job.seed)
    stack = random.integers(0, MODULI[job.dtype], job.shape).astype(job.dtype)
    stack[0, 0, 0] = job.need_percent
    return stack


def declared_range(jobs: Iterable[StressJob]) -> tuple[int, int]:
    """The least and the most that a job declares, in bytes."""
    declared = [job.declared_bytes for job in jobs]
    return min(declared), max(declared)


def _families(random: np.random.Generator, capacity: int) -> list[Family]:
    spread = REACH * ROUNDING
    middles = np.geomspace(LEAST_SHARE * spread, MOST_SHARE / spread, FAMILIES) * capacity
    return [
        Family(
            name=f"family{number}",
            mixing=Mixing(
                rounds=int(random.integers(1, 4)),
                weights=tuple(int(weight) for weight in random.integers(1, 64, 4)),  # type: ignore[arg-type]
                offset=int(random.integers(0, 256)),
            ),
            bytes_per_voxel=int(middle / MIDDLE_VOXELS),
            hold_s=round(float(random.uniform(0.02, 0.2)), 3),
            turned=number % 3 == 2,
        )
        for number, middle in enumerate(middles)
    ]


def _job(
    random: np.random.Generator, number: int, families: list[Family], capacity: int, seed: int, *, sly: bool
) -> StressJob:
    family = families[int(random.integers(len(families)))]
    shape = _shape(random, MIDDLE_VOXELS * exp(random.uniform(-log(REACH), log(REACH))))
    dtype = str(random.choice(list(MODULI)))
    excess = int(random.integers(LEAST_EXCESS, MOST_EXCESS + 1))
    from_file, to_file, slow, urgent = random.random(4) < (FROM_FILE, TO_FILE, ON_SLOW_DISK, URGENT)
    declared = family.bytes_per_voxel * prod(shape)
    return StressJob(
        name=f"job{number:05}",
        family=family,
        shape=shape,
        dtype=dtype,
        seed=(seed, number),
        need_percent=min(excess, int(100 * LARGEST_NEED * capacity / declared)) if sly else 100,
        from_file=bool(from_file),
        to_file=bool(to_file),
        slow_disk=bool(to_file and slow),
        priority=int(urgent),
    )


def _shape(random: np.random.Generator, voxels: float) -> Shape:
    """Z, Y and X of about as many voxels, no two of them alike: a mix-up of axes then shows."""
    planes = int(random.integers(2, 9))
    aspect = exp(random.uniform(-0.5, 0.5))
    rows = round(sqrt(voxels / planes) * aspect)
    columns = round(voxels / planes / rows)
    return planes, rows, columns + (columns == rows)
