"""backend_status: version and devices, or why a library can't be used and what installs it."""

from __future__ import annotations

import sys

import pytest

from memcore import MemoryType, backend_status
from memcore.registry import backend_of


def test_every_memory_type_is_listed() -> None:
    assert list(backend_status()) == [str(name) for name in MemoryType]


def test_what_works_tells_version_and_devices() -> None:
    import numpy

    status = backend_status("numpy")["numpy"]
    assert status.available
    assert status.version == numpy.__version__
    assert [device.gpu_id for device in status.devices] == ["cpu"]
    assert status.reason is None


def test_what_is_not_installed_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of("cupy")
    monkeypatch.setattr(backend, "installed", lambda: False)
    status = backend_status("cupy")["cupy"]
    assert not status.available
    assert "pip install 'stackyard[cupy-cuda13]'" in str(status.reason)


def test_a_broken_installation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of("cupy")
    monkeypatch.setattr(backend, "installed", lambda: True)
    monkeypatch.setattr(backend, "_library", None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    status = backend_status("cupy")["cupy"]
    assert not status.available
    assert "importing cupy failed" in str(status.reason)


def test_the_libraries_of_this_machine_name_their_devices() -> None:
    pytest.importorskip("pyclesperanto", reason="needs pyclesperanto")
    status = backend_status("pyclesperanto")["pyclesperanto"]
    assert status.available
    assert [device.gpu_id for device in status.devices] == list(range(len(status.devices)))
    assert all(device.name for device in status.devices)
