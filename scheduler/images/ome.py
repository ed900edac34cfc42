"""OME-XML: what an OME-TIFF says about its planes, pixel sizes and channels.

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
class PlaneBlock:
    """A TiffData element: planes from position `start` on, one after another, in pages one after another.

    `start` has an index for each axis; `file_name` is empty for the file itself; `count` None is all pages.
    """

    file_name: str
    first_page: int
    count: int | None
    start: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OmeImage:
    """One Image element, as it claims to be: `axes` and `sizes` of T, Z and C, slowest first."""

    name: str
    axes: str
    sizes: tuple[int, ...]
    width: int
    height: int
    samples: int
    physical_size_um: PhysicalSize | None
    channel_names: tuple[str | None, ...]
    blocks: tuple[PlaneBlock, ...]


def parse_ome(xml: str, file_name: str) -> list[OmeImage]:
    """The images that the OME-XML of the file `file_name` describes.

    Raises
    ------
    OmeXmlError
        Not OME-XML, or no image in it.
    """
    root = parse_root(xml)
    binary_only = _first(root, "BinaryOnly")
    if binary_only is not None:
        companion = binary_only.attrib.get("MetadataFile", "")
        raise OmeXmlError(f"its metadata is in the companion file {companion!r}, which isn't read")
    images = [
        _image(image, pixels, file_name, root.attrib.get("UUID"))
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
    image: ElementTree.Element, pixels: ElementTree.Element, file_name: str, uuid: str | None
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
        blocks=tuple(_block(data, axes, file_name, uuid) for data in _children(pixels, "TiffData")),
    )


def _block(data: ElementTree.Element, axes: str, file_name: str, uuid: str | None) -> PlaneBlock:
    attributes = data.attrib
    # without an IFD and a count the element stands for all pages, with an IFD alone for that one
    count = 1 if "IFD" in attributes else None
    for name in ("NumPlanes", "PlaneCount"):
        if name in attributes:
            count = _count(attributes, name)
    return PlaneBlock(
        file_name=_other_file(data, file_name, uuid),
        first_page=_count(attributes, "IFD", 0, least=0),
        count=count,
        start=tuple(_count(attributes, f"First{axis}", 0, least=0) for axis in axes),
    )


def _other_file(data: ElementTree.Element, file_name: str, uuid: str | None) -> str:
    """The other file that holds these planes, or ""; a renamed file still knows itself by its UUID."""
    for reference in _children(data, "UUID"):
        name = reference.attrib.get("FileName", "")
        if uuid is not None and reference.text != uuid and name != file_name:
            return name or "a file that isn't named"
    return ""


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
