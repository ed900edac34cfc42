"""Small stacks on disk, in the ways in which microscopes and programs write them."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

PATTERN = "{well}_s{site}_z{z}_c{channel}.tif"


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    """A random array of the dtype's whole range: `pixels((3, 5, 7), "uint16")`."""

    def make(shape: tuple[int, ...], dtype: str = "uint16", seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        kind = np.dtype(dtype)
        if kind.kind == "f":
            return generator.standard_normal(shape).astype(kind)
        if kind.kind == "b":
            return generator.integers(0, 2, shape).astype(kind)
        info = np.iinfo(kind)
        return generator.integers(info.min, info.max, shape, dtype=kind, endpoint=True)

    return make


@pytest.fixture
def plate(tmp_path: Path, pixels: Callable[..., np.ndarray]) -> tuple[Path, dict[str, np.ndarray]]:
    """Wells A01 and B02, one site, channels 1 and 2, 4 planes of 12 × 10; and the stacks by name."""
    folder = tmp_path / "plate"
    folder.mkdir()
    stacks = {}
    for number, (well, channel) in enumerate([("A01", 1), ("A01", 2), ("B02", 1), ("B02", 2)]):
        stack = pixels((4, 12, 10), seed=number)
        stacks[f"well-{well}_site-1_channel-{channel}"] = stack
        for z, plane in enumerate(stack):
            tifffile.imwrite(folder / f"{well}_s1_z{z:02d}_c{channel}.tif", plane)
    return folder, stacks


@dataclass(frozen=True, slots=True)
class Unprivileged:
    """A folder that may be read and not written; root would be let in everywhere, so it acts as nobody."""

    folder: Path
    uid: int

    @contextlib.contextmanager
    def as_owner(self) -> Iterator[None]:
        """Whoever runs the tests again, with the folder open for writing."""
        os.seteuid(self.uid)
        self.folder.chmod(0o755)
        yield
        self.folder.chmod(0o555)
        if self.uid == 0:
            os.seteuid(65534)


@pytest.fixture
def unprivileged() -> Iterator[Unprivileged]:
    # pytest's own folders are closed to other users
    folder, uid = Path(tempfile.mkdtemp()), os.geteuid()
    held = Unprivileged(folder, uid)
    folder.chmod(0o555)
    if uid == 0:
        os.seteuid(65534)
    try:
        yield held
    finally:
        os.seteuid(uid)
        folder.chmod(0o755)
        for path in folder.iterdir():
            path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.fixture
def foreign_image() -> Callable[..., None]:
    """Writes an OME-Zarr image by zarr alone: `foreign_image(path, data, "czyx", "0.4", chunks=…)`."""

    def write(path: Path, data: np.ndarray, axes: str, version: str = "0.5", **options: object) -> None:
        group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
        array = group.create_array("data/full", shape=data.shape, dtype=data.dtype, **options)
        array[...] = data
        kinds = {"t": "time", "c": "channel"}
        multiscale = {
            "axes": [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes],
            "datasets": [
                {
                    "path": "data/full",
                    "coordinateTransformations": [{"type": "scale", "scale": [1.0] * len(axes)}],
                }
            ],
        }
        if version == "0.4":
            group.attrs["multiscales"] = [multiscale | {"version": version}]
        else:
            group.attrs["ome"] = {"version": version, "multiscales": [multiscale]}

    return write
