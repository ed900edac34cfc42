"""A real Slurm for the tests that need one, started once in each process of the tests."""

import os
from collections.abc import Iterator

import pytest

from tests.scheduler.slurm_node import node


@pytest.fixture(scope="session")
def slurm_variables() -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands speak to a real Slurm of two nodes on this machine.

    Skipped where it can't be had; with STACKYARD_REQUIRE_SLURM (CI) that is a failure.
    """
    missing = node.missing_programs()
    reason = f"needs slurm-wlm and munge: no {', '.join(missing)} here" if missing else ""
    if not missing:
        try:
            with node.slurm_node() as variables:
                yield variables
                return
        except node.SlurmStartError as error:
            reason = str(error)
    if os.environ.get("STACKYARD_REQUIRE_SLURM"):
        pytest.fail(f"{reason}; but Slurm is required here")
    pytest.skip(reason)


@pytest.fixture
def slurm(slurm_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same for this process, and for what it starts."""
    for name, value in slurm_variables.items():
        monkeypatch.setenv(name, value)
    return slurm_variables
