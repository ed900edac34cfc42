"""Waiting for what Slurm and the programs in its jobs do in their own time."""

import time
from collections.abc import Callable

DEADLINE_S = 120.0
POLL_S = 0.05


def wait_until(ready: Callable[[], object], what: str, told: Callable[[], object] = str) -> None:
    """Return once `ready()` is true; after two minutes fail with `what` and what `told()` says."""
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S:g} s; {told()}"
        time.sleep(POLL_S)
