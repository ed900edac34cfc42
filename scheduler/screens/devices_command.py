"""`stackyard devices`: what is there, what is free, and why something can't be used."""

from scheduler.host.probes import discover
from scheduler.host.reservations import Reservations
from scheduler.screens.backend_probe import probe_backends
from scheduler.screens.consoles import output_console
from scheduler.screens.devices import HostView, draw_host, host_json
from scheduler.screens.exits import errors_as_messages, print_json


def devices_command(*, as_json: bool, debug: bool) -> None:
    """Look at this host and print what there is."""
    with errors_as_messages(debug=debug, unusable=()):
        view = look_at_host()
    if as_json:
        print_json(host_json(view))
    else:
        output_console().print(draw_host(view))


def look_at_host() -> HostView:
    """The devices with their memory now, the array libraries, and what Stackyard runs have reserved."""
    discovery = discover()
    try:
        with Reservations() as reservations:
            snapshots = discovery.snapshots(reservations)
            rows, leases = reservations.rows(), reservations.leases()
        notes = list(discovery.problems)
        if not notes and len(discovery.devices) == 1:
            notes.append("No NVIDIA GPU is visible here: jobs run on the CPU.")
        return HostView(
            tuple(zip(discovery.devices, snapshots, strict=True)),
            probe_backends(),
            rows,
            tuple(notes),
            leases,
        )
    finally:
        discovery.close()
