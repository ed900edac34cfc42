"""The devices that a config names, as two runs on one host find them."""

import secrets
from contextlib import closing
from pathlib import Path

import pytest

from pools.virtual import VirtualDeviceMemory
from scheduler.config.model import DevicesConfig, MemoryConfig
from scheduler.execution.devices import open_devices


def virtual(*capacities: str, name: str | None = None) -> DevicesConfig:
    gpus = {"virtual": list(capacities)} if name is None else {"virtual": list(capacities), "name": name}
    return DevicesConfig.model_validate({"gpus": gpus, "cpu": False})


def uuids(folder: Path, devices: DevicesConfig) -> list[str]:
    with closing(open_devices(devices, MemoryConfig(), run_dir=folder, jobs=1)) as found:
        return [device.uuid for device in found.devices if device.slots]


def test_runs_whose_folders_have_the_same_name_have_virtual_gpus_of_their_own(tmp_path: Path) -> None:
    one, other = tmp_path / "one/run", tmp_path / "other/run"
    with closing(open_devices(virtual("1GiB"), MemoryConfig(), run_dir=one, jobs=1)):
        assert not set(uuids(other, virtual("2GiB", "2GiB"))) & set(uuids(one, virtual("1GiB")))


def test_a_run_that_goes_on_has_the_same_virtual_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert uuids(Path("run"), virtual("1GiB")) == uuids(tmp_path / "run", virtual("1GiB"))


def test_virtual_gpus_with_a_name_are_shared(tmp_path: Path) -> None:
    name = f"devices-test-{secrets.token_hex(4)}"
    shared = virtual("1GiB", name=name)
    uuid = f"VIRTUAL-{name}-0"
    assert uuids(tmp_path / "one", shared) == uuids(tmp_path / "other", shared) == [uuid]
    VirtualDeviceMemory(uuid).unlink()


def test_a_long_name_of_a_folder_makes_no_name_that_is_too_long(tmp_path: Path) -> None:
    assert len(uuids(tmp_path / ("å" * 120), virtual("1GiB"))) == 1
