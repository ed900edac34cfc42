"""Why a nanny has its worker process end: what it was asked for, or the memory that it has."""

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from scheduler.execution.departure import _outgrown


def worker(limit_bytes: int | None, nanny: str | None = "tcp://nanny:1") -> Any:
    return SimpleNamespace(nanny=nanny, memory_manager=SimpleNamespace(memory_limit=limit_bytes))


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def test_a_process_near_its_limit_is_ended_for_its_memory() -> None:
    told = _outgrown(worker(resident()))
    assert told.startswith("its nanny ends it, for it had ")
    assert "its memory limit is " in told


@pytest.mark.parametrize(
    "other",
    [
        lambda: worker(10 * resident()),
        lambda: worker(None),
        lambda: worker(0),
        lambda: worker(resident(), None),
    ],
    ids=["far from its limit", "without a limit", "a limit of 0", "without a nanny"],
)
def test_any_other_process_was_asked_for_another_reason(other: Any) -> None:
    assert _outgrown(other()) == ""
