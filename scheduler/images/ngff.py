"""OME-Zarr's JSON, versions 0.4 and 0.5: what an image, a well and a plate say, read and written.

https://ngff.openmicroscopy.org/0.4/ and /0.5/. In 0.5 the same objects stand under `ome` in the attributes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.images.stack import PhysicalSize

VERSIONS = {"0.4": 2, "0.5": 3}  # and the Zarr format that each is made of
_MICROMETRES = {
    "angstrom": 1e-4, "picometer": 1e-6, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3,
    "centimeter": 1e4, "decimeter": 1e5, "meter": 1e6, "inch": 25400.0,
}  # fmt: skip

Json = Mapping[str, Any]


class NgffError(ValueError):
    """Metadata that isn't OME-Zarr's, or that leads out of its folder."""


@dataclass(frozen=True, slots=True)
class NgffImage:
    """One multiscale image: `axes` of t, c, z and then y, x; `path` is its full resolution's array."""

    axes: str
    path: str
    physical_size_um: PhysicalSize | None
    channel_names: tuple[str | None, ...]


def ome_attributes(attributes: Json) -> Json:
    """The part of a group's attributes that OME-Zarr owns: under `ome` in 0.5, all of it in 0.4."""
    ome = attributes.get("ome", attributes)
    return ome if isinstance(ome, Mapping) else {}


def parse_image(ome: Json) -> NgffImage:
    """The first multiscale image; NgffError says what is wrong with it."""
    multiscale = _object(_list(ome, "multiscales")[0], "multiscales")
    axes = [_object(axis, "axes") for axis in _list(multiscale, "axes")]
    names = "".join(str(axis.get("name")) for axis in axes)
    if names[-2:] != "yx" or not set(names[:-2]) <= set("tcz") or len(set(names)) < len(axes):
        raise NgffError(f"its axes are {', '.join(str(axis.get('name')) for axis in axes)}")
    dataset = _object(_list(multiscale, "datasets")[0], "datasets")
    scale = [
        whole * part
        for whole, part in zip(_scale(multiscale, len(axes)), _scale(dataset, len(axes)), strict=True)
    ]
    size = {
        str(axis["name"]): _micrometres(length, axis.get("unit"))
        for axis, length in zip(axes, scale, strict=True)
    }
    y, x = size["y"], size["x"]
    omero = ome.get("omero")
    channels = omero.get("channels", ()) if isinstance(omero, Mapping) else ()
    return NgffImage(
        axes=names,
        path=inner_path(dataset.get("path")),
        physical_size_um=None if y is None or x is None else (size.get("z"), y, x),
        channel_names=tuple(
            str(channel["label"]) if isinstance(channel, Mapping) and "label" in channel else None
            for channel in channels
        ),
    )


def parse_plate(ome: Json) -> list[str]:
    """The wells' paths, as `A/1`."""
    plate = _object(ome["plate"], "plate")
    return [inner_path(_object(well, "wells").get("path")) for well in _list(plate, "wells")]


def parse_well(ome: Json) -> list[str]:
    """The paths of the well's images."""
    well = _object(ome.get("well"), "well")
    return [inner_path(_object(image, "images").get("path")) for image in _list(well, "images")]


def inner_path(path: object) -> str:
    """A path that stays inside its group; NgffError for any other."""
    parts = path.split("/") if isinstance(path, str) else []
    if not parts or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise NgffError(f"its metadata leads to {path!r}, which isn't inside")
    return "/".join(parts)


def image_attributes(
    version: str,
    name: str,
    *,
    axes: str,
    levels: Sequence[Sequence[float]],
    physical_size_um: PhysicalSize | None,
    channel_names: Sequence[str | None] = (),
    value_range: tuple[float, float] = (0.0, 1.0),
    provenance: Json | None = None,
) -> dict[str, Any]:
    """The attributes of an image group whose arrays are `0`, `1`, …, one for each of `levels`.

    A level is its pixels' size relative to the first level's, one number for each of `axes`. `value_range` is
    what viewers show from black to white.
    """
    sizes = dict(zip("zyx", physical_size_um or (None, None, None), strict=True))
    kinds = {"t": "time", "c": "channel"}
    axis_objects: list[dict[str, str]] = []
    for axis in axes:
        described = {"name": axis, "type": kinds.get(axis, "space")}
        if sizes.get(axis) is not None:
            described["unit"] = "micrometer"
        axis_objects.append(described)
    multiscale = {
        "name": name,
        "axes": axis_objects,
        "datasets": [
            {
                "path": str(index),
                "coordinateTransformations": [
                    {
                        "type": "scale",
                        "scale": [
                            factor * (sizes.get(axis) or 1.0)
                            for axis, factor in zip(axes, level, strict=True)
                        ],
                    }
                ],
            }
            for index, level in enumerate(levels)
        ],
    }
    ome: dict[str, Any] = {"multiscales": [multiscale]}
    if any(channel_names):
        ome["omero"] = {
            "name": name,
            "channels": [
                {
                    "label": label or f"channel {index}",
                    "active": True,
                    "color": "FFFFFF",
                    "window": dict(zip(("min", "max", "start", "end"), value_range * 2, strict=True)),
                }
                for index, label in enumerate(channel_names)
            ],
        }
    attributes = _versioned(version, ome, "multiscales")
    if provenance:
        # NaN and infinity are no JSON
        text = json.dumps(dict(provenance), default=str)
        attributes["stackyard"] = json.loads(text, parse_constant=str)
    return attributes


def plate_attributes(
    version: str, name: str, wells: Sequence[tuple[str, str]], fields: int
) -> dict[str, Any]:
    """The attributes of a plate with these (row, column), each with at most `fields` images."""
    rows = list(dict.fromkeys(row for row, _ in wells))
    columns = list(dict.fromkeys(column for _, column in wells))
    plate = {
        "name": name,
        "field_count": fields,
        "rows": [{"name": row} for row in rows],
        "columns": [{"name": column} for column in columns],
        "wells": [
            {"path": f"{row}/{column}", "rowIndex": rows.index(row), "columnIndex": columns.index(column)}
            for row, column in wells
        ],
    }
    return _versioned(version, {"plate": plate}, "plate")


def well_attributes(version: str, images: Sequence[str]) -> dict[str, Any]:
    """The attributes of a well with these images."""
    return _versioned(version, {"well": {"images": [{"path": image} for image in images]}}, "well")


def _versioned(version: str, ome: dict[str, Any], versioned: str) -> dict[str, Any]:
    """0.5 keeps one version above all, 0.4 one in each object; plates and wells have one in both."""
    objects = ome[versioned]
    if version == "0.4" or versioned != "multiscales":
        for described in objects if isinstance(objects, list) else [objects]:
            described["version"] = version
    return {"ome": {"version": version, **ome}} if version == "0.5" else ome


def _scale(described: Json, ndim: int) -> list[float]:
    """The scale transformation of a dataset or an image, or ones."""
    transformations = described.get("coordinateTransformations") or ()
    for transformation in transformations:
        if isinstance(transformation, Mapping) and "scale" in transformation:
            scale = transformation["scale"]
            if not isinstance(scale, list) or len(scale) != ndim:
                raise NgffError(f"its scale is {scale!r} for {ndim} axes")
            return [float(length) if isinstance(length, int | float) else math.nan for length in scale]
    return [1.0] * ndim


def _micrometres(length: float, unit: object) -> float | None:
    """A length in µm; without a unit, or with none of length, it tells nothing."""
    size = length * _MICROMETRES.get(str(unit), math.nan)
    return size if math.isfinite(size) and size > 0 else None


def _list(described: Json, name: str) -> Sequence[Any]:
    found = described.get(name)
    if not isinstance(found, list) or not found:
        raise NgffError(f"its metadata has no {name}")
    return found


def _object(found: object, name: str) -> Json:
    if not isinstance(found, Mapping):
        raise NgffError(f"its metadata's {name} is {found!r}")
    return found
