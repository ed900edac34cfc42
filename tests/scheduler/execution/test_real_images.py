"""Whole runs on microscopy images that nobody here made: those that scikit-image's wheel carries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from scheduler.config import RunConfig
from scheduler.execution.run import run
from scheduler.steps.gaussian import gaussian
from scheduler.steps.richardson_lucy import richardson_lucy

data = pytest.importorskip("skimage.data", reason="needs scikit-image")
CARRIED = Path(data.__file__).parent

MakeConfig = Callable[..., RunConfig]
STEPS = [
    {"use": "gaussian", "with": {"sigma": [0, 1, 1]}, "memory": "numpy"},
    {"use": "richardson_lucy", "with": {"sigma": [0, 1, 1], "iterations": 2}, "memory": "numpy"},
]


def by_hand(stack: np.ndarray) -> np.ndarray:
    result: np.ndarray = richardson_lucy(gaussian(stack, sigma=[0, 1, 1]), sigma=[0, 1, 1], iterations=2)
    return result


def outputs_of(
    make_config: MakeConfig, path: Path, pattern: str, template: str, **select: Any
) -> dict[str, np.ndarray]:
    """Run the two steps on the stacks of a folder; returns what was written, by name."""
    config = make_config(
        input={"path": str(path), "pattern": pattern, "select": select},
        steps=STEPS,
        output={"path": "out", "name": template},
    )
    summary = run(config)
    assert summary.exit_status == 0, summary.failures
    written = sorted(config.output.path.glob("*.ome.tif"))
    assert len(written) == summary.jobs
    return {file.name.removesuffix(".ome.tif"): tifffile.imread(file) for file in written}


def cut(image: np.ndarray, height: int) -> np.ndarray:
    """Strips of one height, from top to bottom, as the planes of a stack."""
    tops = range(0, image.shape[0] - height + 1, height)
    return np.stack([image[top : top + height] for top in tops])


def test_grey_and_colour_images_cut_into_slices(tmp_path: Path, make_config: MakeConfig) -> None:
    folder = tmp_path / "slices"
    folder.mkdir()
    expected = {}
    for name, image in {"cell": data.cell(), "micro": data.microaneurysms()}.items():
        stack = cut(image, 30)
        expected[f"{name}_g"] = by_hand(stack)
        for z, plane in enumerate(stack):
            tifffile.imwrite(folder / f"{name}_g_{z}.tif", plane)
    colours = cut(data.immunohistochemistry(), 64)
    for sample, colour in enumerate("rgb"):
        expected[f"ihc_{colour}"] = by_hand(colours[..., sample])
        for z, plane in enumerate(colours[..., sample]):
            tifffile.imwrite(folder / f"ihc_{colour}_{z}.tif", plane)
    found = outputs_of(make_config, folder, "{name}_{colour}_{z}.tif", "{name}_{colour}")
    assert set(found) == set(expected)
    for name, stack in expected.items():
        np.testing.assert_array_equal(found[name], stack, strict=True)


def test_a_multi_page_tiff(make_config: MakeConfig) -> None:
    found = outputs_of(make_config, CARRIED, "{name}.tif", "{name}", name="multipage")
    expected = by_hand(tifffile.imread(CARRIED / "multipage.tif"))
    np.testing.assert_array_equal(found["multipage"], expected, strict=True)


def test_an_ome_tiff_stack_keeps_its_physical_size(tmp_path: Path, make_config: MakeConfig) -> None:
    folder = tmp_path / "ome"
    folder.mkdir()
    stack = cut(data.cell(), 60)
    metadata = {
        "axes": "ZYX",
        "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0,
        "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm", "PhysicalSizeZUnit": "µm",
        "Channel": {"Name": "phase"},
    }  # fmt: skip
    tifffile.imwrite(folder / "cell.ome.tif", stack, ome=True, metadata=metadata)
    found = outputs_of(make_config, folder, "{name}.ome.tif", "{name}_sharp")
    np.testing.assert_array_equal(found["cell_sharp"], by_hand(stack), strict=True)
    with tifffile.TiffFile(tmp_path / "out" / "cell_sharp.ome.tif") as file:
        description = file.ome_metadata or ""
    for part in ('PhysicalSizeZ="2.0"', 'PhysicalSizeY="0.5"', 'Name="phase"'):
        assert part in description
