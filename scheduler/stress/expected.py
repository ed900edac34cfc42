"""What a job's result must be, computed in another way than its steps do, and how another one differs."""

from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.stress.workload import MODULI, Mixing, StressJob, input_stack


def expected_result(job: StressJob) -> NDArray[Any]:
    """The job's result, voxel by voxel."""
    mixed = mixed_at_once(input_stack(job), job.family.mixing)
    return np.flip(mixed, 0).swapaxes(1, 2).copy() if job.family.turned else mixed


def mixed_at_once(stack: NDArray[Any], mixing: Mixing) -> NDArray[Any]:
    """All rounds of the arithmetic in closed form.

    Without the offset a round is a polynomial of the shifts along z, y and x, which commute; its power
    follows from the multinomial theorem. The offset goes through each later round times the sum of the
    weights.
    """
    rounds, (own, *before), offset = mixing.rounds, mixing.weights, mixing.offset
    modulus = MODULI[stack.dtype.name]
    constant = sum(offset * sum(mixing.weights) ** number for number in range(rounds))
    total = np.full(stack.shape, constant % modulus, np.uint64)
    for z in range(rounds + 1):
        for y in range(rounds + 1 - z):
            for x in range(rounds + 1 - z - y):
                rest = rounds - z - y - x
                ways = factorial(rounds) // (factorial(z) * factorial(y) * factorial(x) * factorial(rest))
                factor = ways * own**rest * before[0] ** z * before[1] ** y * before[2] ** x
                shifted = np.roll(stack, (z, y, x), (0, 1, 2)).astype(np.uint64)
                total += shifted * np.uint64(factor % modulus) % np.uint64(modulus)
    return (total % np.uint64(modulus)).astype(stack.dtype)


def difference(result: Any, expected: NDArray[Any]) -> str:
    """In words, how a result differs from what it must be; "" if every value is right."""
    if not isinstance(result, np.ndarray):
        return f"is no array but {type(result).__name__}"
    if result.shape != expected.shape:
        return f"has shape {result.shape} instead of {expected.shape}"
    if result.dtype != expected.dtype:
        return f"has dtype {result.dtype} instead of {expected.dtype}"
    wrong = result != expected
    if not wrong.any():
        return ""
    place = tuple(int(at) for at in np.argwhere(wrong)[0])
    return (
        f"has {np.count_nonzero(wrong)} wrong values of {wrong.size}, the first at {place}: "
        f"{result[place]} instead of {expected[place]}"
    )


def difference_of_file(path: Path, expected: NDArray[Any]) -> str:
    """The same for a TIFF, read by tifffile and not by our own reader."""
    import tifffile

    try:
        result = tifffile.imread(path)
    except (OSError, ValueError) as error:
        return f"can't be read: {error}"
    return difference(result, expected)
