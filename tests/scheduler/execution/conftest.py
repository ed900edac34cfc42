"""Small plates, configs for them, and runs that keep what they learn to themselves."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from scheduler.config import RunConfig, load_config
from scheduler.execution import crew as crew_module
from scheduler.execution import driver as driver_module

WriteConfig = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_estimates(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules beside one test's config are gone before the next one's, which may have the same names."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "pytest-" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    """Two wells with two channels of 3 x 31 x 37 voxels, as TIFF planes."""
    folder = tmp_path / "plate"
    folder.mkdir()
    random = np.random.default_rng(7)
    for well in ("A01", "B02"):
        for channel in (1, 2):
            for z in range(3):
                plane = random.integers(100, 4000, (31, 37), dtype=np.uint16)
                tifffile.imwrite(folder / f"{well}_z{z:02}_c{channel}.tif", plane)
    return folder


@pytest.fixture
def write_config(tmp_path: Path, plate: Path) -> WriteConfig:
    """Write a config that runs on `plate`; keywords replace whole sections."""

    def write(name: str = "config.yaml", **sections: Any) -> Path:
        config = {
            "input": {"path": str(plate), "pattern": "{well}_z{z}_c{channel}.tif"},
            "steps": [{"use": "gaussian", "with": {"sigma": 1.0}}],
            "output": {"path": str(tmp_path / "out"), "name": "{well}_c{channel}"},
        } | sections
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def make_config(write_config: WriteConfig) -> Callable[..., RunConfig]:
    """The same, loaded."""

    def make(**sections: Any) -> RunConfig:
        return load_config(write_config(**sections))

    return make


@pytest.fixture
def impatient_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a real cluster is given seconds for, is over at once here."""
    monkeypatch.setattr(driver_module, "TICK_S", 0.005)
    for module in (driver_module, crew_module):
        monkeypatch.setattr(module, "JUDGEMENT_S", 0.0)
