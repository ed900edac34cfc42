"""Which page of which file holds each plane of an OME-TIFF image.

tifffile fills planes that a header claims and no page holds with zeros, sizes its lists by the header's
figures, and opens whatever files the header names. Here a claim is held against the pages first.
"""

import math
from collections.abc import Callable

from scheduler.images.ome import OmeImage, OmeXmlError


def place_planes(image: OmeImage, count_pages: Callable[[str], int]) -> list[tuple[str, int]]:
    """(file name, page) of each plane, in C order over the image's axes; the file itself has an empty name.

    `count_pages` gives the number of pages of the file (for "") and of others of its set, by name.

    Raises
    ------
    OmeXmlError
        A plane without a page or with two, or more planes than the files have pages.
    """
    planes = math.prod(image.sizes)
    counts = {name: count_pages(name) for name in dict.fromkeys(["", *(b.file_name for b in image.blocks)])}
    held = sum(counts.values())
    if planes > held:
        where = "the file holds" if len(counts) == 1 else f"its {len(counts)} files hold"
        raise OmeXmlError(f"its OME-XML claims {planes} planes ({_dimensions(image)}), {where} {held}")
    pages: list[tuple[str, int] | None] = [None] * planes
    for block in image.blocks:
        first = _index(image, block.start)
        available = counts[block.file_name] - block.first_page
        count = min(available, planes - first, block.count if block.count is not None else available)
        for index in range(count):
            if pages[first + index] is not None:
                raise OmeXmlError(f"its OME-XML gives two pages for plane {_position(image, first + index)}")
            pages[first + index] = block.file_name, block.first_page + index
    placed = [page for page in pages if page is not None]
    if len(placed) < planes:
        lacking = planes - len(placed)
        where = _position(image, pages.index(None))
        raise OmeXmlError(f"its OME-XML names no page for {lacking} of {planes} planes, the first {where}")
    return placed


def _index(image: OmeImage, start: tuple[int, ...]) -> int:
    plane = 0
    for axis, length, position in zip(image.axes, image.sizes, start, strict=True):
        if position >= length:
            raise OmeXmlError(f"its OME-XML places a page at {axis} {position}, beyond Size{axis} {length}")
        plane = plane * length + position
    return plane


def _position(image: OmeImage, plane: int) -> str:
    parts = []
    for axis, length in zip(reversed(image.axes), reversed(image.sizes), strict=True):
        plane, index = divmod(plane, length)
        parts.append(f"{axis} {index}")
    return ", ".join(reversed(parts))


def _dimensions(image: OmeImage) -> str:
    return ", ".join(f"{axis} {length}" for axis, length in zip(image.axes, image.sizes, strict=True))
