"""State that a run doesn't use on a device goes when another run requests the room, and only then."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.core.model import Device, DeviceKind
from scheduler.execution.yielding import LOOK_S, UNUSED_S, Yielding
from scheduler.host.reading import Reading
from scheduler.host.reservations import Grant, Reservations

MIB = 1 << 20
GPU = Device("GPU-1", "gpu0", DeviceKind.CUDA, 100 * MIB)


class Residents:
    """State of 30 MiB, last used at 0 s, with a reservation of its own."""

    def __init__(self, table: Reservations) -> None:
        self._table = table
        self.evicted: list[str] = []
        grant = table.reserve("model", {GPU.uuid: 30 * MIB}, read=read)
        assert isinstance(grant, Grant)
        self._grant: Grant | None = grant

    def unused(self, since: float) -> int:
        return 30 * MIB if since >= 0 and self._grant is not None else 0

    def make_room(self, *, unused_since: float, why: str) -> None:
        assert self.unused(unused_since)
        assert self._grant is not None
        self._table.release(self._grant)
        self._grant = None
        self.evicted.append(why)


def read(uuid: str) -> Reading:
    return Reading(uuid, GPU.total_bytes, 0)


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Reservations]:
    """The table as another run sees it."""
    with Reservations(tmp_path / "table", run="others") as table:
        yield table


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Reservations]:
    with Reservations(tmp_path / "table", run="own") as table:
        yield table


@pytest.fixture
def residents(table: Reservations) -> Residents:
    return Residents(table)


@pytest.fixture
def yielding(table: Reservations, residents: Any) -> Yielding:
    return Yielding(GPU, residents, table, read)


def seen(others: Reservations) -> int:
    """What another run could request."""
    return sum(process.unused_bytes for process in others.processes(GPU.uuid))


def test_what_is_unused_for_a_while_is_shown_until_the_end(yielding: Yielding, others: Reservations) -> None:
    yielding.look(UNUSED_S - 0.1)
    assert seen(others) == 0
    yielding.look(UNUSED_S)
    assert seen(others) == 30 * MIB
    yielding.close()
    assert seen(others) == 0


def test_it_goes_when_that_makes_the_room_and_the_reason_is_told(
    yielding: Yielding, residents: Residents, others: Reservations
) -> None:
    yielding.look(UNUSED_S)
    assert residents.evicted == [], "nobody asks"
    others.request(GPU.uuid, 80 * MIB)
    yielding.look(UNUSED_S + LOOK_S / 2)
    assert residents.evicted == [], "the table isn't read each time"
    yielding.look(UNUSED_S + LOOK_S)
    assert residents.evicted == ["another run needs 80 MiB on gpu0: unused state goes"]
    yielding.look(UNUSED_S + 2 * LOOK_S)
    assert seen(others) == 0
    assert isinstance(others.reserve("big", {GPU.uuid: 80 * MIB}, read=read), Grant)


@pytest.mark.parametrize(
    ("nbytes", "why"), [(70 * MIB, "it is free already"), (101 * MIB, "nobody is helped")]
)
def test_it_stays_where_that_changes_nothing(
    yielding: Yielding, residents: Residents, others: Reservations, nbytes: int, why: str
) -> None:
    others.request(GPU.uuid, nbytes)
    yielding.look(UNUSED_S)
    assert residents.evicted == [], why


def test_what_the_own_run_requests_is_not_asked_of_itself(
    yielding: Yielding, residents: Residents, table: Reservations
) -> None:
    table.request(GPU.uuid, 80 * MIB)
    yielding.look(UNUSED_S)
    assert residents.evicted == []


def test_state_in_use_is_not_requested(
    yielding: Yielding, residents: Residents, others: Reservations
) -> None:
    others.request(GPU.uuid, 80 * MIB)
    yielding.look(UNUSED_S / 2)
    assert residents.evicted == []
