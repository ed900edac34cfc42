"""configs/multi_gpu_virtual.yaml: jobs spread over devices of different size, and leave them to others."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pools.virtual import VirtualDeviceMemory
from scheduler.config import load_config
from scheduler.config.model import RunConfig
from scheduler.execution.run import run
from scheduler.images.sample import write_sample
from tests.scheduler.execution.tiny_runs import decided, tried

pytest.importorskip("torch", reason="needs torch: virtual GPUs hold no NumPy arrays")

YAML = Path(__file__).parents[3] / "configs/multi_gpu_virtual.yaml"
LEFT = 64 << 10


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """The config with planes, and devices, of a 64th of the area; the devices' name is this test's own."""
    sections = yaml.safe_load(YAML.read_text())
    assert sections["devices"]["gpus"]["virtual"] == ["512MiB", "192MiB"]
    sections["devices"]["gpus"] = {"virtual": ["8MiB", "3MiB"], "name": f"test-{secrets.token_hex(4)}"}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / YAML.name).write_text(yaml.safe_dump(sections))
    write_sample(tmp_path / "data/sample", wells=2, sites=2, channels=2, planes=12, size=64)
    return load_config(tmp_path / "configs" / YAML.name)


@pytest.fixture
def devices(config: RunConfig) -> Iterator[list[VirtualDeviceMemory]]:
    gpus = config.devices.gpus
    name, sizes = gpus.name, gpus.virtual  # type: ignore[union-attr]
    found = [VirtualDeviceMemory(f"VIRTUAL-{name}-{i}", int(size)) for i, size in enumerate(sizes)]
    yield found
    for device in found:
        device.unlink()


def test_jobs_spread_by_memory_and_go_to_the_cpu_when_others_take_the_devices(
    config: RunConfig, devices: list[VirtualDeviceMemory]
) -> None:
    free = run(config)
    assert (free.jobs, free.done, free.oom_attempts) == (8, 8, 0)
    on = {name: device["jobs"] for name, device in free.devices.items()}
    assert on["virtual0"] >= 1
    assert on["virtual1"] >= 1
    assert {each.plan["memory_types"][0] for each in tried(free) if each.device != "cpu"} == {"torch"}
    assert [device.used() for device in devices] == [0, 0]

    with contextlib.ExitStack() as hog:
        for device in devices:
            hog.enter_context(device.charge(device.capacity - LEFT, "somebody else"))
        pressed = run(config, overwrite=True)
    assert (pressed.jobs, pressed.done, pressed.oom_attempts) == (8, 8, 0)
    assert {name: device["jobs"] for name, device in pressed.devices.items()} == {
        "virtual0": 0,
        "virtual1": 0,
        "cpu": 8,
    }
    for each in tried(pressed):
        assert "goes to cpu" in decided(pressed, each.job)
        assert "other programs leave 64 KiB" in decided(pressed, each.job)
