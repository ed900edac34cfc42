"""What may go into a job from Python, and where its results may go."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from memcore import StackError
from scheduler.execution.job_ends import job_source, job_target, results_of, tables_of
from scheduler.execution.jobs import Chain
from scheduler.images.errors import InputError, OutputError
from scheduler.images.stack import StackSource
from scheduler.steps.errors import StepError
from scheduler.steps.resolve import StepSpec
from tests.scheduler.execution.small_clusters import STEPS, stack


def chain(**rest: Any) -> Chain:
    return Chain.of([StepSpec(f"{STEPS}:compared", **rest)])


def test_named_stacks_are_arrays_or_files(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", stack())
    source = job_source({"image": stack(), "nuclei": tmp_path / "a.tif"})
    assert isinstance(source, dict)
    assert isinstance(source["nuclei"], StackSource)
    assert source["nuclei"].shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        ({}, InputError, "the names of inputs are words"),
        ({"../a": stack()}, InputError, "the names of inputs are words"),
        ({"a": stack(), "b": 3}, InputError, r"inputs\['b'\] is of type int"),
        ({"a": stack(), "b": stack()[0]}, StackError, r"inputs\['b'\] has the shape \(3, 5\)"),
        ({"a": stack().astype(">f4")}, StackError, r"inputs\['a'\] has the dtype >f4"),
    ],
)
def test_other_inputs_are_refused_by_name(inputs: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        job_source(inputs)


def test_a_step_finds_its_stacks_or_says_which_there_are() -> None:
    both = {"image": "image", "nuclei": "nuclei"}
    source = {"image": stack(), "nuclei": stack()}
    assert results_of(chain(inputs=both, outputs=("sum", "image")), source) == ("sum", "image")
    assert results_of(chain(inputs=both), source) == ("stack",)
    with pytest.raises(StepError, match=r"compared: inputs.nuclei: no stack 'nuclei' .* only 'image'"):
        results_of(chain(inputs=both), {"image": stack()})


def test_each_result_has_a_path(tmp_path: Path) -> None:
    paths = {"b": tmp_path / "b.tif", "a": tmp_path / "a.tif"}
    target = job_target(paths, "run", ["a", "b"], ["cells"])
    assert target is not None
    assert (target.path, target.format, list(target.stacks)) == (str(paths["a"]), "tiff", ["a", "b"])
    assert target.tables == {"cells": str(tmp_path / "a.csv")}
    places = [paths["a"], paths["b"], tmp_path / "a.csv"]
    assert target.claims() == tuple((str(path), None) for path in places)


def test_a_file_where_a_table_would_go_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"a.csv exists already, and a table that compared may give goes"):
        job_target(tmp_path / "a.ome.tif", "run", ["stack"], ["compared"])
    assert (tmp_path / "a.csv").read_text() == "mine"


def test_jobs_whose_tables_have_one_place_claim_it_both(tmp_path: Path) -> None:
    claims = []
    for name in ("a.tif", "a.ome.tif"):
        target = job_target(tmp_path / name, "run", ["stack"], ["compared"])
        assert target is not None
        claims.append(set(target.claims()))
    assert claims[0] & claims[1] == {(str(tmp_path / "a.csv"), None)}


def test_every_step_may_give_a_table_for_each_stack_that_it_is_called_for() -> None:
    source = {"image": stack(), "nuclei": stack()}
    assert tables_of(chain(inputs={"image": "image", "nuclei": "nuclei"}), source) == ("compared",)
    each = Chain.of([StepSpec(f"{STEPS}:doubled")])
    assert tables_of(each, source) == ("image_doubled", "nuclei_doubled")


@pytest.mark.parametrize(
    ("output", "match"),
    [
        ("x.tif", "the job gives a, b: output is a path for each, as {'a': …, 'b': …}"),
        ({"a": "x.tif"}, "output has paths for a, and the job gives a, b"),
        ({"a": "x.tif", "b": "x.tif"}, "one format and different paths"),
        ({"a": "x.tif", "b": "x.ome.tif"}, "one format and different paths"),
        ({"a": "x.tif", "b": "none/x.tif"}, "none/x.tif doesn't exist"),
        ({"a": "x.tif", "b": "x.png"}, "must end in one of"),
    ],
)
def test_other_outputs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Any, match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=match):
        job_target(output, "run", ["a", "b"], [])


def test_a_stack_of_plain_numbers_is_one_job() -> None:
    assert isinstance(job_source(np.zeros((1, 2, 3))), np.ndarray)
