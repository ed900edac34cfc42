"""One plane of a TIFF file, read through tifffile.

Before memory is taken for a plane its header is held against the file: bytes that aren't there, missing tiles
and sizes that no compression reaches are refused. Values are given as stored: MinIsWhite isn't inverted.
"""

import logging
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from scheduler.images.errors import ImageError, said
from scheduler.images.stack import PlaneRef

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
        # to open a named pipe is to wait for ever
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{path}: not a file")
        with tifffile.TiffFile(path) as file:
            yield file
    except (ImageError, MemoryError):
        raise
    except OSError as error:
        raise ImageError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # tifffile's parsers and codecs raise all sorts on damaged bytes
        raise ImageError(f"{path}: not a readable TIFF: {said(error)}") from error


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
    height, width, samples = plane_shape(page, ref.path)
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


def plane_shape(page: tifffile.TiffPage, path: str) -> tuple[int, int, int]:
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


# tifffile reports through logging what it repairs; what matters of it is checked above and raised
logging.getLogger("tifffile").addHandler(logging.NullHandler())
