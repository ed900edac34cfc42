"""The configs that come with Stackyard load, and each step that they name is there."""

from pathlib import Path

import pytest

from scheduler.config import load_config
from scheduler.steps.resolve import resolve_step

ROOT = Path(__file__).parents[2]
# The stress test's options are no config of a run; tests/scheduler/screens/test_stress.py runs them.
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "stress")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads_and_names_steps_that_there_are(path: Path) -> None:
    config = load_config(path)
    assert config.input.path == ROOT / "data/sample"
    assert config.output.path == ROOT / "out" / path.stem
    for step in config.steps:
        resolved = resolve_step(step.use, with_=step.with_, memory=step.memory)
        assert "numpy" in resolved.step.memory_types


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"quickstart", "multi_gpu", "multi_gpu_virtual"}
