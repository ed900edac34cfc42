"""OME-Zarr in: which stacks an image, a plate or a series of images holds, and their pixels.

A chunk that isn't there stands for the fill value, by Zarr's own rule; an incomplete copy can't be told from
it. Codecs that run code on what they decode (pickle) are refused.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import NDBuffer

from scheduler.images.errors import ImageError, said
from scheduler.images.layout import Layout, broken_layout
from scheduler.images.ngff import NgffError, ome_attributes, parse_image, parse_plate, parse_well
from scheduler.images.stack import PlaneRef

# numcodecs' registry has pickle among its codecs: whoever writes the metadata would run code here
_CODECS = frozenset({
    "blosc", "bytes", "bz2", "crc32c", "delta", "endian", "gzip", "lz4", "lzma", "packbits",
    "sharding_indexed", "shuffle", "transpose", "zlib", "zstd",
})  # fmt: skip
_CHUNK_BYTES = 256 << 20  # a chunk may be larger than its array, but not by more than this
_MAX_RATIO = 40_000
_SIZED_BYTES = 1 << 30  # arrays beyond this are held against what is stored
_FREE_PLANES = 10_000  # so are more planes than these
_MAX_PLANES = 4 << 20


def describe_zarr(path: str | Path) -> list[Layout]:
    """What an OME-Zarr folder holds: one Layout for each image, with `well` and `site` in a plate.

    A plate's image that can't be read has a `problem`. Pixels aren't read.

    Raises
    ------
    ImageError
        No Zarr, no OME metadata, or metadata that can't be true.
    """
    path = str(path)
    if not any(Path(path, name).is_file() for name in ("zarr.json", ".zgroup")):
        raise ImageError(f"{path}: a folder, and no OME-Zarr")
    ome = _attributes(path)
    if "plate" in ome:
        return list(_plate_layouts(path, ome))
    if "multiscales" in ome:
        return [_image_layout(path, ome)]
    if "bioformats2raw.layout" in ome:
        images = sorted((child.name for child in Path(path).iterdir() if child.name.isdecimal()), key=int)
        layouts = [_image_layout(f"{path}/{image}", _attributes(f"{path}/{image}")) for image in images]
        return [replace(one, fields=(("image", image),)) for one, image in zip(layouts, images, strict=True)]
    raise ImageError(f"{path}: a Zarr without an OME-Zarr image or plate")


def read_zarr_planes(path: str, planes: Sequence[int], out: np.ndarray[Any, Any], *, expected: str) -> None:
    """Decode planes of the array at `path` into `out` [len(planes), Y, X], a chunk's depth at a time."""
    with _blamed(path):
        array = _checked_array(path)
        if array.shape[-2:] != out.shape[1:] or array.dtype.name != out.dtype.name:
            found = f"{array.dtype.name} {array.shape[-2:]}"
            raise ImageError(f"{path}: {found}, but {out.dtype} {out.shape[1:]} {expected}")
        outer = array.shape[:-2]
        if max(planes) >= math.prod(outer):
            raise ImageError(f"{path}: has {math.prod(outer)} planes, plane {max(planes)} is wanted")
        depth = array.chunks[-3] if outer else 1
        for start, stop in _runs(planes, outer[-1] if outer else 1, depth):
            if not outer:
                selection: tuple[int | slice, ...] = (slice(None), slice(None))
                target = out[start]
            else:
                *position, first = (int(index) for index in np.unravel_index(planes[start], outer))
                selection = (*position, slice(first, first + stop - start))
                target = out[start:stop]
            array.get_basic_selection(selection, out=NDBuffer.from_numpy_array(target))


def _runs(planes: Sequence[int], length: int, depth: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of planes that follow one another within one chunk along the last axis, of `length`."""
    start = 0
    for stop in range(1, len(planes) + 1):
        if stop < len(planes):
            follows = planes[stop] == planes[stop - 1] + 1
            position = planes[stop] % length
            if follows and position != 0 and position % depth != 0:
                continue
        yield start, stop
        start = stop


def _plate_layouts(path: str, ome: Mapping[str, Any]) -> Iterator[Layout]:
    with _blamed(path):
        wells = parse_plate(ome)
    for well in wells:
        name = well.replace("/", "")
        try:
            with _blamed(f"{path}/{well}"):
                images = parse_well(_attributes(f"{path}/{well}"))
        except ImageError as error:
            yield broken_layout((("well", name),), str(error))
            continue
        for image in images:
            fields = (("well", name), ("site", image))
            where = f"{path}/{well}/{image}"
            try:
                yield replace(_image_layout(where, _attributes(where)), fields=fields)
            except ImageError as error:
                yield broken_layout(fields, str(error))


def _image_layout(path: str, ome: Mapping[str, Any]) -> Layout:
    with _blamed(path):
        image = parse_image(ome)
        where = f"{path}/{image.path}"
        array = _checked_array(where)
        if array.ndim != len(image.axes):
            raise ImageError(f"{path}: its axes are {image.axes}, its array is {array.shape}")
        outer = array.shape[:-2]
        if 0 in array.shape:
            raise ImageError(f"{where}: an empty array {array.shape}")
        _check_planes(array, where)
        return Layout(
            axes=image.axes[:-2].upper(),
            sizes=outer,
            planes=tuple(PlaneRef(where, index) for index in range(math.prod(outer))),
            plane_shape=(array.shape[-2], array.shape[-1]),
            samples=1,
            dtype=array.dtype.name,
            physical_size_um=image.physical_size_um,
            channel_names=image.channel_names,
        )


def _attributes(path: str) -> Mapping[str, Any]:
    with _blamed(path):
        # consolidated metadata is a second copy that may disagree
        group = zarr.open_group(path, mode="r", use_consolidated=False)
        return ome_attributes(group.attrs.asdict())


def _checked_array(path: str) -> zarr.Array[Any]:
    """The array, if its metadata asks for nothing absurd and no codec that we don't know."""
    array = zarr.open_array(path, mode="r")
    if array.dtype.kind not in "biufc":
        raise ImageError(f"{path}: an array of {array.dtype}, which isn't numbers")
    unknown = sorted(_codecs(array.metadata.to_dict()) - _CODECS)
    if unknown:
        raise ImageError(f"{path}: codec {', '.join(unknown)} isn't one that images are read with")
    chunk_bytes = math.prod(array.chunks) * array.dtype.itemsize
    if chunk_bytes > max(4 * array.nbytes, _CHUNK_BYTES):
        raise ImageError(
            f"{path}: absurd header: chunks of {chunk_bytes} bytes in an array of {array.nbytes}"
        )
    if array.nbytes > _SIZED_BYTES and array.nbytes > _MAX_RATIO * (stored := array.nbytes_stored()):
        claim = f"{array.nbytes} bytes ({array.dtype} {array.shape})"
        raise ImageError(f"{path}: absurd header: claims {claim}, stored in {stored}")
    return array


def _check_planes(array: zarr.Array[Any], path: str) -> None:
    """Each plane takes some hundred bytes here before a pixel is read: ImageError for more than can be."""
    planes = math.prod(array.shape[:-2])
    if planes > _MAX_PLANES:
        raise ImageError(f"{path}: claims {planes} planes {array.shape}; {_MAX_PLANES} are read at most")
    if planes > _FREE_PLANES and planes > (stored := array.nbytes_stored()):
        raise ImageError(
            f"{path}: absurd header: claims {planes} planes {array.shape}, stored in {stored} bytes"
        )


def _codecs(metadata: object) -> set[str]:
    """The names of all codecs in an array's metadata, those inside shards included."""
    if isinstance(metadata, Mapping):
        names = set()
        for key in ("codecs", "index_codecs", "filters", "compressor"):
            described = metadata.get(key) or ()
            for codec in (described,) if isinstance(described, Mapping) else described:
                name = codec.get("name", codec.get("id")) if isinstance(codec, Mapping) else codec
                names |= {str(name).removeprefix("numcodecs.")} | _codecs(codec)
        return names | _codecs(metadata.get("configuration"))
    return set()


@contextmanager
def _blamed(path: str) -> Iterator[None]:
    """Whatever goes wrong inside the block becomes an ImageError that names the folder."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except NgffError as error:
        raise ImageError(f"{path}: {error}") from error
    except OSError as error:
        raise ImageError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # zarr and its codecs raise all sorts on damaged metadata and chunks
        raise ImageError(f"{path}: not a readable OME-Zarr: {said(error)}") from error
