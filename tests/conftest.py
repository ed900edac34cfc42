"""Fixtures for every test: a safe import order, and no silent skip of a framework that CI must have."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Several libraries share a GPU here: JAX and TensorFlow would take most of it at their first use.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

# PoCL's LLVM crashes the process if it is loaded after TensorFlow's; loaded before it works.
with contextlib.suppress(ImportError):
    import pyclesperanto  # noqa: F401

# The same examples each time: a run that fails says something of the change, and a new example that fails is
# looked for on purpose, with `--hypothesis-profile explore`.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("suite")

REQUIRED = frozenset(filter(None, os.environ.get("STACKYARD_REQUIRE_BACKENDS", "").split(",")))


@pytest.fixture(scope="session", autouse=True)
def _own_reservations() -> Iterator[None]:
    """What other runs on this host have reserved is no business of the tests, nor the other way round."""
    shared_memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(
            prefix="stackyard-tests-", dir=shared_memory if shared_memory.is_dir() else None
        ) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("STACKYARD_RESERVATIONS", folder)
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """GPU tests run only when they are asked for by name: `pytest -m gpu`."""
    if "gpu" in (config.option.markexpr or ""):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: run `pytest -m gpu`"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """Where a framework is required (CI), a test skipped for its absence has failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        missing = sorted(name for name in REQUIRED if f"needs {name}" in reason)
        if missing:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: {reason}; but {', '.join(missing)} is required here"
    return report


def pytest_sessionstart() -> None:
    """Every required framework must import before a single test runs."""
    if not REQUIRED:
        return
    from memcore import backend_status

    status = backend_status()
    missing = {name: status[name].reason for name in REQUIRED if not status[name].available}
    if missing:
        raise pytest.UsageError(f"required frameworks can't be used: {missing}")
