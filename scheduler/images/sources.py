"""Find the image stacks of a folder by a pattern with named fields, and read one.

    sources = find_stacks("data/plate1", "{well}_s{site}_z{z}_c{channel}.tif", select={"well": ["A01", "B*"]})
    stack = numpy.empty(sources[0].shape, sources[0].dtype)
    read_stack(sources[0], stack)

With the field to stack along in the pattern each file gives one plane; without it each file holds whole
stacks: multi-page TIFF, ImageJ, or OME-TIFF by its axes. Axes of a file that aren't stacked become fields
(`channel`, `time`, `sample` of RGB, `image`) that count from 0: each position is a stack for `select`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from scheduler.images.errors import ImageError, InputError
from scheduler.images.layout import FILE_FIELDS, STACKABLE, broken, stacks_of
from scheduler.images.patterns import (
    Pattern,
    Select,
    check_select,
    natural_key,
    nearest,
    parse_pattern,
    selected,
)
from scheduler.images.planes import group_planes
from scheduler.images.stack import PhysicalSize, PlaneRef, StackSource

__all__ = [
    "PhysicalSize",
    "PlaneRef",
    "StackSource",
    "find_stacks",
    "read_stack",
    "stack_of_files",
    "stacks_in_file",
]

_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def find_stacks(
    path: str | Path, pattern: str, *, stack_along: str = "z", select: Select | None = None
) -> list[StackSource]:
    """The stacks under the folder `path`, in natural order of their fields; no pixels are read.

    `stack_along` is a field of the pattern, or an axis inside the files (`z`, `time`, `channel`). `select`
    maps fields to values, lists of values and globs; an int means the number, however it is padded. A stack
    whose files turn out damaged is in the list with its `problem`, so that the others can go on.

    Raises
    ------
    InputError
        No such folder; a pattern that can't be parsed or matches nothing; an unknown field; planes that are
        missing or there twice, each named; or not one stack that can be read.
    """
    folder = Path(path)
    parsed = parse_pattern(pattern)
    select = {} if select is None else select
    from_planes = stack_along in parsed.fields
    if not from_planes and stack_along not in STACKABLE:
        raise InputError(
            f"stack_along: {stack_along!r} is no field of the pattern {pattern!r} and no axis of files"
            f"{nearest(stack_along, [*parsed.fields, *STACKABLE])}"
        )
    files = _matching_files(folder, parsed)
    known = [*parsed.fields, *(name for name in FILE_FIELDS if name not in parsed.fields)]
    check_select(select, known, {name: {fields[name] for _, fields in files} for name in parsed.fields})
    outer = {name: value for name, value in select.items() if name in parsed.fields}
    files = [(relative, fields) for relative, fields in files if selected(fields, outer)]
    if not files:
        raise InputError(f"select {dict(select)!r} leaves none of the files in {folder}")
    if from_planes:
        sources = _stacks_from_planes(folder, parsed, stack_along, files)
    else:
        sources = _stacks_from_files(folder, stack_along, files)
    sources = _select_inner(sources, {name: value for name, value in select.items() if name not in outer})
    if all(source.problem for source in sources):
        raise InputError(f"no stack in {folder} can be read: {sources[0].problem}")
    return sorted(sources, key=lambda source: [natural_key(value) for _, value in source.fields])


def stack_of_files(*paths: str | Path) -> StackSource:
    """The stack in one file of planes, or that of several files with one plane each, in their order.

    Raises
    ------
    InputError
        A file that isn't there or can't be read, one that holds several stacks, or, among several, more than
        one plane: it is named.
    """
    names = [str(Path(path).absolute()) for path in paths]
    try:
        stacks = _describe(names[0], "z", alone=len(names) > 1)
    except (ImageError, OSError) as error:
        raise InputError(f"{names[0]} can't be read: {error}") from error
    if len(stacks) != 1:
        raise InputError(f"{names[0]} holds {len(stacks)} stacks; choose one of those that find_stacks gives")
    (stack,) = stacks
    if stack.problem:
        raise InputError(stack.problem)
    if len(names) == 1:
        return stack
    if len(stack.planes) != 1:
        raise InputError(f"{names[0]} holds {len(stack.planes)} planes, where each of several files has one")
    planes = tuple(dataclasses.replace(stack.planes[0], path=name) for name in names)
    return dataclasses.replace(stack, planes=planes, shape=(len(planes), *stack.shape[1:]))


def stacks_in_file(path: str | Path) -> list[StackSource]:
    """Each stack along z in one file or OME-Zarr, also one that is an image of a plate, in its own order.

    Raises
    ------
    ImageError
        It isn't there or can't be read.
    """
    try:
        return _describe(str(Path(path).absolute()), "z")
    except OSError as error:
        raise ImageError(f"{path} can't be read: {error.strerror or error}") from error


def read_stack(source: StackSource, out: np.ndarray[Any, Any], *, threads: int = 1) -> None:
    """Decode the stack into `out`, a writable NumPy array [Z, Y, X] of exactly the source's shape and dtype.

    Planes are decoded one after another straight into `out`; where a page is compressed, one strip or tile is
    held beside it for each of `threads`. On an error `out` holds what was read so far.

    Raises
    ------
    ImageError
        A file is missing, truncated, no image, or of another shape or dtype; it names the file, the page and
        both figures.
    ValueError
        `out` isn't what the source describes.
    """
    if source.problem:
        raise ImageError(source.problem)
    if out.shape != source.shape or out.dtype != np.dtype(source.dtype) or not out.dtype.isnative:
        raise ValueError(
            f"out is {out.dtype} {out.shape}, but stack {source.name} is {source.dtype} {source.shape}"
        )
    from scheduler.images.tiff import opened, read_plane

    expected = f"in the stack {source.name}, which begins with {source.planes[0].path}"
    z = 0
    for path, refs in groupby(source.planes, key=attrgetter("path")):
        if Path(path).is_dir():
            from scheduler.images.zarr_in import read_zarr_planes

            pages = [ref.page for ref in refs]
            read_zarr_planes(path, pages, out[z : z + len(pages)], expected=expected)
            z += len(pages)
            continue
        with opened(path) as file:
            for ref in refs:
                read_plane(file, ref, out[z], expected=expected, threads=threads)
                z += 1


def _matching_files(folder: Path, pattern: Pattern) -> list[tuple[str, dict[str, str]]]:
    """Each (relative path, fields), sorted by path."""
    if not folder.exists():
        raise InputError(f"input folder {folder} doesn't exist")
    if not folder.is_dir():
        raise InputError(f"input path {folder} is a file; give its folder, and a pattern for its name")
    if any((folder / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise InputError(
            f"input path {folder} is one OME-Zarr; give its folder as path and {folder.name!r} as pattern"
        )
    try:
        files = sorted(pattern.walk(folder), key=lambda file: natural_key(file[0]))
        names = [] if files else sorted((entry.name for entry in folder.iterdir()), key=natural_key)
    except OSError as error:
        raise InputError(f"can't list input folder {folder}: {error.strerror}: {error.filename}") from error
    for relative, _ in files:
        # they would go into outputs' names, the journal and the terminal
        if _UNUSABLE.search(relative):
            raise InputError(
                f"the name {relative!a} in {folder} has control characters or isn't UTF-8; rename it"
            )
    if not files:
        shown = _UNUSABLE.sub("\ufffd", ", ".join(names[:4]))
        there = f"it holds {shown}{' …' * (len(names) > 4)}" if names else "it is empty"
        raise InputError(f"nothing in {folder} matches the pattern {pattern.text!r}; {there}")
    return files


def _stacks_from_planes(
    folder: Path, pattern: Pattern, along: str, files: Sequence[tuple[str, Mapping[str, str]]]
) -> list[StackSource]:
    sources = []
    for fields, relatives in group_planes(pattern, along, files):
        paths = [str(folder / relative) for relative in relatives]
        if Path(paths[0]).is_dir():
            raise InputError(
                f"{paths[0]} is a folder, which holds whole stacks: leave {{{along}}} out of the pattern"
            )
        problem = ""
        for path in paths:
            try:
                images = _describe(path, along, alone=True)
                break
            except ImageError as error:
                problem = problem or str(error)
        else:
            sources.append(broken(fields, tuple(map(PlaneRef, paths)), problem))
            continue
        for image in images:
            if len(image.planes) > 1:
                raise InputError(
                    f"{path} holds {len(image.planes)} planes along {along}, but {pattern.text!r} takes one "
                    f"of each file: leave {{{along}}} out of the pattern, or stack along another field"
                )
            planes = tuple(dataclasses.replace(image.planes[0], path=path) for path in paths)
            sources.append(
                dataclasses.replace(
                    image,
                    fields=_joined(fields, image.fields, path),
                    planes=planes,
                    shape=(len(planes), *image.shape[1:]),
                )
            )
    return sources


def _stacks_from_files(
    folder: Path, along: str, files: Sequence[tuple[str, Mapping[str, str]]]
) -> list[StackSource]:
    sources: list[StackSource] = []
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    told: set[str] = set()
    for relative, matched in files:
        path = str(folder / relative)
        fields = tuple(matched.items())
        if fields in seen:
            raise InputError(f"two files for {dict(fields)}: {seen[fields]} and {relative}")
        seen[fields] = relative
        if path in told:
            continue  # another of its set has told all of it
        try:
            images = _describe(path, along)
        except ImageError as error:
            sources.append(broken(fields, (PlaneRef(path),), str(error)))
            continue
        told |= {plane.path for image in images for plane in image.planes if not image.problem}
        sources += [
            dataclasses.replace(image, fields=_joined(fields, image.fields, path)) for image in images
        ]
    return sources


def _describe(path: str, along: str, *, alone: bool = False) -> list[StackSource]:
    from scheduler.images.tiff_layouts import describe_tiff

    try:
        if Path(path).is_dir():
            from scheduler.images.zarr_in import describe_zarr

            return stacks_of(describe_zarr(path), along, path)
        return stacks_of(describe_tiff(path, alone=alone), along, path)
    except MemoryError as error:
        raise ImageError(f"{path}: the description of its planes alone doesn't fit into memory") from error


def _joined(
    outer: tuple[tuple[str, str], ...], inner: tuple[tuple[str, str], ...], path: str
) -> tuple[tuple[str, str], ...]:
    for name, _ in inner:
        if name in dict(outer):
            raise InputError(
                f"{path}: the file has an axis {name!r} of its own beside the pattern's field of that name; "
                "give the pattern's field another name"
            )
    return outer + inner


def _select_inner(sources: list[StackSource], select: Select) -> list[StackSource]:
    """Selection by fields that the files' own axes gave; broken stacks stay, to be reported."""
    if not select:
        return sources
    there = [dict(source.fields) for source in sources if not source.problem]
    for name in select:
        if there and not all(name in fields for fields in there):
            raise InputError(f"select: not every stack has a field {name!r}{nearest(name, list(there[0]))}")
    check_select(select, list(select), {name: {fields[name] for fields in there} for name in select})
    left = [source for source in sources if source.problem or selected(dict(source.fields), select)]
    if not left:
        raise InputError(f"select {dict(select)!r} leaves none of the {len(sources)} stacks")
    return left
