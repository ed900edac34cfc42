"""Figures read as a person writes them, at each boundary of their units."""

import pytest

from scheduler.screens.words import count_text, duration_text, path_text, printable, rate_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.42, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (400_000, "111 h 06 min"),
    ],
)
def test_duration(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("per_s", "text"),
    [
        (8.21, "8.2 jobs/s"),
        (1, "1.0 jobs/s"),
        (0.5, "30.0 jobs/min"),
        (1 / 60, "1.0 jobs/min"),
        (0.01, "36.0 jobs/h"),
        (0, "0.0 jobs/h"),
    ],
)
def test_rate(per_s, text):
    assert rate_text(per_s) == text


def test_count():
    assert [count_text(number, "job") for number in (0, 1, 2, 12345)] == [
        "0 jobs",
        "1 job",
        "2 jobs",
        "12,345 jobs",
    ]


def test_control_codes_and_undecodable_bytes_are_written_out():
    assert printable("a\x1b[31mb\r\tc\udcffd\nä野") == "a\\x1b[31mb\\r\\tc\\udcffd\nä野"


def test_paths_are_relative_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path_text(tmp_path / "out/a\nb") == "out/a\nb"
    assert path_text("/elsewhere/out") == "/elsewhere/out"
    assert path_text(tmp_path) == "."
