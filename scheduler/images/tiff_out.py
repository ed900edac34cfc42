"""One stack as TIFF or OME-TIFF, with axes, physical sizes, channel name and provenance."""

import json
import os
import re
import uuid
from typing import Any, BinaryIO

import numpy as np
import tifffile

from scheduler.images.errors import OutputError
from scheduler.images.provenance import NAMESPACE
from scheduler.images.stack import StackMetadata

OME_DTYPES = frozenset(
    ("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")  # as the schema has
)
TIFF_DTYPES = OME_DTYPES | {"int64", "uint64", "float16", "complex64", "complex128"}
# A classic TIFF's offsets have 32 bits; what is left is for directories and metadata.
BIGTIFF_BYTES = 2**32 - 2**25
_NOT_IN_XML = re.compile("[^\\t\\n\\r -\ud7ff\ue000-\U0010ffff]")


def check_tiff(array: np.ndarray[Any, Any], format: str) -> None:
    """OutputError if the format has no such dtype."""
    dtypes = OME_DTYPES if format == "ome-tiff" else TIFF_DTYPES
    if array.dtype.name not in dtypes:
        other = " (format tiff has it)" if array.dtype.name in TIFF_DTYPES else ""
        raise OutputError(
            f"{format} has no {array.dtype}{other}; convert it to one of {', '.join(sorted(dtypes))}"
        )


def write_tiff(
    file: BinaryIO,
    array: np.ndarray[Any, Any],
    format: str,
    described: StackMetadata,
    *,
    name: str,
    compression: str = "default",
) -> None:
    """Write a checked [Z, Y, X] array as `ome-tiff` or `tiff` to an open file; `name` is the OME image's."""
    ome = format == "ome-tiff"
    metadata: dict[str, Any] = {"axes": "ZYX"}
    resolution: dict[str, Any] = {}
    if described.physical_size_um is not None:
        for axis, size in zip("ZYX", described.physical_size_um, strict=True):
            if size is not None:
                metadata[f"PhysicalSize{axis}"] = size
                metadata[f"PhysicalSize{axis}Unit"] = "µm"
        _, y, x = described.physical_size_um
        resolution = {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
    texts = {_xml_text(key): _xml_text(_as_text(value)) for key, value in described.provenance.items()}
    if ome:
        metadata["Name"] = _xml_text(name)
        metadata["UUID"] = str(uuid.uuid4())  # tifffile's default tells the machine's network address
        if described.channel_name is not None:
            metadata["Channel"] = {"Name": [_xml_text(described.channel_name)]}
        if texts:
            metadata["MapAnnotation"] = {**texts, "Namespace": NAMESPACE}
    else:
        metadata |= {"ChannelName": described.channel_name, "Provenance": texts}
    packed = compression not in ("default", "none")
    contiguous = array.flags.c_contiguous and array.dtype.isnative
    try:
        with tifffile.TiffWriter(
            file, bigtiff=array.nbytes > BIGTIFF_BYTES, ome=ome, shaped=not ome
        ) as writer:
            writer.write(
                # a strided array goes plane by plane: tifffile would copy it whole
                array if contiguous else (np.ascontiguousarray(plane) for plane in array),
                shape=array.shape,
                dtype=array.dtype.newbyteorder("="),
                photometric="minisblack",
                metadata=metadata,
                software="stackyard",
                compression=compression if packed else None,
                # neighbouring pixels differ by little: their differences pack better
                predictor=packed and array.dtype.kind in "iuf",
                **resolution,
            )
    except OSError as error:
        if error.errno is None:
            _ask_why(file)
        raise


def _ask_why(file: BinaryIO) -> None:
    """Raise what the system says to a further write, after one that wrote less than was asked for.

    NumPy's `tofile` then tells two numbers, and not that the disk is full.
    """
    try:
        # the first may still fill up the last block
        for _ in range(2):
            os.write(file.fileno(), bytes(2**16))
    except OSError as reason:
        raise reason from None


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _xml_text(text: str) -> str:
    """Without the characters that XML 1.0 has no way to write: control codes and lone surrogates."""
    return _NOT_IN_XML.sub("\ufffd", text)
