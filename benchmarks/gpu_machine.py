"""Which NVIDIA GPUs are here, and which distributions Stackyard would need; the standard library alone."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME_BYTES = 128
# Beside our own dependencies: what the tests import, the libraries under test, and whom we are compared with.
TESTS = ("pytest", "pytest-timeout", "hypothesis", "ml_dtypes")
FRAMEWORKS = (("cupy-cuda13x", "cupy-cuda12x"), ("torch",), ("jax",), ("tensorflow",), ("pyclesperanto",))
PEERS = (("rmm-cu13", "rmm-cu12"), ("dask-cuda",), ("arraybridge",))
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:>=\s*([0-9.]+))?")


@dataclass(frozen=True)
class Gpu:
    """A device as CUDA's driver tells of it: name, total bytes."""

    name: str
    total_bytes: int


@dataclass(frozen=True)
class Missing:
    """A distribution that isn't here, or is too old: what to ask pip for, and what is here instead."""

    requirement: str
    found: str

    def __str__(self) -> str:
        return f"{self.requirement} ({f'{self.found} is here' if self.found else 'not installed'})"


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The CUDA devices that this process may use, and why there are none; no context is made."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (), "no NVIDIA driver is installed"
    status = driver.cuInit(0)
    count = ctypes.c_int()
    status = status or driver.cuDeviceGetCount(ctypes.byref(count))
    if status == 100 or (not status and not count.value):  # CUDA_ERROR_NO_DEVICE
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        because = "" if hidden is None else f" with CUDA_VISIBLE_DEVICES={hidden!r}"
        return (), f"the NVIDIA driver has no device{because}"
    if status:
        return (), f"the NVIDIA driver doesn't work: CUDA error {status} (does nvidia-smi?)"
    return tuple(_describe(driver, ordinal) for ordinal in range(count.value)), ""


def _describe(driver: Any, ordinal: int) -> Gpu:
    device, total = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    driver.cuDeviceGetName(name, NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    return Gpu(name.value.decode(errors="replace"), int(total.value))


def driver_versions() -> dict[str, str]:
    """The driver's version by NVML, and the newest CUDA that it supports."""
    found = {}
    try:
        version = ctypes.c_int()
        if not ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            found["cuda_driver"] = f"{version.value // 1000}.{version.value % 1000 // 10}"
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(NAME_BYTES)
        if not nvml.nvmlInit_v2() and not nvml.nvmlSystemGetDriverVersion(text, NAME_BYTES):
            found["driver"] = text.value.decode()
    except OSError as error:
        found["driver"] = f"unknown: {error}"
    return found


def machine(gpus: Iterable[Gpu]) -> dict[str, Any]:
    """What the figures depend on; nothing that names the host."""
    first, *_ = gpus
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return {
        "device": first.name,
        "device_gib": round(first.total_bytes / (1 << 30), 1),
        **driver_versions(),
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": installed(
            ("numpy", "stackyard", *_flat(FRAMEWORKS), *_flat(PEERS), "dask", "nvidia-ml-py")
        ),
    }


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those distributions that are here."""
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version}


def missing_dependencies(pyproject: Path = ROOT / "pyproject.toml") -> list[Missing]:
    """Stackyard's own dependencies that aren't here, or are older than it needs, and those of its tests."""
    project = tomllib.loads(pyproject.read_text())
    groups: Mapping[str, list[Any]] = project.get("dependency-groups", {})
    wanted = list(project["project"]["dependencies"])
    named = {
        _parsed(each)[0]: each
        for each in (*groups.get("test", ()), *groups.get("frameworks", ()))
        if isinstance(each, str)
    }
    wanted += [named.get(name, name) for name in TESTS]
    return [lacking for each in wanted if (lacking := _lacking(each)) is not None]


def missing_libraries(cuda: str) -> tuple[list[str], list[str]]:
    """Frameworks and peers that aren't here, by the name that fits a driver's CUDA version."""
    newest = 0 if cuda.startswith("13") else -1
    return tuple(  # type: ignore[return-value]
        [names[newest] for names in groups if not any(_version(name) for name in names)]
        for groups in (FRAMEWORKS, PEERS)
    )


def carry_command(requirements: Iterable[str]) -> str:
    """How to bring wheels to a machine without the network."""
    python = ".".join(platform.python_version_tuple()[:2])
    wanted = " ".join(f"'{each}'" for each in requirements)
    return (
        f"where there is a network: python3 -m pip download --dest wheels --only-binary=:all: "
        f"--python-version {python} --platform manylinux_2_28_{platform.machine()} {wanted}; "
        f"then here: python3 -m pip install --no-index --find-links wheels {wanted}"
    )


def _lacking(requirement: str) -> Missing | None:
    name, least = _parsed(requirement)
    version = _version(name)
    if version and _numbers(version) >= _numbers(least):
        return None
    return Missing(f"{name}>={least}" if least else name, version)


def _parsed(requirement: str) -> tuple[str, str]:
    match = _REQUIREMENT.match(requirement)
    assert match is not None
    return match[1], match[2] or ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _flat(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(name for names in groups for name in names)
