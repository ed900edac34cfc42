"""When a process is replaced since its memory keeps growing."""

import pytest

from scheduler.execution.growth import RISES, SETTLED_AFTER, Growth

MIB = 1 << 20
ALLOWED = 100 * MIB


def looks(*mib: int) -> list[str]:
    """What is said after each look; figures in MiB."""
    growth = Growth(ALLOWED)
    return [growth.look(each * MIB, trimmed=lambda each=each: each * MIB) for each in mib]


def test_the_first_looks_only_find_where_the_process_settles() -> None:
    assert SETTLED_AFTER == 2
    assert looks(0, 10_000, 10_000) == ["", "", ""]


def test_growth_beyond_what_is_allowed_is_told_with_its_figure() -> None:
    said = looks(0, 500, 550, 600, 601)
    assert said[:4] == ["", "", "", ""]
    assert said[4] == (
        "its memory keeps growing: 101 MiB more than after its first jobs, and no array of the pools "
        "is the cause"
    )


def test_as_much_as_is_allowed_is_allowed() -> None:
    assert looks(0, 500, 550, 580, 600) == [""] * 5


def test_one_jump_is_no_leak() -> None:
    assert RISES == 3
    assert looks(0, 500, 500, 500, 5000, 5000, 5000) == [""] * 7


def test_a_fall_in_between_begins_the_count_anew() -> None:
    assert looks(0, 500, 700, 800, 750, 900, 950) == [""] * 7
    assert looks(0, 500, 700, 800, 750, 900, 950, 1000)[-1]


def test_growth_counts_from_the_least_that_there_was() -> None:
    assert looks(0, 500, 400, 450, 480, 500) == [""] * 6
    assert looks(0, 500, 400, 450, 480, 501)[-1].startswith("its memory keeps growing: 101 MiB")


def test_what_goes_when_the_heap_is_trimmed_is_no_leak() -> None:
    growth = Growth(ALLOWED)
    for mib in (0, 500, 550, 600):
        assert not growth.look(mib * MIB, trimmed=lambda: 0)
    assert not growth.look(650 * MIB, trimmed=lambda: 520 * MIB)
    for mib in (530, 540, 601):
        said = growth.look(mib * MIB, trimmed=lambda: 601 * MIB)
    assert said


@pytest.mark.parametrize("jobs", [10, 100])
def test_a_process_that_swings_about_is_kept(jobs: int) -> None:
    assert not any(looks(0, 500, *([400, 450, 700, 450] * jobs)))


def test_a_steady_leak_is_found_when_it_has_passed_what_is_allowed() -> None:
    said = looks(0, *range(500, 800, 10))
    first = next(number for number, text in enumerate(said) if text)
    # 500 is the second look; 100 MiB more is allowed; so 610 is the first too many.
    assert first == 1 + 11
