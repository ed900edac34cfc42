"""From the names of the files in a folder to the pattern that they follow.

Microscopes write names such as `A01_s1_z00_c1.tif` or `r01c02f03p04-ch1sk1fk1fl1.tiff`: parts between
separators, of which some are a key with a number. What never changes is text, what changes is a field.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

FIELD_OF_KEY = {
    "z": "z",
    "slice": "z",
    "plane": "z",
    "p": "z",
    "c": "channel",
    "ch": "channel",
    "channel": "channel",
    "w": "channel",
    "wv": "channel",
    "s": "site",
    "f": "site",
    "fld": "site",
    "site": "site",
    "field": "site",
    "xy": "site",
    "pos": "site",
    "position": "site",
    "t": "time",
    "tp": "time",
    "time": "time",
    "sk": "time",
    "r": "row",
    "row": "row",
    "col": "column",
    "column": "column",
    "well": "well",
    "plate": "plate",
}
_WELL = re.compile(r"[A-P][0-9]{1,2}")
_KEYED = re.compile(r"(?:[A-Za-z]+[0-9]+)+")
_PAIR = re.compile(r"([A-Za-z]+)([0-9]+)")
# The ends of a name: a stem, and what says that the file is an image.
_ENDING = re.compile(r"(?:\.ome)?\.tiff?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A pattern, and how many of the names it was made from follow it."""

    pattern: str
    follow: int


def propose_pattern(names: Sequence[str], *, whole_stacks: bool = False) -> Proposal | None:
    """The pattern of the largest group of image names of one form; None if no name is that of an image.

    A number without a key may count the planes, unless each file holds a whole stack.
    """
    groups: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    alike: dict[tuple[int, ...], list[tuple[list[str], str]]] = defaultdict(list)
    for name in names:
        ending = _ending(name)
        if not ending:
            continue
        parts = re.split(r"([^A-Za-z0-9]+)", name.removesuffix(ending))
        like_wells = [index for index, part in enumerate(parts) if _WELL.fullmatch(part)]
        alike[len(parts), *like_wells].append((parts, ending))
    for (_, *like_wells), files in alike.items():
        well = _well_among(like_wells, [parts for parts, _ in files])
        for parts, end in files:
            pieces = _pieces(parts, well)
            form = tuple(_form(piece) for piece in pieces)
            groups[*form, end].append(pieces)
    if not groups:
        return None
    (form, group) = max(groups.items(), key=lambda item: len(item[1]))
    return Proposal(_pattern(group, whole_stacks) + form[-1].replace("{", "{{"), len(group))


def count_images(names: Sequence[str]) -> int:
    """How many of the names are those of images."""
    return sum(bool(_ending(name)) for name in names)


def output_name(pattern: str, fields: Sequence[str], stack_along: str = "z") -> str:
    """A name for results after `pattern`, without the field that is stacked along, with each of `fields`."""
    stem = _ENDING.sub("", pattern) if _ENDING.search(pattern) else pattern
    kept = re.sub(rf"[-_. ]?[A-Za-z]*\{{{stack_along}(?::d)?\}}", "", stem.replace("/", "_"))
    kept = re.sub(r"\{(\w+):d\}", r"{\1}", kept).replace("*", "").strip("-_. ")
    missing = [f"{{{name}}}" for name in fields if f"{{{name}}}" not in kept]
    return "_".join(filter(None, [kept, *missing])) or "result"


def _ending(name: str) -> str:
    """The ending that says that a name is an image's; "" if it isn't."""
    ending = next((match for match in _ENDING.finditer(name) if match.end() == len(name)), None)
    return ending[0] if ending is not None and ending.start() else ""


def _well_among(like_wells: Sequence[int], names: Sequence[Sequence[str]]) -> int | None:
    """Which of the parts that look like a well is one: as C1 may be channel 1, one at most in a name.

    One whose letter isn't always the same key comes before one of two digits, and that before the others.
    """

    def likeness(index: int) -> tuple[bool, bool]:
        letters = {parts[index][0].lower() for parts in names}
        no_key = len(letters) > 1 or not letters <= FIELD_OF_KEY.keys()
        return no_key, all(len(parts[index]) == len("A01") for parts in names)

    best = max(like_wells, key=likeness, default=None)
    return best if best is not None and any(likeness(best)) else None


def _pieces(parts: Sequence[str], well: int | None) -> list[str]:
    """Keys, numbers, the well and words, with what separates them, so that joining them gives the stem."""
    pieces: list[str] = []
    for index, part in enumerate(parts):
        if _KEYED.fullmatch(part) and index != well:
            for key, number in _PAIR.findall(part):
                pieces += [key, number]
        elif part:
            pieces.append(part)
    return pieces


def _form(piece: str) -> str:
    """What names of one pattern share: separators and known keys as they are, else the kind."""
    if _WELL.fullmatch(piece):
        return "well"
    if piece.isdecimal():
        return "number"
    if piece.isalnum() and piece.lower() not in FIELD_OF_KEY:
        return "word"
    return piece


def _pattern(group: Sequence[Sequence[str]], whole_stacks: bool) -> str:
    columns = list(zip(*group, strict=True))
    fields = [_field(columns, index) for index in range(len(columns))]
    numbers = [index for index, field in enumerate(fields) if field == "number"]
    if numbers and "z" not in fields and not whole_stacks:
        fields[numbers[-1]] = "z"
    parts: list[str] = []
    for index, (field, column) in enumerate(zip(fields, columns, strict=True)):
        if not field:
            parts.append(column[0].replace("{", "{{").replace("}", "}}"))
            continue
        count = fields[: index + 1].count(field)
        # Where two fields touch, only what they are made of tells where one ends.
        digits = ":d" if column[0].isdecimal() and index and fields[index - 1] else ""
        parts.append(f"{{{field}{count if count > 1 else ''}{digits}}}")
    return "".join(parts)


def _field(columns: Sequence[Sequence[str]], index: int) -> str:
    """The field that a column of the names is, or "" for text that stays as it is."""
    column = columns[index]
    if _WELL.fullmatch(column[0]):
        return "well"
    key = _key_before(columns, index)
    if key or len(set(column)) == 1:
        return key
    if column[0].isdecimal():
        return "number"
    words_are_few = len(set(column)) <= 8 < len(column)
    return "channel" if words_are_few else "name"


def _key_before(columns: Sequence[Sequence[str]], index: int) -> str:
    if index == 0 or not columns[index][0].isdecimal() or len(set(columns[index - 1])) > 1:
        return ""
    key = columns[index - 1][0].lower()
    if key == "c" and any(column[0].lower() == "r" for column in columns[:index]):
        return "column"
    return FIELD_OF_KEY.get(key, "")
