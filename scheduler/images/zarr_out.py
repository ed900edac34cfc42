"""One stack as an OME-Zarr image, or as one channel of an image that several jobs write."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.codecs

from scheduler.images.atomic import atomic_file, partial_path, refuse_existing, sync_folder
from scheduler.images.errors import OutputError
from scheduler.images.ngff import VERSIONS, image_attributes, inner_path, ome_attributes
from scheduler.images.options import WriteOptions
from scheduler.images.provenance import channel_file, channel_provenance, group_provenance, says
from scheduler.images.stack import StackMetadata

_CHUNK_BYTES = 1 << 20  # several small planes share a chunk of about this size
_CHUNK_EDGE = 1024
# what is averaged in a pyramid; other dtypes may hold labels, of which an average means nothing
_AVERAGED = frozenset({"uint8", "int8", "uint16", "int16", "float16", "float32", "float64"})


def write_image(
    path: Path,
    array: np.ndarray[Any, Any],
    metadata: StackMetadata,
    options: WriteOptions,
    *,
    overwrite: bool,
) -> None:
    """Write `array` [Z, Y, X] as an image group, which is renamed to `path` when it is complete.

    An image that is overwritten is renamed away first: for an instant there is none.
    """
    refuse_existing(path, overwrite=overwrite)
    levels = list(pyramid(array, options.levels, options.downsample))
    attributes = image_attributes(
        options.zarr_version,
        path.name.partition(".")[0],
        axes="zyx",
        levels=level_scales(len(levels), 3),
        physical_size_um=metadata.physical_size_um,
        channel_names=[metadata.channel_name] if metadata.channel_name else [],
        value_range=_value_range(array),
        provenance=metadata.provenance,
    )
    with _building(path.parent) as partial:
        write_group(partial, options.zarr_version, attributes)
        for index, level in enumerate(levels):
            _new_array(partial, index, level.shape, level.dtype, options, "zyx")[...] = level
        _put(partial, path, overwrite=overwrite)


def write_channel(
    path: Path,
    array: np.ndarray[Any, Any],
    metadata: StackMetadata,
    options: WriteOptions,
    *,
    channel: int,
    channels: int,
    overwrite: bool,
) -> None:
    """Write `array` [Z, Y, X] as channel `channel` of `channels` of the image group at `path`, which exists.

    A channel's chunks are one folder in each level, renamed into place when it is complete, the full
    resolution last. All jobs of an image write the same array metadata; OutputError if this one's shape or
    dtype differs.
    """
    version = options.zarr_version
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    declared = ome_attributes(group.attrs.asdict())["multiscales"][0]["datasets"]
    levels = list(pyramid(array, len(declared), options.downsample))
    if len(levels) < len(declared):
        raise OutputError(
            f"{path} has {len(declared)} levels, but {array.shape} can be halved {len(levels) - 1} times; "
            f"set output.levels to {len(levels)}"
        )
    refuse_existing(_channel_folder(path, 0, channel, version), overwrite=overwrite)
    with _building(path) as partial:
        for index, level in enumerate(levels):
            shape = (channels, *level.shape)
            _new_array(partial, index, shape, level.dtype, options, "czyx")[channel] = level
        for index in range(len(levels)):
            _share_metadata(partial / str(index), path / str(index))
        # before the chunks: of a writer that is killed between them nothing is taken for the one before it
        with atomic_file(channel_file(path, channel), overwrite=True) as file:
            file.write(json.dumps(dict(metadata.provenance), indent=1, default=str).encode())
        for index in reversed(range(len(levels))):
            chunks = _channel_folder(path, index, channel, version)
            chunks.parent.mkdir(exist_ok=True)
            # what an attempt that was killed left of the smaller levels is no result
            _put(_channel_folder(partial, index, channel, version), chunks, overwrite=overwrite or index > 0)


def check_zarr(array: np.ndarray[Any, Any]) -> None:
    """OutputError if OME-Zarr has no such dtype."""
    if array.dtype.kind not in "biufc":
        raise OutputError(f"ome-zarr has no {array.dtype}; convert it to numbers")


def verify_image(
    path: Path,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    channel: int | None,
    provenance: Mapping[str, str],
) -> bool:
    """Whether all levels that the image declares have the shape and dtype that follow from the first one's.

    Every chunk (of the channel) must be there, of the right length where it isn't compressed, and not empty
    where it is. What the image (or the channel) says of how it came about must agree with `provenance`.
    """
    try:
        attributes = zarr.open_group(path, mode="r", use_consolidated=False).attrs.asdict()
        datasets = ome_attributes(attributes)["multiscales"][0]["datasets"]
        arrays = [zarr.open_array(path / inner_path(dataset["path"]), mode="r") for dataset in datasets]
    # not there, not Zarr, metadata cut short, or without what every image has
    except (OSError, ValueError, LookupError, TypeError):
        return False
    found = group_provenance(attributes) if channel is None else channel_provenance(path, channel)
    depth, height, width = shape
    for level, array in enumerate(arrays):
        form = (depth, height >> level, width >> level)
        if array.ndim != (3 if channel is None else 4) or array.shape[-3:] != form or array.dtype != dtype:
            return False
        version = "0.5" if array.metadata.zarr_format == 3 else "0.4"
        folder = _chunk_folder(path, level, version)
        if channel is not None:
            folder = _channel_folder(path, level, channel, version)
        if not _has_chunks(folder, array):
            return False
    return bool(arrays) and says(found, provenance)


def _has_chunks(folder: Path, array: zarr.Array[Any]) -> bool:
    """Whether the chunks of the last three axes are there below `folder`, none of them cut short."""
    chunk_bytes = math.prod(array.chunks) * array.dtype.itemsize
    grid = [math.ceil(length / chunk) for length, chunk in zip(array.shape, array.chunks, strict=True)]
    for position in np.ndindex(*grid[-3:]):
        try:
            stored = os.stat(os.path.join(folder, *map(str, position))).st_size
        except OSError:
            return False
        if stored == 0 or (not array.compressors and stored != chunk_bytes):
            return False
    return True


def write_group(path: Path, version: str, attributes: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """A group with these attributes at `path`, in the Zarr format of the OME-Zarr version.

    A group that is there already with the same attributes stays as it is; FileExistsError if they differ and
    `overwrite` is False.
    """
    path.mkdir(parents=True, exist_ok=True)
    if VERSIONS[version] == 3:
        files = {"zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}}
    else:
        files = {".zattrs": dict(attributes), ".zgroup": {"zarr_format": 2}}
    for name, described in files.items():
        content = json.dumps(described, indent=1, ensure_ascii=False, default=str).encode()
        if (path / name).is_file() and (path / name).read_bytes() == content:
            continue
        with atomic_file(path / name, overwrite=overwrite, durable=False) as file:
            file.write(content)


def pyramid(
    array: np.ndarray[Any, Any], levels: int, downsample: str = "mean"
) -> Iterator[np.ndarray[Any, Any]]:
    """The array and smaller ones, each half as high and wide; it ends early where there is nothing to halve.

    Averages of 2 × 2 pixels, rounded for integers; with `nearest` every second pixel, as always of bool and
    of 32- and 64-bit integers, which may be labels. Odd edges are cut.
    """
    yield array
    averaged = downsample == "mean" and array.dtype.name in _AVERAGED
    for _ in range(levels - 1):
        depth, height, width = array.shape
        if min(height, width) < 2:
            return
        smaller = np.empty((depth, height // 2, width // 2), array.dtype)
        for z in range(depth):
            plane = array[z, : height // 2 * 2, : width // 2 * 2]
            smaller[z] = _averaged(plane) if averaged else plane[::2, ::2]
        array = smaller
        yield array


def _averaged(plane: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # float32 holds the sum of four 16-bit integers exactly
    exact = np.float64 if plane.dtype == np.float64 else np.float32
    rows = np.add(plane[::2], plane[1::2], dtype=exact)
    mean = (rows[:, ::2] + rows[:, 1::2]) / exact(4)
    return np.asarray(np.rint(mean) if plane.dtype.kind in "iu" else mean)


def levels_of(shape: tuple[int, ...], levels: int) -> int:
    """How many of `levels` a stack of this shape, which ends in y and x, can have; see pyramid."""
    return min(levels, min(shape[-2:]).bit_length())


def level_scales(levels: int, ndim: int) -> list[list[float]]:
    """Each level's pixel size relative to the first, for axes that end in y and x."""
    return [[1.0] * (ndim - 2) + [2.0**level] * 2 for level in range(levels)]


def _value_range(array: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The least and the greatest value, for viewers; (0, 1) where they are no finite numbers, or one."""
    if array.dtype.kind not in "iuf":
        return 0.0, 1.0
    low, high = float(array.min()), float(array.max())
    return (low, high) if np.isfinite(low) and np.isfinite(high) and low < high else (0.0, 1.0)


def _new_array(
    group: Path, level: int, shape: tuple[int, ...], dtype: np.dtype[Any], options: WriteOptions, axes: str
) -> zarr.Array[Any]:
    wanted = options.chunks or _default_chunks(shape[-3:], dtype.itemsize)
    chunks = tuple(min(chunk, length) for chunk, length in zip(wanted, shape[-3:], strict=True))
    old = VERSIONS[options.zarr_version] == 2
    return zarr.create_array(
        group / str(level),
        shape=shape,
        dtype=dtype.newbyteorder("="),
        chunks=(1,) * (len(shape) - 3) + chunks,
        compressors=_compressor(options.compression, old=old),
        zarr_format=2 if old else 3,
        chunk_key_encoding={"name": "v2" if old else "default", "separator": "/"},
        dimension_names=None if old else list(axes),
        # a chunk of zeros is written too, so that a missing one is a missing one
        config={"write_empty_chunks": True},
    )


def _default_chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, int, int]:
    _, height, width = shape
    edge_y, edge_x = min(height, _CHUNK_EDGE), min(width, _CHUNK_EDGE)
    return max(1, _CHUNK_BYTES // (edge_y * edge_x * itemsize)), edge_y, edge_x


def _compressor(compression: str, *, old: bool) -> Any:
    if compression == "none":
        return None
    if compression == "zlib":
        return {"id": "zlib", "level": 6} if old else zarr.codecs.GzipCodec(level=6)
    if compression in ("default", "zstd"):
        return {"id": "zstd", "level": 3} if old else zarr.codecs.ZstdCodec(level=3)
    raise OutputError(f"ome-zarr has no compression {compression!r}; it has zstd, zlib and none")


def _chunk_folder(image: Path, level: int, version: str) -> Path:
    return image / str(level) / "c" if version == "0.5" else image / str(level)


def _channel_folder(image: Path, level: int, channel: int, version: str) -> Path:
    return _chunk_folder(image, level, version) / str(channel)


def _share_metadata(ours: Path, theirs: Path) -> None:
    """Put the array's metadata where it isn't yet; where it is it must be the same."""
    theirs.mkdir(exist_ok=True)
    for name in ("zarr.json", ".zarray"):
        if not (ours / name).exists():
            continue
        content = (ours / name).read_bytes()
        # two jobs may come here at once: the first one's stays
        with contextlib.suppress(FileExistsError), atomic_file(theirs / name) as file:
            file.write(content)
        there = json.loads((theirs / name).read_bytes())
        wanted = json.loads(content)
        differ = sorted(key for key in wanted if there.get(key) != wanted[key])
        if differ:
            figures = ", ".join(f"{key} {wanted[key]} but {there.get(key)} is there" for key in differ[:3])
            raise OutputError(
                f"{theirs}: this channel doesn't fit the others: {figures}; if these are of an earlier run, "
                "remove its plate or name another"
            )


@contextlib.contextmanager
def _building(parent: Path) -> Iterator[Path]:
    """A folder of a temporary name, flushed to the disk by _put, gone at the end unless it was renamed."""
    partial = partial_path(parent / "folder")
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, path: Path, *, overwrite: bool) -> None:
    """Flush a complete folder to the disk and rename it to `path`."""
    for folder, _, names in os.walk(partial):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(folder))
    refuse_existing(path, overwrite=overwrite)
    if os.path.lexists(path):
        aside = partial_path(path)
        os.rename(path, aside)
        os.rename(partial, path)
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()
    else:
        # fails if another folder has come meanwhile
        os.rename(partial, path)
    sync_folder(path.parent)
