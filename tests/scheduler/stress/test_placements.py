"""A result that is put in place twice is seen, whenever that happens."""

import os

import pytest

from scheduler.stress.placements import Placements


def place(path, text: str) -> None:
    """As results are written: a new file that is renamed."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text)
    os.replace(partial, path)


@pytest.fixture
def results(tmp_path):
    return Placements([tmp_path])


def test_a_result_that_stays_as_it_was(results, tmp_path):
    place(tmp_path / "a", "one")
    results.look()
    results.told(tmp_path / "a")
    results.look()
    assert (results.changed(), results.missing(), results.replaced) == (set(), set(), set())


def test_the_same_bytes_put_in_place_again(results, tmp_path):
    place(tmp_path / "a", "one")
    results.told(tmp_path / "a")
    place(tmp_path / "a", "one")
    assert results.changed() == {tmp_path / "a"}
    assert results.missing() == set()


def test_another_file_of_the_same_time_and_size(results, tmp_path):
    place(tmp_path / "a", "one")
    os.utime(tmp_path / "a", ns=(1, 1))
    results.told(tmp_path / "a")
    place(tmp_path / "a", "two")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert results.changed() == {tmp_path / "a"}


def test_a_result_written_over_in_place(results, tmp_path):
    place(tmp_path / "a", "one")
    results.told(tmp_path / "a")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert results.changed() == {tmp_path / "a"}


def test_a_result_that_isn_t_there_when_it_should_be(results, tmp_path):
    results.told(tmp_path / "a")
    assert results.missing() == {tmp_path / "a"}
    place(tmp_path / "a", "one")
    assert results.missing() == {tmp_path / "a"}
    assert results.changed() == {tmp_path / "a"}


def test_a_result_that_vanishes(results, tmp_path):
    place(tmp_path / "a", "one")
    results.told(tmp_path / "a")
    (tmp_path / "a").unlink()
    assert results.missing() == {tmp_path / "a"}


def test_a_result_replaced_before_its_job_was_told(results, tmp_path):
    place(tmp_path / "a", "one")
    results.look()
    place(tmp_path / "a", "one")
    results.look()
    results.told(tmp_path / "a")
    assert results.replaced == {tmp_path / "a"}
    assert results.changed() == set()


def test_unfinished_files_are_nobodys_result(results, tmp_path):
    for text in ("one", "two"):
        (tmp_path / ".b").write_text(text)
        os.replace(tmp_path / ".b", tmp_path / ".a.part")
        results.look()
    assert results.replaced == set()
