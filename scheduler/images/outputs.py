"""Write a stack where its fields say, whole or not at all, and see that it is there.

path = output_path("out", "{well}_s{site}_c{channel}", dict(source.fields), "ome-tiff")
write_stack(path, stack, format="ome-tiff", physical_size_um=(1.0, 0.325, 0.325), channel_name="DAPI",
            provenance={"gaussian": {"sigma": 2.0, "memory_type": "numpy"}})
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from scheduler.images.atomic import atomic_file, remove_partials
from scheduler.images.errors import ImageError, OutputError
from scheduler.images.naming import (
    check_output_folder,
    output_path,
    output_paths,
    suffix_of,
    template_fields,
)
from scheduler.images.options import DEFAULT_OPTIONS, WriteOptions
from scheduler.images.plates import Destination, plan_outputs, planes_of, prepare_output, refuse_inputs
from scheduler.images.stack import PhysicalSize, StackMetadata

__all__ = [
    "Destination",
    "WriteOptions",
    "check_output_folder",
    "output_path",
    "output_paths",
    "plan_outputs",
    "planes_of",
    "prepare_output",
    "refuse_inputs",
    "remove_partials",
    "template_fields",
    "verify_stack",
    "write_stack",
]


def write_stack(
    path: str | Path,
    array: np.ndarray[Any, Any],
    *,
    format: str,
    physical_size_um: PhysicalSize | None = None,
    channel_name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    options: WriteOptions = DEFAULT_OPTIONS,
    channel: int | None = None,
    channels: int = 1,
) -> Path:
    """Write `array`, a NumPy [Z, Y, X], to `path`: in the end all of it is there, or nothing.

    `format` is `ome-tiff`, `tiff` or `ome-zarr`; BigTIFF where 4 GiB don't suffice. Axes are ZYX; sizes are
    micrometres of z (None if unknown), y and x. `provenance` is kept as a map annotation (OME-TIFF), in the
    description (TIFF) or in the attributes (OME-Zarr); values that aren't text are written as JSON. Folders
    between are created. With `channel` the stack becomes that one of `channels` of the OME-Zarr image at
    `path`, which prepare_output made; then "whole or not at all" holds for the channel.

    Raises
    ------
    OutputError
        Not a 3-D NumPy array with something in it, or a dtype that the format doesn't have.
    FileExistsError
        `path` is there and `overwrite` is False.
    OSError
        The disk is full, the folder can't be written, …; nothing is left behind.
    """
    path = Path(path)
    suffix = suffix_of(format)
    _check_stack(array)
    metadata = StackMetadata(physical_size_um, channel_name, provenance or {})
    if format == "ome-zarr":
        _write_zarr(path, array, metadata, options, overwrite, channel, channels)
        return path
    from scheduler.images.tiff_out import check_tiff, write_tiff

    check_tiff(array, format)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, overwrite=overwrite) as file:
        name = path.name.removesuffix(suffix)
        write_tiff(file, array, format, metadata, name=name, compression=options.compression)
    return path


def verify_stack(
    path: str | Path,
    shape: tuple[int, int, int],
    dtype: str | np.dtype[Any],
    *,
    channel: int | None = None,
    provenance: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Whether `path` holds one whole stack of this shape and dtype, by its headers and its length.

    Only what write_stack wrote counts: the metadata that it gives every file must be there too, and what it
    was given as provenance must say what `provenance` does.
    """
    if Path(path).is_dir():
        from scheduler.images.zarr_out import verify_image

        return verify_image(Path(path), shape, np.dtype(dtype), channel, provenance)
    from scheduler.images.layout import stacks_of
    from scheduler.images.provenance import says, tiff_provenance
    from scheduler.images.tiff import check_plausible, opened
    from scheduler.images.tiff_layouts import layouts_of

    try:
        with opened(path) as file:
            described = (file.is_ome or file.is_shaped) and says(tiff_provenance(file), provenance)
            # first of all: once tifffile knows the series it gives later pages the header of the first one
            for page in file.pages:
                check_plausible(page, str(path))
            stacks = stacks_of(layouts_of(file, str(path)), "z", str(path))
    except ImageError:
        return False
    whole = [(stack.shape, stack.dtype, stack.problem) for stack in stacks]
    return described and whole == [(tuple(shape), np.dtype(dtype).name, "")]


def _write_zarr(
    path: Path,
    array: np.ndarray[Any, Any],
    metadata: StackMetadata,
    options: WriteOptions,
    overwrite: bool,
    channel: int | None,
    channels: int,
) -> None:
    from scheduler.images.zarr_out import check_zarr, write_channel, write_image

    check_zarr(array)
    if channel is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, array, metadata, options, overwrite=overwrite)
        return
    write_channel(path, array, metadata, options, channel=channel, channels=channels, overwrite=overwrite)


def _check_stack(array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise OutputError(f"a stack to write is a NumPy array, not {type(array).__name__}")
    if array.ndim != 3 or array.size == 0:
        raise OutputError(f"a stack to write has axes Z, Y, X, each of 1 or more; this is {array.shape}")
