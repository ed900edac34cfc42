"""Names of outputs: by a template of the same fields as the input, and never outside of the output folder."""

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from scheduler.images.atomic import partial_path
from scheduler.images.errors import OutputError
from scheduler.images.patterns import nearest

STACK_FIELD = "stack"
"""In a template, the name of a result among those of its job."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_OURS = ".stackyard"
SUFFIXES = {"tiff": ".tif", "ome-tiff": ".ome.tif", "ome-zarr": ".ome.zarr"}


def check_output_folder(folder: str | Path) -> Path:
    """Create the folder if need be and see that files can be made in it; OutputError says why not."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = partial_path(folder / "probe")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise OutputError(f"output folder {folder} can't be written: {error.strerror or error}") from error
    return folder


def output_path(folder: str | Path, template: str, fields: Mapping[str, str], format: str) -> Path:
    """Where the stack with these fields is written: inside `folder`, with the suffix of its format.

    `template` has the fields in braces and may have subfolders: `{well}/s{site}_c{channel}`. A value never
    makes a folder of its own.

    Raises
    ------
    OutputError
        An unknown field or format, a value that can't be part of a file name, or a path that `..` or a link
        takes out of the folder or into an OME-Zarr.
    """
    suffix = suffix_of(format)
    parts = rendered(template, fields)
    inside = [part for part in parts[:-1] if part.lower().endswith(".zarr")]
    if inside:
        raise OutputError(
            f"output name {template!r} leads into {inside[0]}, which isn't its first part or isn't of format "
            "ome-zarr: for a plate set that format, and put folders before it into output.path"
        )
    if not parts[-1].endswith(suffix):
        parts[-1] += suffix
    return contained(Path(folder), parts)


def rendered(template: str, fields: Mapping[str, str]) -> list[str]:
    """The parts of the path that the template gives; OutputError for one that isn't a name."""
    for name, value in fields.items():
        if "/" in value or "\0" in value or value in ("", ".", ".."):
            raise OutputError(f"field {name} is {value!r}, which can't be part of a file name")
    for name in template_fields(template):
        if name not in fields:
            raise OutputError(f"output name {template!r}: no field {name!r}{nearest(name, list(fields))}")
    relative = template.format_map(dict(fields))
    if _CONTROL.search(relative):
        raise OutputError(f"output name {template!r} gives {relative!r}, which has control characters in it")
    parts = relative.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise OutputError(
            f"output name {template!r} gives {relative!r}, which isn't a name in the output folder"
        )
    if any(part.startswith(_OURS) for part in parts):
        raise OutputError(
            f"output name {template!r} gives {relative!r}, but names that begin with {_OURS} are for the "
            "records of runs and for unfinished files"
        )
    return parts


def contained(folder: Path, parts: Sequence[str]) -> Path:
    """The path of these parts under `folder`; OutputError if a link takes it elsewhere."""
    path = Path(folder, *parts)
    inside = folder.resolve()
    if not path.parent.resolve().is_relative_to(inside):
        raise OutputError(
            f"{path} is outside of the output folder {inside}: a link leads to {path.parent.resolve()}"
        )
    return path


def output_paths(
    folder: str | Path, template: str, stacks: Sequence[Mapping[str, str]], format: str
) -> list[Path]:
    """The output_path of each of `stacks`' fields; OutputError if two would be written to one file."""
    paths: dict[Path, Mapping[str, str]] = {}
    for fields in stacks:
        path = output_path(folder, template, fields, format)
        if path in paths:
            differ = [name for name in fields if fields[name] != paths[path].get(name)]
            hint = "".join(f"{{{name}}}" for name in differ)
            raise OutputError(
                f"output name {template!r} gives {path} for both {dict(paths[path])} and {dict(fields)}; "
                f"put {hint or 'a field that differs'} into it"
            )
        paths[path] = fields
    return list(paths)


def template_fields(template: str) -> list[str]:
    """The fields that an output name uses; OutputError if it can't be parsed."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise OutputError(f"output name {template!r}: {error}") from error
    fields = []
    for _, name, spec, conversion in parsed:
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise OutputError(f"output name {template!r}: a field is a name in braces, as {{well}}")
        fields.append(name)
    return fields


def table_path(path: Path, format: str) -> Path:
    """Where a table goes that belongs to the stack at `path`: .csv takes the place of the format's ending."""
    suffix = suffix_of(format)
    stem = path.name[: -len(suffix)] if path.name.lower().endswith(suffix) else path.name
    return path.with_name(f"{stem}.csv")


def suffix_of(format: str) -> str:
    """The ending of a format's names; OutputError for an unknown one, with the nearest."""
    if format not in SUFFIXES:
        raise OutputError(f"there is no output format {format!r}{nearest(format, list(SUFFIXES))}")
    return SUFFIXES[format]


def format_of(path: Path) -> str:
    """The format that a file's name asks for by its ending; OutputError for an unknown one."""
    for format, suffix in sorted(SUFFIXES.items(), key=lambda item: -len(item[1])):
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return format
    raise OutputError(f"output {path.name!r} must end in one of {', '.join(SUFFIXES.values())}")
