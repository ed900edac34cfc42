"""What there is to compute on: devices with their memory, memory types with their libraries."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from memcore import BackendStatus
from memcore.info import bytes_text
from scheduler.execution.status import DeviceStatus
from scheduler.screens.words import printable


def draw_devices(
    devices: Sequence[DeviceStatus], backends: Mapping[str, BackendStatus], notes: Sequence[str] = ()
) -> RenderableType:
    """Two tables, and `notes`: why there is no GPU, or what is wrong with its driver."""
    remarks = [Text(printable(note), style="yellow") for note in notes]
    return Group(_devices(devices), *remarks, Text(), _backends(backends))


def devices_json(
    devices: Sequence[DeviceStatus], backends: Mapping[str, BackendStatus], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """The same as an object; sizes in bytes, `free_bytes` null where the probe has no answer."""
    return {
        "devices": [_device_record(device) for device in devices],
        "backends": {name: asdict(status) for name, status in backends.items()},
        "notes": list(notes),
    }


def _device_record(device: DeviceStatus) -> dict[str, Any]:
    # Nothing runs here: what a run adds to a device's status stays out.
    return {key: value for key, value in asdict(device).items() if key not in ("running", "done")}


def _devices(devices: Sequence[DeviceStatus]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("device", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for name in ("total", "free", "ours reserved", "ours idle", "external"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for device in devices:
        known = device.free_bytes is not None
        table.add_row(
            Text(printable(device.name), style="bold"),
            Text(device.kind, style="yellow" if device.virtual else ""),
            bytes_text(device.total_bytes),
            "unknown" if device.free_bytes is None else bytes_text(device.free_bytes),
            bytes_text(device.reserved_bytes),
            bytes_text(device.idle_bytes),
            bytes_text(device.external_bytes) if known else "unknown",
            Text(printable(device.problem or device.uuid), style="red" if device.problem else "dim"),
        )
    return table


def _backends(backends: Mapping[str, BackendStatus]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("memory type", no_wrap=True)
    table.add_column("version", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, status in backends.items():
        if status.available:
            places = ", ".join(device.name for device in status.devices)
            table.add_row(Text(name, style="bold"), Text(status.version or ""), Text(printable(places)))
        else:
            reason = Text(printable(status.reason or ""), style="yellow")
            table.add_row(Text(name, style="dim"), Text("–", style="dim"), reason)
    return table
