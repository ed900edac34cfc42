"""What a run doesn't use is offered, what another one lacks is requested, and no more goes than is of use."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from scheduler.host.reading import Reading
from scheduler.host.requests import REQUEST_S, Requests
from scheduler.host.reservations import Grant, Reservations

GPU = "gpu"
TOTAL = 100
Open = Callable[[str], tuple[Reservations, Requests]]


def read(uuid: str) -> Reading:
    return Reading(uuid, TOTAL, 0)


@pytest.fixture
def open_run(tmp_path: Path) -> Iterator[Open]:
    """A run's way to the table of this test."""
    opened: list[Reservations] = []

    def make(run: str) -> tuple[Reservations, Requests]:
        table = Reservations(tmp_path / "table", run=run)
        opened.append(table)
        return table, Requests(table)

    yield make
    for table in opened:
        table.close()


def keep(table: Reservations, nbytes: int) -> Grant:
    grant = table.reserve("model", {GPU: nbytes}, read=read)
    assert isinstance(grant, Grant)
    return grant


def unused(table: Reservations) -> int:
    """What a run could request."""
    return sum(process.unused_bytes for process in table.processes(GPU))


def rows(table: Reservations) -> int:
    with table.transaction() as connection:
        return sum(
            connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0]
            for name in ("unused_state", "request")
        )


def test_other_runs_see_what_a_run_does_not_use(open_run: Open) -> None:
    (ours, _), (theirs, notes) = open_run("ours"), open_run("theirs")
    keep(theirs, 60)
    notes.note_unused(GPU, 60)
    assert (unused(ours), unused(theirs), ours.processes("another")) == (60, 0, ())
    notes.note_unused(GPU, 0)
    assert (unused(ours), rows(ours)) == (0, 0)


@pytest.mark.parametrize(
    ("wanted", "given"),
    [(41, 41), (100, 100), (40, 0), (101, 0)],
    ids=["just", "all", "is free", "is too much"],
)
def test_what_is_requested_goes_if_that_is_of_use(open_run: Open, wanted: int, given: int) -> None:
    (_, ours), (theirs, notes) = open_run("ours"), open_run("theirs")
    keep(theirs, 60)
    notes.note_unused(GPU, 60)
    assert notes.give_up(GPU, 60, read=read) == 0, "nobody asks"
    ours.request("another", wanted)
    assert notes.give_up(GPU, 60, read=read) == 0
    ours.request(GPU, wanted)
    assert ours.give_up(GPU, 0, read=read) == 0, "it isn't asked of itself"
    assert notes.give_up(GPU, 60, read=read) == given


def test_of_two_that_could_one_gives_way(open_run: Open) -> None:
    (_, ours), (one, of_one), (other, of_other) = (open_run(name) for name in ("ours", "one", "other"))
    grants = [keep(table, 30) for table in (one, other)]
    for notes in (of_one, of_other):
        notes.note_unused(GPU, 30)
    ours.request(GPU, 60)
    assert of_one.give_up(GPU, 30, read=read) == 60
    assert of_other.give_up(GPU, 30, read=read) == 0, "enough is going"
    one.release(grants[0])
    of_one.note_unused(GPU, 0)
    assert of_other.give_up(GPU, 30, read=read) == 0, "enough is free"
    ours.request(GPU, 80)
    assert of_other.give_up(GPU, 30, read=read) == 80


def test_where_one_is_not_enough_both_give_way(open_run: Open) -> None:
    (_, ours), (one, of_one), (other, of_other) = (open_run(name) for name in ("ours", "one", "other"))
    for table, notes in ((one, of_one), (other, of_other)):
        keep(table, 30)
        notes.note_unused(GPU, 30)
    ours.request(GPU, 90)
    assert [notes.give_up(GPU, 30, read=read) for notes in (of_one, of_other)] == [90, 90]


def test_a_request_is_over_once_its_run_is_granted_something_there(open_run: Open) -> None:
    (ours, requests), (theirs, notes) = open_run("ours"), open_run("theirs")
    keep(theirs, 60)
    notes.note_unused(GPU, 60)
    requests.request(GPU, 45)
    keep(ours, 30)
    assert notes.give_up(GPU, 60, read=read) == 0


def test_a_request_that_is_not_made_again_is_forgotten(
    open_run: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, requests), (theirs, notes) = open_run("ours"), open_run("theirs")
    keep(theirs, 60)
    notes.note_unused(GPU, 60)
    requests.request(GPU, 90)
    at = time.time() + REQUEST_S
    monkeypatch.setattr("scheduler.host.requests.time", SimpleNamespace(time=lambda: at))
    assert notes.give_up(GPU, 60, read=read) == 0
    requests.request("another", 10)
    assert rows(theirs) == 2, "what is offered, and the request that counts"


def test_a_run_that_ends_leaves_nothing(open_run: Open) -> None:
    table, requests = open_run("ours")
    keep(table, 60)
    requests.note_unused(GPU, 60)
    requests.request(GPU, 90)
    other, others = open_run("theirs")
    others.request(GPU, 10)
    requests.forget()
    assert rows(other) == 1
    others.forget()
    assert rows(other) == 0


def test_what_a_dead_process_requests_and_offers_counts_for_nothing(open_run: Open, tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from scheduler.host.requests import Requests\n"
        "from scheduler.host.reservations import Reservations\n"
        "requests = Requests(Reservations(Path(sys.argv[1]), run='dead'))\n"
        "requests.request('gpu', 90)\n"
        "requests.note_unused('gpu', 10)\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "table"], check=True)
    table, notes = open_run("ours")
    assert rows(table) == 2
    notes.note_unused(GPU, 60)
    assert notes.give_up(GPU, 60, read=read) == 0
    assert unused(table) == 0
    table.reap()
    assert rows(table) == 1
