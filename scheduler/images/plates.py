"""Where the outputs of a run go, and what must be there before the first job: the metadata of plates.

An OME-Zarr plate is asked for by an output name whose first part ends in `.zarr`:

    output: {path: out, format: ome-zarr, name: "plate1.ome.zarr/{well}/{site}"}

Stacks that differ in `channel` alone then become channels of one image.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scheduler.images.errors import OutputError
from scheduler.images.naming import (
    check_output_folder,
    contained,
    output_paths,
    rendered,
    template_fields,
)
from scheduler.images.options import DEFAULT_OPTIONS, WriteOptions
from scheduler.images.patterns import natural_key
from scheduler.images.stack import StackSource

_WELL = re.compile(r"([A-Za-z]+)[-_ ]?([0-9]+)")
_ALPHANUMERIC = re.compile(r"[A-Za-z0-9]+")  # all that the specification allows in a plate
_UNTOLD = "unknown0"  # may be a well too; nothing is written there


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a stack is written: a file or image of its own, or channel `channel` of an image's `channels`."""

    path: Path
    channel: int | None = None
    channels: int = 1

    @property
    def taken(self) -> bool:
        """Whether a stack is there, or something else."""
        if self.channel is None:
            return self.path.exists()
        # where the two Zarr formats have a channel's chunks
        level, channel = self.path / "0", str(self.channel)
        return (level / "c" / channel).exists() or (level / channel).exists()

    @property
    def folder(self) -> Path:
        """Where its unfinished files are, for remove_partials."""
        return self.path.parent if self.channel is None else self.path


def plan_outputs(
    folder: str | Path, template: str, sources: Sequence[StackSource], format: str
) -> list[Destination]:
    """The target of each source, all of them different; nothing is written.

    Raises
    ------
    OutputError
        As output_path, or two stacks would be written to one place, or a plate's name isn't
        `NAME.zarr/{well}/{site}` or `NAME.zarr/{row}/{column}/{site}`.
    """
    if not _is_plate(template, format):
        fields = [_fields(source, template) for source in sources]
        paths = output_paths(folder, template, fields, format)
        refuse_inputs(paths, planes_of(sources))
        return [Destination(path) for path in paths]
    images: dict[Path, list[StackSource]] = {}
    for source in sources:
        images.setdefault(_image_path(Path(folder), template, source), []).append(source)
    refuse_inputs(images, planes_of(sources))
    targets: dict[StackSource, Destination] = {}
    for path, members in images.items():
        _check_differ_in_channel(template, path, members)
        members.sort(key=lambda source: natural_key(dict(source.fields).get("channel", "")))
        for channel, source in enumerate(members):
            targets[source] = Destination(path, channel, len(members))
    return [targets[source] for source in sources]


def planes_of(sources: Iterable[StackSource]) -> set[Path]:
    """The files and OME-Zarr folders that the sources are read from."""
    return {Path(plane.path) for source in sources for plane in source.planes}


def refuse_inputs(outputs: Iterable[Path], read: Collection[Path]) -> None:
    """OutputError if an output is a file that is read, or a folder with one in it: it would be destroyed."""
    # links are followed once for each folder, not for each of perhaps a million planes
    folders = {folder: folder.resolve() for folder in {path.parent for path in read}}
    taken = {folders[path.parent] / path.name for path in read}
    taken |= {above for folder in folders.values() for above in (folder, *folder.parents)}
    for output in outputs:
        if output.parent.resolve() / output.name in taken:
            raise OutputError(f"the output {output} is among the files that are read; name another folder")


def prepare_output(
    folder: str | Path,
    template: str,
    sources: Sequence[StackSource],
    format: str,
    *,
    options: WriteOptions = DEFAULT_OPTIONS,
    overwrite: bool = False,
    only: Collection[Path] | None = None,
) -> list[Destination]:
    """Plan the outputs, make the folder, and write the metadata of plates, wells and their images.

    To be called once, before the first job. Metadata that is there already and says the same stays, so that a
    run can be resumed, and so do the wells and images of a plate that is there; `only` names the images to
    write where these aren't all. Sources with a `problem` have targets too, but no image of their own.

    Raises
    ------
    OutputError
        As plan_outputs; or the folder can't be written; or an image is there that has pixels and other
        channels or levels, or a plate of another version.
    FileExistsError
        A plate of that name is there without these wells and images, and `overwrite` is False.
    """
    targets = plan_outputs(folder, template, sources, format)
    check_output_folder(folder)
    if not _is_plate(template, format):
        return targets
    from scheduler.images.plate_groups import write_plate_groups

    images: dict[Path, list[StackSource]] = {}
    for source, target in sorted(zip(sources, targets, strict=True), key=lambda pair: pair[1].channel or 0):
        images.setdefault(target.path, []).append(source)
    write_plate_groups(images, options, overwrite=overwrite, only=only)
    return targets


def _is_plate(template: str, format: str) -> bool:
    head, _, inner = template.partition("/")
    return format == "ome-zarr" and bool(inner) and head.endswith(".zarr")


def _fields(source: StackSource, template: str) -> dict[str, str]:
    """The fields for an output's name; the file of a broken source hasn't told all of them."""
    untold = dict.fromkeys(template_fields(template), _UNTOLD) if source.problem else {}
    return {**untold, **dict(source.fields)}


def _image_path(folder: Path, template: str, source: StackSource) -> Path:
    plate, *inner = rendered(template, _fields(source, template))
    if len(inner) == 2:
        found = _WELL.fullmatch(inner[0])
        if found is None:
            raise OutputError(f"{inner[0]!r} isn't a well of a plate, as A01 is")
        inner = [found[1], found[2], inner[1]]
    if len(inner) != 3:
        raise OutputError(
            f"output name {template!r}: a plate's images are NAME.zarr/{{well}}/{{site}} or "
            "NAME.zarr/{row}/{column}/{site}"
        )
    for part in inner:
        if _ALPHANUMERIC.fullmatch(part) is None:
            raise OutputError(
                f"output name {template!r} gives {part!r}, but a plate has letters and digits only"
            )
    return contained(folder, [plate, *inner])


def _check_differ_in_channel(template: str, path: Path, members: Sequence[StackSource]) -> None:
    seen: dict[str, Mapping[str, str]] = {}
    first = dict(members[0].fields)
    for source in members:
        fields = dict(source.fields)
        other = [name for name in fields if name != "channel" and fields[name] != first.get(name)]
        if other or fields.get("channel", "") in seen:
            hint = (
                f"put {{{other[0]}}} into it" if other else "only stacks of different channels share an image"
            )
            raise OutputError(f"output name {template!r} gives {path} for both {first} and {fields}; {hint}")
        seen[fields.get("channel", "")] = fields
