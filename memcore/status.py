"""Which memory types work here, and why one doesn't."""

from __future__ import annotations

from dataclasses import dataclass

from memcore.errors import BackendUnavailableError
from memcore.info import DeviceInfo
from memcore.registry import backend_of, memory_type_names


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """`reason` says why the backend can't be used and how to install it; None if it can."""

    memory_type: str
    available: bool
    version: str | None
    devices: tuple[DeviceInfo, ...]
    reason: str | None


def backend_status(*memory_types: str) -> dict[str, BackendStatus]:
    """The status of these memory types, or of every registered one, by name. Imports what is installed."""
    names = memory_types or memory_type_names()
    # pyclesperanto's driver must be loaded before TensorFlow's compiler, so it is asked first.
    found = {name: _status(name) for name in sorted(names, key=lambda name: name == "tensorflow")}
    return {name: found[name] for name in names}


def _status(name: str) -> BackendStatus:
    backend = backend_of(name)
    if not backend.installed():
        reason = f"{backend.module} isn't installed; install it with: {backend.install_hint}"
        return BackendStatus(name, False, None, (), reason)
    try:
        return BackendStatus(name, True, backend.version(), backend.devices(), None)
    except BackendUnavailableError as error:
        return BackendStatus(name, False, None, (), str(error))
