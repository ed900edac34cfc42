"""TIFF files, read through tifffile: which planes a file holds, and one plane's pixels.

Before memory is taken for a plane its header is held against the file: bytes that aren't there, missing tiles
and sizes that no compression reaches are refused. Values are given as stored: MinIsWhite isn't inverted.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from scheduler.images.errors import ImageError
from scheduler.images.layout import Layout
from scheduler.images.ome import OmeXmlError, micrometres, parse_ome
from scheduler.images.stack import PhysicalSize, PlaneRef

# What one stored byte can stand for at most: deflate reaches 1032, LZW 2730, PackBits 64; Zstandard and the
# image codecs code long runs in a few bytes. Beyond this a header is a claim, not an image.
MAX_RATIO = {1: 1, 8: 1100, 32946: 1100, 5: 2800, 32773: 64}
MAX_RATIO_OTHER = 40_000
_TILE_BYTES = 64 << 20  # a decoded tile may be larger than its image, but not by more than this
_PALETTE = 3


@contextmanager
def opened(path: str | Path) -> Iterator[tifffile.TiffFile]:
    """The open file; whatever goes wrong inside the block becomes an ImageError that names it."""
    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except (ImageError, MemoryError):
        raise
    except OSError as error:
        raise ImageError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # tifffile's parsers and codecs raise all sorts on damaged bytes
        raise ImageError(f"{path}: not a readable TIFF: {type(error).__name__}: {error}") from error


def describe_tiff(path: str | Path) -> list[Layout]:
    """What the file holds, one Layout for each image; headers are read, pixels aren't.

    Raises
    ------
    ImageError
        Not a TIFF, no pages, pages that don't belong together, or a header that the file's size contradicts.
    """
    with opened(path) as file:
        if not len(file.pages):
            raise ImageError(f"{path}: a TIFF without a single page")
        if file.is_ome:
            return _ome_layouts(file, str(path))
        return [_series_layout(file, str(path))]


def read_plane(
    file: tifffile.TiffFile, ref: PlaneRef, out: np.ndarray[Any, Any], *, expected: str, threads: int
) -> None:
    """Decode one plane into the [Y, X] array `out`, straight where `out` is contiguous.

    `expected` says in the error where out's shape and dtype come from. RGB pages are decoded whole into a
    scratch page, and the sample is copied.
    """
    try:
        page = file.pages[ref.page]
    except IndexError as error:
        raise ImageError(f"{ref.path}: has {len(file.pages)} pages, page {ref.page} is wanted") from error
    height, width, samples = _plane_shape(page, ref.path)
    if (height, width) != out.shape or page.dtype != out.dtype:
        found = f"{page.dtype} ({height}, {width})"
        raise ImageError(f"{ref.path} page {ref.page}: {found}, but {out.dtype} {out.shape} {expected}")
    if ref.sample is not None and ref.sample >= samples:
        wanted = f"sample {ref.sample} is wanted"
        raise ImageError(f"{ref.path} page {ref.page}: {samples} sample a pixel, but {wanted} {expected}")
    if samples > 1 and ref.sample is None:
        raise ImageError(f"{ref.path} page {ref.page}: {samples} samples a pixel, but one {expected}")
    if ref.offset is not None:
        _read_contiguous(file, page, ref, out)
        return
    check_plausible(page, ref.path)
    if samples > 1:
        decoded = page.asarray(maxworkers=threads)
        out[...] = decoded[..., ref.sample] if page.axes.endswith("S") else decoded[ref.sample]
    elif out.flags.c_contiguous:
        page.asarray(out=out, maxworkers=threads)
    else:
        out[...] = page.asarray(maxworkers=threads)


def check_plausible(page: tifffile.TiffPage, path: str) -> None:
    """ImageError unless the file can hold what the page's header claims."""
    where = f"{path} page {page.index}"
    nbytes = math.prod(page.shape) * page.dtype.itemsize
    file_bytes = page.parent.filehandle.size
    if page.is_contiguous:
        lacking = page.dataoffsets[0] + nbytes - file_bytes
        if lacking > 0:
            raise ImageError(f"{where}: truncated: {lacking} of its {nbytes} bytes are missing")
        stored = sum(page.databytecounts)
        if stored < nbytes and not (page.parent.is_lsm or page.parent.is_stk):
            raise ImageError(f"{where}: absurd header: claims {nbytes} bytes, stored in {stored}")
        return
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    absent = math.prod(page.chunked) - sum(offset > 0 and count > 0 for offset, count in segments)
    if absent > 0:
        raise ImageError(f"{where}: {absent} of {math.prod(page.chunked)} strips or tiles are missing")
    lacking = max(offset + count for offset, count in segments) - file_bytes
    if lacking > 0:
        raise ImageError(f"{where}: truncated: {lacking} bytes of its last strip or tile are missing")
    stored = sum(count for _, count in segments)
    packed = math.prod(page.shape) * page.bitspersample // 8
    if packed > stored * MAX_RATIO.get(int(page.compression), MAX_RATIO_OTHER):
        claim = f"{nbytes} bytes ({page.dtype} {page.shape})"
        raise ImageError(f"{where}: absurd header: claims {claim}, stored in {stored}")
    segment_bytes = math.prod(page.chunks) * page.dtype.itemsize
    if segment_bytes > max(4 * nbytes, _TILE_BYTES):
        raise ImageError(f"{where}: absurd header: tiles of {segment_bytes} bytes in a plane of {nbytes}")


def _read_contiguous(
    file: tifffile.TiffFile, page: tifffile.TiffPage, ref: PlaneRef, out: np.ndarray[Any, Any]
) -> None:
    offset = ref.offset or 0
    lacking = offset + out.nbytes - file.filehandle.size
    if lacking > 0:
        raise ImageError(f"{ref.path}: truncated: {lacking} of the plane's {out.nbytes} bytes are missing")
    stored = np.dtype(file.byteorder + page.dtype.char)
    plane = file.filehandle.read_array(stored, out.size, offset)
    out[...] = plane.reshape(out.shape)


def _plane_shape(page: tifffile.TiffPage, path: str) -> tuple[int, int, int]:
    """(height, width, samples) of a page that can be a plane."""
    where = f"{path} page {page.index}"
    if page.dtype is None:
        samples = f"{page.bitspersample} bits, format {page.sampleformat}"
        raise ImageError(f"{where}: samples of {samples} aren't supported")
    if page.imagedepth != 1:
        raise ImageError(f"{where}: a volume of {page.imagedepth} planes in one page, which isn't read")
    if 0 in page.shape:
        raise ImageError(f"{where}: an empty image {page.shape}")
    # microscopes and ImageJ store intensities with a colour table for display, others numbers of colours
    parent = page.parent
    if int(page.photometric) == _PALETTE and not (parent.is_imagej or parent.is_lsm or parent.is_ome):
        raise ImageError(f"{where}: palette image, its values are numbers of colours; convert it to grey")
    return page.imagelength, page.imagewidth, page.samplesperpixel


def _ome_layouts(file: tifffile.TiffFile, path: str) -> list[Layout]:
    try:
        images = parse_ome(file.ome_metadata, len(file.pages), Path(path).name)
    except OmeXmlError as error:
        raise ImageError(f"{path}: {error}") from error
    layouts = []
    for image in images:
        page = file.pages[image.pages[0] if image.pages else 0]
        height, width, samples = _plane_shape(page, path)
        check_plausible(page, path)
        if (image.height, image.width, image.samples) != (height, width, samples):
            raise ImageError(
                f"{path}: its OME-XML says {image.height} × {image.width} pixels of {image.samples} samples,"
                f" page {page.index} is {height} × {width} of {samples}"
            )
        layouts.append(
            Layout(
                axes=image.axes,
                sizes=image.sizes,
                planes=tuple(PlaneRef(path, index) for index in image.pages),
                plane_shape=(height, width),
                samples=samples,
                dtype=page.dtype.name,
                physical_size_um=image.physical_size_um,
                channel_names=image.channel_names,
                problem=f"{path}: {image.problem}" if image.problem else "",
            )
        )
    return layouts


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
    height, width, samples = _plane_shape(page, path)
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
    """Pages without metadata that tifffile keeps apart by their compression or strips, not by their pixels."""
    return len(
        {(one.kind, str(one.dtype), one.keyframe.shape, one.keyframe.axes) for one in series}
    ) == 1 and (series[0].kind == "generic")


def _page_layout(series: Sequence[tifffile.TiffPageSeries], path: str) -> Layout:
    pages = sorted((page for one in series for page in one.pages), key=lambda page: page.index)
    height, width, samples = _plane_shape(series[0].keyframe, path)
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
        unit = imagej.get("unit") or {3: "cm", 4: "mm", 5: "µm"}.get(int(page.resolutionunit))
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


# tifffile reports through logging what it repairs; what matters of it is checked above and raised
logging.getLogger("tifffile").addHandler(logging.NullHandler())
