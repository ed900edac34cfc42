"""File patterns with named fields: `{well}_s{site}_z{z}_c{channel}.tif`.

A field stands for one or more characters other than `/`, `{site:d}` for digits only, `*` for anything within
a name. `{{` and `}}` are braces. A field that occurs twice must have the same value both times.
"""

import difflib
import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from scheduler.images.errors import InputError

Choice = str | int
Select = Mapping[str, Choice | Sequence[Choice]]
Token = str | tuple[str, str]  # literal text, or (field, spec)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern; `fields` are in the order in which they first occur."""

    text: str
    fields: tuple[str, ...]
    tokens: tuple[Token, ...]
    levels: tuple[re.Pattern[str], ...]
    whole: re.Pattern[str]

    def match(self, relative: str) -> dict[str, str] | None:
        """The fields of a path relative to the folder, or None."""
        found = self.whole.fullmatch(relative)
        return found.groupdict() if found else None

    def walk(self, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """Each (relative path, fields) under `folder` that matches, in no particular order."""
        for relative in self._walk(str(folder), "", 0):
            fields = self.match(relative)
            if fields is not None:
                yield relative, fields

    def render(self, fields: Mapping[str, str]) -> str:
        """The name that has these fields; a `*` stays as it is."""
        return "".join(token if isinstance(token, str) else fields[token[0]] for token in self.tokens)

    def _walk(self, folder: str, prefix: str, level: int) -> Iterator[str]:
        last = level == len(self.levels) - 1
        hidden = self.levels[level].pattern.startswith(r"\.")
        with os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in entries:
                # macOS leaves ._NAME beside each file that it copies; our own unfinished files are hidden too
                if entry.name.startswith(".") and not hidden:
                    continue
                if self.levels[level].fullmatch(entry.name) is None:
                    continue
                if last:
                    yield prefix + entry.name
                elif entry.is_dir():
                    yield from self._walk(folder, f"{prefix}{entry.name}/", level + 1)


def parse_pattern(text: str) -> Pattern:
    """Parse a pattern; InputError says what is wrong with it."""
    tokens = tuple(_tokens(text))
    fields = tuple(dict.fromkeys(token[0] for token in tokens if isinstance(token, tuple)))
    for one, other in pairwise(tokens):
        if isinstance(one, tuple) and isinstance(other, tuple) and one[1] == other[1]:
            raise InputError(
                f"pattern {text!r}: fields {{{one[0]}}} and {{{other[0]}}} touch, so nothing tells where one "
                f"ends; put a separator between them, or write {{{other[0]}:d}} for digits only"
            )
    levels = _expression(tokens, backreferences=False).split("/")
    if any(level in ("", r"\.", r"\.\.") for level in levels):
        raise InputError(f"pattern {text!r} must name files inside the folder: no empty, '.' or '..' part")
    whole = re.compile(_expression(tokens, backreferences=True), re.DOTALL)
    return Pattern(text, fields, tokens, tuple(re.compile(level, re.DOTALL) for level in levels), whole)


def selected(fields: Mapping[str, str], select: Select) -> bool:
    """Whether every field that `select` names has one of the values chosen for it."""
    return all(any(_is_chosen(fields[name], choice) for choice in choices(select, name)) for name in select)


def choices(select: Select, name: str) -> tuple[Choice, ...]:
    """The values chosen for a field: one value is a list of one."""
    chosen = select[name]
    return (chosen,) if isinstance(chosen, str | int) else tuple(chosen)


def check_select(select: Select, known: Sequence[str], values: Mapping[str, set[str]]) -> None:
    """Every selected field must exist, and every choice must choose something among `values`."""
    for name in select:
        if name not in known:
            raise InputError(f"select: there is no field {name!r}{nearest(name, known)}")
        for choice in choices(select, name):
            if name in values and not any(_is_chosen(value, choice) for value in values[name]):
                there = ", ".join(sorted(values[name], key=natural_key)[:8])
                raise InputError(f"select: no {name} is {choice!r}; there are {len(values[name])}: {there}")


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message: what was probably meant, or what there is."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f" among {', '.join(known) or 'none'}"


def natural_key(text: str) -> list[str | int]:
    """Sorts z2 before z10."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", text))]


def _is_chosen(value: str, choice: Choice) -> bool:
    if isinstance(choice, int):  # YAML's 1 means 01 too
        return value.isdecimal() and int(value) == choice
    return fnmatchcase(value, choice)


def _tokens(text: str) -> Iterator[Token]:
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"pattern {text!r}: {error}") from error
    for literal, field, spec, conversion in parsed:
        if literal:
            yield literal
        if field is None:
            continue
        if not field.isidentifier() or conversion or spec not in ("", "d"):
            raise InputError(f"pattern {text!r}: a field is a name in braces, as {{well}} or {{site:d}}")
        yield field, spec or ""


def _expression(tokens: Sequence[Token], *, backreferences: bool) -> str:
    # of one level's name anything may be taken, it holds no slash; so a level's expression has none either
    char_class = "[^/]" if backreferences else "."
    seen: set[str] = set()
    parts = []
    for token in tokens:
        if isinstance(token, str):
            parts.append("".join(f"{char_class}*" if char == "*" else re.escape(char) for char in token))
            continue
        field, spec = token
        if backreferences and field in seen:
            parts.append(f"(?P={field})")
            continue
        seen.add(field)
        body = "[0-9]+" if spec == "d" else f"{char_class}+?"
        parts.append(f"(?P<{field}>{body})" if backreferences else f"(?:{body})")
    return "".join(parts)
