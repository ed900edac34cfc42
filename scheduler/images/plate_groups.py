"""The metadata of plates, their wells and images: held against what is there already, then written."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scheduler.images.atomic import refuse_existing
from scheduler.images.errors import OutputError
from scheduler.images.ngff import (
    VERSIONS,
    Json,
    NgffError,
    image_attributes,
    ome_attributes,
    parse_plate,
    parse_well,
    plate_attributes,
    well_attributes,
)
from scheduler.images.options import WriteOptions
from scheduler.images.patterns import natural_key
from scheduler.images.stack import StackSource
from scheduler.images.zarr_out import level_scales, levels_of, write_group

_ATTRIBUTES_IN = {2: ".zattrs", 3: "zarr.json"}  # by Zarr format


def write_plate_groups(
    images: Mapping[Path, Sequence[StackSource]],
    options: WriteOptions,
    *,
    overwrite: bool,
    only: Collection[Path] | None = None,
) -> None:
    """Write the groups of plates with these images, each given by the stacks that become its channels.

    Wells and images that are in a plate already stay in its lists. A channel that has a `problem` keeps its
    place; an image of nothing else has none. With `only` no other images are touched, but those that have a
    place are listed. Nothing is changed before everything has been looked at.

    Raises
    ------
    OutputError
        An image with pixels in it has other channels or levels, or what is there is no plate of this version.
    FileExistsError
        Something would be changed, and `overwrite` is False.
    """
    version = options.zarr_version
    sound = {
        path: members for path, members in images.items() if not all(source.problem for source in members)
    }
    groups = _plates(sound, version)
    for path, members in sound.items():
        if only is None or path in only:
            groups[path] = attributes = _image(path, members, options)
            _refuse_other_image(path, attributes, version)
    changed = {}
    for path, described in groups.items():
        there = _there(path, version)
        if described is not None and there != json.loads(json.dumps(described)):
            changed[path] = described
            if there is not None:
                refuse_existing(path / _ATTRIBUTES_IN[VERSIONS[version]], overwrite=overwrite)
    for path, described in changed.items():
        write_group(path, version, described, overwrite=overwrite)


def _plates(images: Collection[Path], version: str) -> dict[Path, dict[str, Any] | None]:
    """The attributes of plates, rows and wells, outer ones first; None where what is there will do."""
    ours: dict[Path, set[str]] = {}
    for path in images:
        ours.setdefault(path.parent, set()).add(path.name)
    plates: dict[Path, set[tuple[str, str]]] = {}
    wells: dict[Path, dict[str, Any] | None] = {}
    most: dict[Path, int] = {}
    for well, names in ours.items():
        plate = well.parent.parent
        plates.setdefault(plate, set()).add((well.parent.name, well.name))
        there = set(_parsed(well, version, "well", parse_well))
        every = sorted(there | names, key=natural_key)
        wells[well.parent] = None if _there(well.parent, version) is not None else {}
        wells[well] = None if names <= there else well_attributes(version, every)
        most[plate] = max(most.get(plate, 0), len(every))
    groups: dict[Path, dict[str, Any] | None] = {}
    for plate, places in plates.items():
        found = {_well_place(plate, path) for path in _parsed(plate, version, "plate", parse_plate)}
        count = _field_count(plate, version)
        groups[plate] = None
        if not places <= found or most[plate] > count:
            every_place = sorted(found | places, key=lambda place: [natural_key(part) for part in place])
            name = plate.name.partition(".")[0]
            groups[plate] = plate_attributes(version, name, every_place, max(most[plate], count))
    return groups | wells


def _field_count(plate: Path, version: str) -> int:
    described = ome_attributes(_there(plate, version) or {}).get("plate")
    count = described.get("field_count") if isinstance(described, Mapping) else None
    return count if isinstance(count, int) else 0


def _image(path: Path, members: Sequence[StackSource], options: WriteOptions) -> dict[str, Any]:
    sound = [source for source in members if not source.problem]
    # what the jobs make of them has another size at times, which only they will know
    levels = min(levels_of(source.shape, options.levels) for source in sound)
    return image_attributes(
        options.zarr_version,
        path.name,
        axes="czyx",
        levels=level_scales(levels, 4),
        physical_size_um=sound[0].physical_size_um,
        channel_names=[_channel_label(source) for source in members],
        value_range=_dtype_range(sound[0].dtype),
        provenance={"channels": [_channel(source) for source in members]},
    )


def _refuse_other_image(path: Path, attributes: Mapping[str, Any], version: str) -> None:
    """OutputError if there are pixels that `attributes` would say something wrong about."""
    there = _there(path, version)
    if there is None or not (path / "0").exists():
        return
    found, wanted = _form(there), _form(attributes)
    if found != wanted:
        raise OutputError(
            f"{path} holds {found}, and this run would make that {wanted}: give the plate another name, "
            "remove the old one, or run with what that was made with"
        )


def _form(attributes: Mapping[str, Any]) -> str:
    """The channels and levels of an image in words, by which it is told from another."""
    ours = attributes.get("stackyard")
    channels = ours.get("channels") if isinstance(ours, Mapping) else None
    named = ", ".join(map(str, channels)) if isinstance(channels, list) else "of unknown origin"
    multiscales = ome_attributes(attributes).get("multiscales")
    levels = len(multiscales[0]["datasets"]) if multiscales else 0
    return f"channels {named} in {levels} level{'s' * (levels != 1)}"


def _there(group: Path, version: str) -> dict[str, Any] | None:
    """The attributes of a group that is there, None if there is none; OutputError for another version's."""
    name = _ATTRIBUTES_IN[VERSIONS[version]]
    for other in _ATTRIBUTES_IN.values():
        if other != name and (group / other).exists():
            raise OutputError(
                f"{group} isn't of OME-Zarr {version}: set output.zarr_version to the version of what is "
                "there, or give the plate another name"
            )
    if not (group / name).exists() or (name == ".zattrs" and not (group / ".zgroup").exists()):
        return None
    try:
        found = json.loads((group / name).read_bytes())
        attributes = found if name == ".zattrs" else found.get("attributes", {})
        return dict(attributes)
    except (ValueError, TypeError, AttributeError) as error:
        raise OutputError(f"{group / name} can't be read, remove it: {error}") from error


def _parsed(group: Path, version: str, kind: str, parse: Callable[[Json], list[str]]) -> list[str]:
    """What `parse` finds in a plate or well, nothing where there is none; OutputError for another thing."""
    there = _there(group, version)
    if not there:
        return []
    try:
        return parse(ome_attributes(there))
    except (NgffError, KeyError) as error:
        raise OutputError(
            f"{group} is there and isn't a {kind}: {error}; remove it, or give the plate another name"
        ) from error


def _well_place(plate: Path, path: str) -> tuple[str, str]:
    row, _, column = path.partition("/")
    if not column or "/" in column:
        raise OutputError(f"{plate} has a well {path!r}, where ROW/COLUMN is wanted; name another plate")
    return row, column


def _channel(source: StackSource) -> str:
    return dict(source.fields).get("channel", "")


def _channel_label(source: StackSource) -> str | None:
    return source.channel_name or (f"channel {_channel(source)}" if _channel(source) else None)


def _dtype_range(dtype: str) -> tuple[float, float]:
    """All values of an integer dtype; what the jobs will write isn't known yet."""
    kind = np.dtype(dtype)
    return (float(np.iinfo(kind).min), float(np.iinfo(kind).max)) if kind.kind in "iu" else (0.0, 1.0)
