"""What there is to compute on: devices with their memory, memory types with their libraries."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import time
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from memcore import BackendStatus
from memcore.info import bytes_text
from scheduler.core.model import Device, DeviceKind, DeviceSnapshot
from scheduler.host.rows import LeaseRow, ReservationRow
from scheduler.screens.words import duration_text, printable


@dataclass(frozen=True, slots=True)
class HostView:
    """Everything that the devices screen shows; `notes` say why there is no GPU, or what is wrong."""

    devices: Sequence[tuple[Device, DeviceSnapshot]]
    backends: Mapping[str, BackendStatus]
    reservations: Sequence[ReservationRow] = ()
    notes: Sequence[str] = ()
    leases: Sequence[LeaseRow] = ()


def draw_host(view: HostView) -> RenderableType:
    """Devices, remarks, memory types, who has reserved what, and who holds which arrays."""
    parts: list[RenderableType] = [_devices(view.devices), *_about(view.devices)]
    parts += [Text(printable(note), style="yellow") for note in view.notes]
    parts += [Text(), _backends(view.backends)]
    if view.reservations:
        parts += [Text(), _reservations(view.reservations)]
    if view.leases:
        parts += [Text(), _leases(view.leases)]
    return Group(*parts)


def host_json(view: HostView) -> dict[str, Any]:
    """The same as an object: sizes in bytes, null where a probe has no answer."""
    return {
        "devices": [_record(device, snapshot) for device, snapshot in view.devices],
        "backends": {name: asdict(status) for name, status in view.backends.items()},
        "reservations": [
            {
                "device": row.device,
                "bytes": row.nbytes,
                "job": row.job,
                "run": row.run,
                "pid": row.process.pid,
            }
            for row in view.reservations
        ],
        "leases": [{**asdict(lease), "age_s": time() - lease.since} for lease in view.leases],
        "notes": list(view.notes),
    }


def _record(device: Device, snapshot: DeviceSnapshot) -> dict[str, Any]:
    known = snapshot.used_bytes is not None
    return {
        "name": device.name,
        "uuid": device.uuid,
        "kind": str(device.kind),
        "model": device.model,
        "virtual": device.virtual,
        "total_bytes": snapshot.total_bytes,
        "free_bytes": max(0, snapshot.total_bytes - (snapshot.used_bytes or 0)) if known else None,
        "idle_bytes": sum(process.reclaimable_bytes for process in snapshot.processes),
        "reserved_bytes": sum(process.reserved_bytes for process in snapshot.processes),
        "external_bytes": snapshot.external_bytes if known else None,
        "problem": snapshot.problem,
    }


def _devices(devices: Sequence[tuple[Device, DeviceSnapshot]]) -> Table:
    table = _table("device", "kind", "total", "free", "ours idle", "ours reserved", "external", figures=5)
    for device, snapshot in devices:
        record = _record(device, snapshot)
        sizes = [record[f"{name}_bytes"] for name in ("total", "free", "idle", "reserved", "external")]
        table.add_row(
            Text(printable(device.name), style="bold"),
            Text(device.kind, style="yellow" if device.virtual else ""),
            *("unknown" if size is None else bytes_text(size) for size in sizes),
        )
    return table


def _about(devices: Sequence[tuple[Device, DeviceSnapshot]]) -> Iterator[RenderableType]:
    for device, snapshot in devices:
        if snapshot.problem:
            yield Text(printable(f"{device.name}: {snapshot.problem}"), style="red")
        if device.kind is not DeviceKind.CPU:
            yield Text(printable(f"{device.name}: {device.model}, {device.uuid}"), style="dim")


def _backends(backends: Mapping[str, BackendStatus]) -> Table:
    table = _table("memory type", "version", "")
    for name, status in backends.items():
        if status.available:
            places = ", ".join(device.name for device in status.devices)
            table.add_row(Text(name, style="bold"), Text(status.version or ""), Text(printable(places)))
        else:
            reason = Text(printable(status.reason or ""), style="yellow")
            table.add_row(Text(name, style="dim"), Text("–", style="dim"), reason)
    return table


def _reservations(rows: Sequence[ReservationRow]) -> Table:
    table = _table("reserved on", "job", "bytes", "process", "run", figures=2)
    for row in rows:
        table.add_row(
            Text(printable(row.device)),
            Text(printable(row.job)),
            bytes_text(row.nbytes),
            str(row.process.pid),
            Text(printable(row.run), overflow="fold"),
        )
    return table


def _leases(rows: Sequence[LeaseRow]) -> Table:
    table = _table("lent", "job", "bytes", "held for", "step", "process", figures=2)
    for row in rows:
        table.add_row(
            Text(printable(f"{row.what} on {row.device}")),
            Text(printable(row.job)),
            bytes_text(row.nbytes),
            duration_text(max(0.0, time() - row.since)),
            Text(printable(row.step)),
            str(row.pid),
        )
    return table


def _table(first: str, second: str, *others: str, figures: int = 0) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True)
    table.add_column(second, no_wrap=True)
    for index, name in enumerate(others):
        figure = index < figures
        table.add_column(name, justify="right" if figure else "left", no_wrap=figure, overflow="fold")
    return table
