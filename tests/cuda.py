"""What tests ask of a CUDA device and of the libraries on it; where something is missing they are skipped."""

from typing import Any

import pytest

from memcore import BackendUnavailableError, DeviceError
from memcore.registry import backend_of


def on_cuda(name: str) -> Any:
    """The library, if it can be imported and sees a CUDA device; else the test is skipped with the reason."""
    library = pytest.importorskip(name, reason=f"needs {name}", exc_type=ImportError)
    backend = backend_of(name)
    try:
        kinds = {device.gpu_id: device.kind for device in backend.devices()}
    except (BackendUnavailableError, DeviceError) as error:
        pytest.skip(f"needs {name} on a CUDA device: {error}")
    if kinds.get(0) != "gpu":
        pytest.skip(f"needs {name} on a CUDA device: {name} {backend.version()} sees none")
    return library


def cuda_libraries(*names: str) -> tuple[str, ...]:
    """Those of the libraries that see a CUDA device; skips the test if none does."""
    found = []
    for name in names:
        backend = backend_of(name)
        try:
            if backend.installed() and any(device.kind == "gpu" for device in backend.devices()):
                found.append(name)
        except BackendUnavailableError:
            continue
    if not found:
        pytest.skip(f"needs {' or '.join(names)} on a CUDA device")
    return tuple(found)
