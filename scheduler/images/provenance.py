"""What a written stack says about how it came about, read back from where each format keeps it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tifffile

from scheduler.images.ome import OmeXmlError, parse_root

NAMESPACE = "stackyard/provenance"


def tiff_provenance(file: tifffile.TiffFile) -> Mapping[str, Any]:
    """Of an open TIFF or OME-TIFF, each value as text; empty if it says nothing."""
    if file.is_ome:
        return _map_annotation(file.ome_metadata or "")
    described: Mapping[str, Any] = (file.shaped_metadata or ({},))[0]
    return _mapping(described.get("Provenance"))


def channel_file(image: Path, channel: int) -> Path:
    """Where an OME-Zarr image that several jobs write keeps the provenance of one channel."""
    return image / f"provenance-c{channel}.json"


def channel_provenance(image: Path, channel: int) -> Mapping[str, Any]:
    """Of one channel of an OME-Zarr image; empty if it says nothing."""
    try:
        return _mapping(json.loads(channel_file(image, channel).read_bytes()))
    except (OSError, ValueError):
        return {}


def group_provenance(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of an OME-Zarr image of one job, by its group's attributes; empty if it says nothing."""
    return _mapping(attributes.get("stackyard"))


def says(provenance: Mapping[str, Any], expected: Mapping[str, str]) -> bool:
    """Whether it has each of `expected`, word by word."""
    return all(provenance.get(name) == value for name, value in expected.items())


def _map_annotation(xml: str) -> Mapping[str, Any]:
    try:
        root = parse_root(xml)
    except OmeXmlError:
        return {}
    found = root.findall(f".//{{*}}MapAnnotation[@Namespace='{NAMESPACE}']/{{*}}Value/{{*}}M")
    return {entry.attrib.get("K", ""): entry.text or "" for entry in found}


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}
