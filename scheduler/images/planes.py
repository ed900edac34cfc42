"""Files that hold one plane each, grouped into stacks; missing and double planes are named file by file."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from scheduler.images.errors import InputError
from scheduler.images.patterns import Pattern, natural_key

Fields = tuple[tuple[str, str], ...]
_NAMED = 6  # how many faults a message spells out


class UnevenStacksWarning(UserWarning):
    """Some stacks begin later or end earlier than others of the same folder: complete, or cut short?"""


def group_planes(
    pattern: Pattern, along: str, files: Sequence[tuple[str, Mapping[str, str]]]
) -> list[tuple[Fields, list[str]]]:
    """(fields without `along`, the relative paths in natural order of `along`) for each stack.

    Where all values of `along` are numbers their step is the greatest that fits all of them, and a number
    that a stack leaves out between its first and its last is missing. Stacks of unequal ends are warned of.

    Raises
    ------
    InputError
        Missing planes, or two files for one plane.
    """
    groups: dict[Fields, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for relative, fields in files:
        rest = tuple((name, value) for name, value in fields.items() if name != along)
        groups[rest][fields[along]].append(relative)
    numeric = all(value.isdecimal() for planes in groups.values() for value in planes)
    faults = list(_double(groups, along, numeric))
    if numeric and not faults:
        faults = list(_missing(pattern, groups, along))
    if faults:
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise InputError("; ".join(faults[:_NAMED]) + more)
    return [
        (rest, [planes[value][0] for value in sorted(planes, key=natural_key)])
        for rest, planes in groups.items()
    ]


def _double(groups: Mapping[Fields, Mapping[str, Sequence[str]]], along: str, numeric: bool) -> Iterator[str]:
    for rest, planes in groups.items():
        by_plane: dict[str | int, list[str]] = defaultdict(list)
        for value, relatives in planes.items():
            by_plane[int(value) if numeric else value] += relatives
        for plane, relatives in by_plane.items():
            if len(relatives) > 1:
                names = ", ".join(relatives)
                yield f"{_named(rest)}: {along} {plane} is there {len(relatives)} times: {names}"


def _missing(
    pattern: Pattern, groups: Mapping[Fields, Mapping[str, Sequence[str]]], along: str
) -> Iterator[str]:
    every = sorted({int(value) for planes in groups.values() for value in planes})
    step = math.gcd(*(value - every[0] for value in every)) or 1
    uneven = []
    for rest, planes in groups.items():
        there = {int(value): value for value in planes}
        first, last = min(there), max(there)
        # a lone z 4000000000 is no reason to count up to there
        gaps: list[int] = []
        for low, high in pairwise(sorted(there)):
            gaps += range(low + step, min(high, low + (_NAMED + 1) * step), step)
        if gaps:
            absent = (last - first) // step + 1 - len(there)
            names = ", ".join(_file_name(pattern, rest, along, gap, list(planes)) for gap in gaps[:_NAMED])
            yield f"{_named(rest)}: {absent} of {absent + len(there)} planes are missing: {names}"
        elif (first, last) != (every[0], every[-1]):
            uneven.append(f"{_named(rest)} has {along} {first} to {last}")
    if uneven:
        warnings.warn(
            f"{len(uneven)} of {len(groups)} stacks don't have all of {along} {every[0]} to {every[-1]}: "
            + "; ".join(uneven[:_NAMED]),
            UnevenStacksWarning,
            stacklevel=4,
        )


def _file_name(pattern: Pattern, rest: Fields, along: str, plane: int, values: Sequence[str]) -> str:
    """The name that a missing plane would have, padded as its neighbours are."""
    widths = {len(value) for value in values}
    padded = str(plane).zfill(widths.pop()) if len(widths) == 1 else str(plane)
    return pattern.render({**dict(rest), along: padded})


def _named(rest: Fields) -> str:
    return " ".join(f"{name} {value}" for name, value in rest) or "the stack"
