"""Fixtures for every test: a safe import order, and no silent skip of a framework that CI must have."""

import contextlib
import os

import pytest

# Several libraries share a GPU here: JAX and TensorFlow would take most of it at their first use.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

# PoCL's LLVM crashes the process if it is loaded after TensorFlow's; loaded before it works.
with contextlib.suppress(ImportError):
    import pyclesperanto  # noqa: F401

REQUIRED = frozenset(filter(None, os.environ.get("STACKYARD_REQUIRE_BACKENDS", "").split(",")))


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
