"""Tables as CSV, and what killed writers leave behind."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

from scheduler.images.atomic import partial_path, remove_partials
from scheduler.images.errors import OutputError
from scheduler.images.tables import write_table

FIELDS = {"well": "A01", "name": 'ü,"x"'}


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_fields_of_the_job_are_in_every_row(tmp_path):
    columns = {"label": np.array([1, 2]), "area": np.array([3.5, 0.1], "float64")}
    path = write_table(tmp_path / "sub" / "t.csv", columns, fields=FIELDS)
    assert rows(path) == [
        ["well", "name", "label", "area"],
        ["A01", 'ü,"x"', "1", "3.5"],
        ["A01", 'ü,"x"', "2", "0.1"],
    ]


def test_no_rows_is_a_header(tmp_path):
    path = write_table(tmp_path / "t.csv", {"label": []}, fields=FIELDS)
    assert rows(path) == [["well", "name", "label"]]


def test_unusable_tables(tmp_path):
    with pytest.raises(OutputError, match=r"the same length, but these have \{'a': 2, 'b': 1\}"):
        write_table(tmp_path / "t.csv", {"a": [1, 2], "b": [1]}, fields={})
    with pytest.raises(OutputError, match=r"\['well'\] are named like fields"):
        write_table(tmp_path / "t.csv", {"well": [1]}, fields=FIELDS)
    (tmp_path / "t.csv").touch()
    with pytest.raises(FileExistsError, match="exists already"):
        write_table(tmp_path / "t.csv", {"a": [1]}, fields={})
    assert write_table(tmp_path / "t.csv", {"a": [1]}, fields={}, overwrite=True).stat().st_size > 0


KILLED_WRITER = """
import os, sys
from pathlib import Path
from scheduler.images.atomic import partial_path
partial_path(Path(sys.argv[1], "a")).write_bytes(b"x")
folder = partial_path(Path(sys.argv[1], "b.zarr"))
folder.mkdir()
(folder / "zarr.json").touch()
print(os.getpid(), flush=True)
os._exit(9)
"""


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert killed.returncode == 9
    ours, precious = partial_path(tmp_path / "x"), tmp_path / "a.part"
    for path in (ours, precious):
        path.touch()
    remove_partials([tmp_path], [])
    assert len(os.listdir(tmp_path)) == 4
    remove_partials([tmp_path, tmp_path / "nowhere"], [int(killed.stdout)])
    assert sorted(tmp_path.iterdir()) == sorted([ours, precious])
