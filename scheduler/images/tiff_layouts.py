"""Which planes a TIFF file holds, and in what order: by OME-XML, or by what tifffile knows of others."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tifffile

from scheduler.images.errors import ImageError
from scheduler.images.layout import Layout, broken_layout
from scheduler.images.ome import OmeImage, OmeXmlError, micrometres, parse_ome
from scheduler.images.ome_planes import place_planes
from scheduler.images.stack import PhysicalSize, PlaneRef
from scheduler.images.tiff import check_plausible, opened, plane_shape


def describe_tiff(path: str | Path, *, alone: bool = False) -> list[Layout]:
    """What the file holds, one Layout for each image; headers are read, pixels aren't.

    An OME-TIFF that is one of a set gives the whole set's images. One page that is to stand `alone` gives its
    plane, whatever set its OME-XML speaks of.

    Raises
    ------
    ImageError
        Not a TIFF, no pages, pages that don't belong together, or a header that the file's size contradicts.
    """
    with opened(path) as file:
        return layouts_of(file, str(path), alone=alone)


def layouts_of(file: tifffile.TiffFile, path: str, *, alone: bool = False) -> list[Layout]:
    """What an open file holds; see describe_tiff."""
    if not len(file.pages):
        raise ImageError(f"{path}: a TIFF without a single page")
    if not file.is_ome:
        return [_series_layout(file, path)]
    try:
        images = parse_ome(file.ome_metadata, Path(path).name)
    except OmeXmlError as error:
        raise ImageError(f"{path}: {error}") from error
    if alone and len(file.pages) == 1:
        return [_ome_layout(file, path, images[0], [("", 0)], axes="")]
    counts = functools.cache(lambda name: _count_pages(file, path, name))
    layouts = []
    for index, image in enumerate(images):
        fields = (("image", str(index)),) if len(images) > 1 else ()
        try:
            placed = place_planes(image, counts)
        except OmeXmlError as error:
            layouts.append(broken_layout(fields, f"{path}: {error}"))
            continue
        layouts.append(replace(_ome_layout(file, path, image, placed, axes=image.axes), fields=fields))
    return layouts


def _ome_layout(
    file: tifffile.TiffFile, path: str, image: OmeImage, placed: list[tuple[str, int]], *, axes: str
) -> Layout:
    """The layout of planes placed in pages; what this file holds of them is held against the OME-XML."""
    page = file.pages[next((number for name, number in placed if not name), 0)]
    height, width, samples = plane_shape(page, path)
    check_plausible(page, path)
    if (image.height, image.width, image.samples) != (height, width, samples):
        raise ImageError(
            f"{path}: its OME-XML says {image.height} × {image.width} pixels of {image.samples} samples,"
            f" page {page.index} is {height} × {width} of {samples}"
        )
    paths = {name: str(Path(path).with_name(name)) if name else path for name, _ in placed}
    return Layout(
        axes=axes,
        sizes=image.sizes if axes else (),
        planes=tuple(PlaneRef(paths[name], number) for name, number in placed),
        plane_shape=(height, width),
        samples=samples,
        dtype=page.dtype.name,
        physical_size_um=image.physical_size_um,
        channel_names=image.channel_names if axes or len(image.channel_names) == 1 else (),
    )


def _count_pages(file: tifffile.TiffFile, path: str, name: str) -> int:
    """The pages of the file itself, or of another of its set, which must lie beside it."""
    if not name:
        return len(file.pages)
    if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise OmeXmlError(f"its OME-XML places planes in {name!r}, which isn't beside it")
    beside = Path(path).with_name(name)
    if not beside.exists():
        raise OmeXmlError(f"its OME-XML places planes in {name!r}, which isn't there")
    with opened(beside) as other:
        return len(other.pages)


def _series_layout(file: tifffile.TiffFile, path: str) -> Layout:
    """All other TIFF, by tifffile's series: ImageJ, tifffile's own, LSM, MetaMorph, …, or pages in a row."""
    series = [one for one in file.series if not one.keyframe.is_reduced]
    if len(series) > 1 and _differ_in_storage_only(series):
        return _page_layout(series, path)
    if len(series) != 1:
        kinds = ", ".join(f"{len(one)} pages of {one.dtype} {one.keyframe.shape}" for one in series[:4])
        raise ImageError(f"{path}: its pages aren't one stack: {kinds or 'only thumbnails'}")
    only = series[0]
    page = only.keyframe
    height, width, samples = plane_shape(page, path)
    check_plausible(page, path)
    # tifffile writes three planes as one RGB page of separate samples unless it is told not to
    planes_as_samples = page.axes == "SYX" and only.axes[-3:-2] not in ("", "S")
    inner = "YX" if planes_as_samples else page.axes
    if not only.axes.endswith(inner) or only.is_multifile or only.transform is not None:
        raise ImageError(f"{path}: an image of axes {only.axes} in pages of {page.axes}, which isn't read")
    axes = only.axes[: -len(inner)]
    sizes = tuple(int(size) for size in only.shape[: len(axes)])
    if planes_as_samples:
        pages = _series_planes(only, math.prod(sizes) // samples, path)
        planes = tuple(replace(ref, sample=sample) for ref in pages for sample in range(samples))
        samples = 1
    else:
        planes = _series_planes(only, math.prod(sizes), path)
    physical_size_um, channel_names = _metadata(file, page)
    return Layout(
        axes=axes,
        sizes=sizes,
        planes=planes,
        plane_shape=(height, width),
        samples=samples,
        dtype=page.dtype.name,
        physical_size_um=physical_size_um,
        channel_names=channel_names,
    )


def _differ_in_storage_only(series: Sequence[tifffile.TiffPageSeries]) -> bool:
    """Pages without metadata that tifffile keeps apart by compression or strips, not by what they show."""
    shown = {(one.kind, str(one.dtype), one.keyframe.shape, one.keyframe.axes) for one in series}
    return len(shown) == 1 and series[0].kind == "generic"


def _page_layout(series: Sequence[tifffile.TiffPageSeries], path: str) -> Layout:
    pages = sorted((page for one in series for page in one.pages), key=lambda page: page.index)
    height, width, samples = plane_shape(series[0].keyframe, path)
    for one in series:
        check_plausible(one.keyframe, path)
    return Layout(
        axes="I",
        sizes=(len(pages),),
        planes=tuple(PlaneRef(path, page.index) for page in pages),
        plane_shape=(height, width),
        samples=samples,
        dtype=series[0].dtype.name,
    )


def _series_planes(series: tifffile.TiffPageSeries, count: int, path: str) -> tuple[PlaneRef, ...]:
    page = series.keyframe
    if count == 1:
        return (PlaneRef(path, page.index),)
    if len(series.pages) == count:
        pages = [series[index] for index in range(count)]
        if any(one is None for one in pages):
            raise ImageError(f"{path}: {sum(one is None for one in pages)} of {count} pages are missing")
        return tuple(PlaneRef(path, one.index) for one in pages)
    plane_bytes = math.prod(page.shape) * page.dtype.itemsize
    lacking = page.dataoffsets[0] + count * plane_bytes - page.parent.filehandle.size
    if not page.is_contiguous or page.samplesperpixel > 1 or lacking > 0:
        raise ImageError(f"{path}: claims {count} planes, the file holds {len(series.pages)} pages")
    start = page.dataoffsets[0]
    return tuple(PlaneRef(path, 0, offset=start + index * plane_bytes) for index in range(count))


def _metadata(
    file: tifffile.TiffFile, page: tifffile.TiffPage
) -> tuple[PhysicalSize | None, tuple[str | None, ...]]:
    """Physical size and channel names from ImageJ's, tifffile's or the plain resolution tags."""
    imagej = file.imagej_metadata or {}
    described: dict[str, Any] = (file.shaped_metadata or ({},))[0]
    if "PhysicalSizeX" in described:
        sizes = [micrometres(described.get(f"PhysicalSize{axis}")) for axis in "ZYX"]
        names: Sequence[str | None] = (described.get("ChannelName"),)
    else:
        # ImageJ writes the micro sign as an escape sequence of Java's
        unit = str(imagej.get("unit", "")).replace("\\u00B5", "µ") or {3: "cm", 4: "mm", 5: "µm"}.get(
            int(page.resolutionunit)
        )
        pixel = [_pixel_size(page, tag, unit) for tag in (283, 282)]
        sizes = [micrometres(imagej.get("spacing"), unit), *pixel]
        names = imagej.get("Labels") or () if imagej.get("channels", 1) > 1 else ()
    z, y, x = sizes
    return (None if y is None or x is None else (z, y, x)), tuple(names)


def _pixel_size(page: tifffile.TiffPage, tag: int, unit: str | None) -> float | None:
    """From pixels per unit; without a unit, or in inches (printing), it tells nothing."""
    resolution = page.tags.valueof(tag)
    if unit is None or resolution is None or 0 in resolution:
        return None
    return micrometres(resolution[1] / resolution[0], unit)
