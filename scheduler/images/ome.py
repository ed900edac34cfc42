"""OME-XML: what an OME-TIFF says about its planes, pixel sizes and channels.

tifffile fills planes that a header claims and no page holds with zeros, sizes its lists by the header's
figures and opens whatever files the header names. Here a claim is held against the pages first.
https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from scheduler.images.stack import PhysicalSize

# the schema's default is µm; both Unicode characters for micro are in use
_MICROMETRES = {
    "pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0,
    "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6, "in": 25400.0, "inch": 25400.0,
}  # fmt: skip


class OmeXmlError(ValueError):
    """The OME-XML is broken, or claims planes that the file doesn't hold."""


@dataclass(frozen=True, slots=True)
class OmeImage:
    """One Image element; `pages[i]` is the page of plane i, in C order over `axes`, slowest first."""

    name: str
    axes: str
    sizes: tuple[int, ...]
    width: int
    height: int
    samples: int
    physical_size_um: PhysicalSize | None
    channel_names: tuple[str | None, ...]
    pages: tuple[int, ...]
    problem: str = ""


def parse_ome(xml: str, page_count: int, file_name: str) -> list[OmeImage]:
    """The images of an OME-TIFF with `page_count` pages named `file_name`.

    An image whose planes aren't all in this file, once each, has a `problem` and no pages.

    Raises
    ------
    OmeXmlError
        Not OME-XML, or no image in it.
    """
    root = parse_root(xml)
    if _first(root, "BinaryOnly") is not None:
        companion = _first(root, "BinaryOnly").attrib.get("MetadataFile", "")  # type: ignore[union-attr]
        raise OmeXmlError(f"its metadata is in the companion file {companion!r}, which isn't read")
    images = [
        _image(image, pixels, page_count, file_name, root.attrib.get("UUID"))
        for image in _children(root, "Image")
        for pixels in _children(image, "Pixels")
    ]
    if not images:
        raise OmeXmlError("its OME-XML holds no image")
    return images


def parse_root(xml: str) -> ElementTree.Element:
    """The OME element, or OmeXmlError; a document that declares entities is refused."""
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise OmeXmlError("its OME-XML declares entities, which no microscope does")
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError) as error:
        raise OmeXmlError(f"its OME-XML can't be parsed: {error}") from error
    if _tag(root) != "OME":
        raise OmeXmlError(f"its XML is {_tag(root)!r}, not OME")
    return root


def micrometres(value: str | float | None, unit: str | None = "µm") -> float | None:
    """A length in µm, or None where the value or the unit means none (zero, `pixel`, …)."""
    if value is None:
        return None
    try:
        length = float(value) * _MICROMETRES[(unit or "µm").strip()]
    except (ValueError, KeyError):
        return None
    return length if math.isfinite(length) and length > 0 else None


def _image(
    image: ElementTree.Element, pixels: ElementTree.Element, page_count: int, file_name: str, uuid: str | None
) -> OmeImage:
    attributes = pixels.attrib
    order = attributes.get("DimensionOrder", "XYCZT")
    if sorted(order) != sorted("XYCZT") or order[:2] != "XY":
        raise OmeXmlError(f"its DimensionOrder is {order!r}")
    size = {axis: _count(attributes, f"Size{axis}") for axis in "XYZCT"}
    channels = list(_children(pixels, "Channel"))
    samples = _count(channels[0].attrib, "SamplesPerPixel", 1) if channels else 1
    if size["C"] % samples:
        raise OmeXmlError(f"SizeC is {size['C']}, no multiple of SamplesPerPixel {samples}")
    size["C"] //= samples
    axes = order[:1:-1]
    sizes = tuple(size[axis] for axis in axes)
    pages, problem = _pages(pixels, axes, sizes, page_count, file_name, uuid)
    physical = {
        axis: micrometres(attributes.get(f"PhysicalSize{axis}"), attributes.get(f"PhysicalSize{axis}Unit"))
        for axis in "ZYX"
    }
    x, y = physical["X"], physical["Y"]
    return OmeImage(
        name=image.attrib.get("Name", ""),
        axes=axes,
        sizes=sizes,
        width=size["X"],
        height=size["Y"],
        samples=samples,
        physical_size_um=None if x is None or y is None else (physical["Z"], y, x),
        channel_names=tuple(channel.attrib.get("Name") for channel in channels),
        pages=pages,
        problem=problem,
    )


def _pages(
    pixels: ElementTree.Element,
    axes: str,
    sizes: tuple[int, ...],
    page_count: int,
    file_name: str,
    uuid: str | None,
) -> tuple[tuple[int, ...], str]:
    """The page of each plane; or no pages, and why."""
    planes = math.prod(sizes)
    if planes > page_count:
        data_elements = _children(pixels, "TiffData")
        others = sorted({name for data in data_elements for name in _elsewhere(data, file_name, uuid)})
        where = f"; the others are in {', '.join(others[:3])}, and stacks aren't read across OME-TIFF files"
        claim = f"its OME-XML claims {planes} planes ({_dimensions(axes, sizes)})"
        return (), f"{claim}, the file holds {page_count}{where if others else ''}"
    pages: list[int | None] = [None] * planes
    for data in _children(pixels, "TiffData"):
        if any(True for _ in _elsewhere(data, file_name, uuid)):
            continue
        # without an IFD and a count the element stands for all pages, with an IFD alone for that one
        count = _count(data.attrib, "NumPlanes", 1 if "IFD" in data.attrib else page_count)
        count = _count(data.attrib, "PlaneCount", count)
        first_page = _count(data.attrib, "IFD", 0, least=0)
        plane = 0
        for axis, length in zip(axes, sizes, strict=True):
            position = _count(data.attrib, f"First{axis}", 0, least=0)
            if position >= length:
                return (), f"its OME-XML places a page at {axis} {position}, beyond Size{axis} {length}"
            plane = plane * length + position
        for index in range(min(count, planes - plane)):
            if first_page + index >= page_count:
                break
            if pages[plane + index] is not None:
                return (), f"its OME-XML gives two pages for plane {_position(plane + index, axes, sizes)}"
            pages[plane + index] = first_page + index
    missing = [plane for plane, page in enumerate(pages) if page is None]
    if missing:
        first = _position(missing[0], axes, sizes)
        return (), f"its OME-XML names no page for {len(missing)} of {planes} planes, the first {first}"
    return tuple(page for page in pages if page is not None), ""


def _elsewhere(data: ElementTree.Element, file_name: str, uuid: str | None) -> Iterator[str]:
    """The other file that holds these planes; a file that was renamed still knows itself by its UUID."""
    for reference in _children(data, "UUID"):
        if uuid is not None and reference.text != uuid and reference.attrib.get("FileName") != file_name:
            yield reference.attrib.get("FileName", "another file")


def _position(plane: int, axes: str, sizes: tuple[int, ...]) -> str:
    parts = []
    for axis, length in zip(reversed(axes), reversed(sizes), strict=True):
        plane, index = divmod(plane, length)
        parts.append(f"{axis} {index}")
    return ", ".join(reversed(parts))


def _dimensions(axes: str, sizes: tuple[int, ...]) -> str:
    return ", ".join(f"{axis} {length}" for axis, length in zip(axes, sizes, strict=True))


def _count(attributes: dict[str, str], name: str, default: int | None = None, *, least: int = 1) -> int:
    text = attributes.get(name)
    if text is None and default is not None:
        return default
    try:
        value = int(text or "")
    except ValueError:
        value = -1
    if not least <= value < 2**31:
        raise OmeXmlError(f"its OME-XML gives {name} as {text!r}")
    return value


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _children(element: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if _tag(child) == tag)


def _first(element: ElementTree.Element, tag: str) -> ElementTree.Element | None:
    return next(_children(element, tag), None)
