"""Rules that hold for the whole tree: light imports, small modules, a quick command line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("memcore", "pools", "scheduler")
FRAMEWORKS = ("torch", "jax", "tensorflow", "cupy", "pyclesperanto")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def modules_after(code: str) -> set[str]:
    """Names in `sys.modules` of a fresh interpreter after it ran `code`."""
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_no_array_framework(package: str) -> None:
    imported = modules_after(f"import {package}")
    assert package in imported
    assert not imported & {*FRAMEWORKS, "numpy", "distributed"}


def test_every_public_name_resolves_without_importing_a_framework() -> None:
    code = "\n".join(
        f"import {package}\nfor name in {package}.__all__: getattr({package}, name)" for package in PACKAGES
    )
    assert not modules_after(code) & set(FRAMEWORKS)


def test_the_command_line_starts_without_numpy_or_distributed() -> None:
    code = (
        "import sys; sys.argv = ['stackyard', '--help']\n"
        "from scheduler.screens.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code"
    )
    assert not modules_after(code) & {*FRAMEWORKS, "numpy", "distributed", "dask", "tifffile", "scipy"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_modules_are_found_at_all() -> None:
    assert len(MODULES) > 30
