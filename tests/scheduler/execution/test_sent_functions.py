"""What the driver sends to workers without waiting for it runs there at all."""

import inspect
from collections.abc import Callable

import pytest

from scheduler.execution.worker_plugin import cancel_here, evict_here, hurry_here, reclaim_here


@pytest.mark.parametrize("function", [cancel_here, evict_here, hurry_here, reclaim_here])
def test_it_is_a_coroutine_as_dask_demands(function: Callable[..., object]) -> None:
    # Of any other function a worker says "Combination not supported" in its log, and does nothing.
    assert inspect.iscoroutinefunction(function)
