"""State that a run doesn't use goes when another run requests its room, in a thread of its own."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.core.model import Device, DeviceKind
from scheduler.execution.yielding import LOOK_S, UNUSED_S, Yielding
from scheduler.host.reading import Reading
from scheduler.host.requests import Requests
from scheduler.host.reservations import Grant, Reservations

MIB = 1 << 20
GPU = Device("GPU-1", "gpu0", DeviceKind.CUDA, 100 * MIB)


class Residents:
    """State of 30 MiB, last used at 0 s, with a reservation of its own."""

    def __init__(self, table: Reservations) -> None:
        self._table = table
        self.torn_down = threading.Event()
        self.torn_down.set()
        self.in_use = False
        grant = table.reserve("model", {GPU.uuid: 30 * MIB}, read=read)
        assert isinstance(grant, Grant)
        self._grant: Grant | None = grant

    def unused(self, now: float, for_s: float) -> dict[str, int]:
        return {"model": 30 * MIB} if now >= for_s and self._grant is not None else {}

    def evict(self, name: str) -> bool:
        assert name == "model"
        assert self._grant is not None
        if self.in_use:
            return False
        assert self.torn_down.wait(20)
        self._table.release(self._grant)
        self._grant = None
        return True


def read(uuid: str) -> Reading:
    return Reading(uuid, GPU.total_bytes, 0)


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Reservations]:
    """The table as another run sees it."""
    with Reservations(tmp_path / "table", run="others") as table:
        yield table


@pytest.fixture
def residents(tmp_path: Path) -> Iterator[Residents]:
    with Reservations(tmp_path / "table", run="own") as table:
        yield Residents(table)


@pytest.fixture
def told() -> list[tuple[str, str]]:
    """What has gone, and why."""
    return []


@pytest.fixture
def yielding(residents: Any, told: list[tuple[str, str]]) -> Yielding:
    requests = Requests(residents._table)
    return Yielding(
        GPU,
        residents,
        requests,
        read=read,
        accounting=threading.Lock(),
        on_evicted=lambda *news: told.append(news),
    )


def offered(others: Reservations) -> int:
    """What another run could request."""
    return sum(process.unused_bytes for process in others.processes(GPU.uuid))


def ended(yielding: Yielding) -> None:
    assert yielding._evicting is not None
    yielding._evicting.join(20)


def test_what_is_unused_for_a_while_is_offered_until_the_end(
    yielding: Yielding, others: Reservations
) -> None:
    yielding.look(UNUSED_S - 0.1)
    assert offered(others) == 0
    yielding.look(UNUSED_S)
    assert offered(others) == 30 * MIB
    yielding.withdraw()
    assert offered(others) == 0


def test_it_goes_when_it_is_requested_and_the_reason_is_told(
    yielding: Yielding, told: list[tuple[str, str]], others: Reservations
) -> None:
    yielding.look(UNUSED_S)
    Requests(others).request(GPU.uuid, 80 * MIB)
    yielding.look(UNUSED_S + LOOK_S / 2)
    assert yielding._evicting is None, "the table isn't read each time"
    yielding.look(UNUSED_S + LOOK_S)
    ended(yielding)
    assert told == [("model", "model is put away: another run needs 80 MiB on gpu0")]
    yielding.look(UNUSED_S + 2 * LOOK_S)
    assert offered(others) == 0
    assert isinstance(others.reserve("big", {GPU.uuid: 80 * MIB}, read=read), Grant)


def test_a_teardown_that_takes_long_holds_nobody_up(
    yielding: Yielding, residents: Residents, told: list[tuple[str, str]], others: Reservations
) -> None:
    residents.torn_down.clear()
    Requests(others).request(GPU.uuid, 80 * MIB)
    for turn in range(4):
        yielding.look(UNUSED_S + turn * LOOK_S)
    assert told == []
    residents.torn_down.set()
    yielding.close()
    assert [name for name, _ in told] == ["model"]


def test_what_was_taken_up_again_stays_and_is_offered_later(
    yielding: Yielding, residents: Residents, told: list[tuple[str, str]], others: Reservations
) -> None:
    residents.in_use = True
    requests = Requests(others)
    requests.request(GPU.uuid, 80 * MIB)
    yielding.look(UNUSED_S)
    ended(yielding)
    assert (told, offered(others)) == ([], 0)
    yielding.look(UNUSED_S + LOOK_S / 2)
    assert offered(others) == 30 * MIB
    residents.in_use = False
    yielding.look(UNUSED_S + LOOK_S)
    ended(yielding)
    assert [name for name, _ in told] == ["model"]
