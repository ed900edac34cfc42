"""An attempt with several stacks: what it reads, keeps and writes, and what is left where writing fails."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from scheduler.core.events import Done, Failed, OutOfMemory
from scheduler.core.model import Device, DeviceKind
from scheduler.execution import writing
from scheduler.execution.attempt import run_attempt
from scheduler.execution.run_settings import WorkerSettings
from scheduler.execution.runs_here import working_for
from scheduler.execution.task import AttemptReport, AttemptTask, OutputTarget
from scheduler.execution.worker import WorkerState
from scheduler.images.arrays import ArrayFile
from scheduler.images.ngff import image_attributes
from scheduler.images.options import DEFAULT_OPTIONS
from scheduler.images.plates import Destination
from scheduler.images.sources import stack_of_files
from scheduler.images.zarr_out import level_scales, write_group
from scheduler.steps.resolve import StepSpec

HOST = Device("CPU-localhost", "cpu", DeviceKind.CPU, 1 << 62)
IMAGE, NUCLEI = np.full((2, 3, 5), 4, np.uint16), np.full((1, 3, 5), 7, np.uint8)
MODULE = """
def both(image, nuclei, *, gain):
    return {"labels": nuclei + 1, "image": image * gain}, {"area": [1, 2]}

def table(stack):
    return stack, {"area": [len(stack)]}
"""
MakeTask = Callable[..., AttemptTask]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[WorkerState]:
    """This process as a CPU's worker."""
    made = WorkerState(WorkerSettings(f"named-{secrets.token_hex(3)}", str(tmp_path), (HOST,)), HOST, HOST)
    with working_for(made):
        yield made
    made.close()


@pytest.fixture
def make_task(tmp_path: Path, state: WorkerState) -> MakeTask:
    """A job of an array and a file, with a gain from a file; labels, image and a table come out."""
    name = f"named_{secrets.token_hex(3)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    np.save(tmp_path / "gain.npy", np.full((3, 5), 3, np.uint16))
    tifffile.imwrite(tmp_path / "nuclei.tif", NUCLEI)
    common: dict[str, Any] = {"declare": {"input": "numpy"}, "search_path": (str(tmp_path),)}
    inputs, arrays = ["image", "nuclei"], {"gain": ArrayFile.of(tmp_path / "gain.npy")}
    both = StepSpec(
        f"{name}:both",
        inputs=dict(zip(inputs, inputs, strict=True)),
        outputs=("labels", "image"),
        arrays=arrays,
        **common,
    )
    table = StepSpec(f"{name}:table", **common)

    def make(*more: str, **changes: Any) -> AttemptTask:
        steps = (both, *(table for _ in more))
        places = {each: Destination(tmp_path / f"{each}.tif") for each in ("labels", "image")}
        output = OutputTarget(
            str(tmp_path / "labels.tif"), "tiff", False, {}, stacks=places, fields=(("well", "A01"),)
        )
        source = {"image": IMAGE.copy(), "nuclei": stack_of_files(tmp_path / "nuclei.tif")}
        types = ("numpy",) * len(steps)
        return replace(AttemptTask("a", "kind", 1, source, steps, types, 0, 1000, output), **changes)

    return make


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.stem in ("labels", "image") or "part" in path.name}


def test_everything_is_written_reported_and_returned(
    state: WorkerState, make_task: MakeTask, tmp_path: Path
) -> None:
    report, returned = run_attempt(make_task(returns_array=True))
    assert isinstance(report.outcome, Done)
    assert report.result == ((1, 3, 5), "uint8")
    assert [(each.name, each.shape, each.dtype) for each in report.outputs] == [
        ("labels", (1, 3, 5), "uint8"),
        ("image", (2, 3, 5), "uint16"),
        ("both", (2, 1), ""),
    ]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "image.tif"), IMAGE * 3)
    assert (tmp_path / "labels.csv").read_text().split() == ["well,area", "A01,1", "A01,2"]
    assert returned is not None
    np.testing.assert_array_equal(returned.arrays["labels"], NUCLEI + 1)
    assert returned.tables == {"both": {"area": [1, 2]}}
    (step,) = report.steps
    assert step.parameters["gain"]["file"] == str(tmp_path / "gain.npy")
    assert state.pools.memory("cpu").in_use == 0


def test_an_array_is_read_once_for_a_process(
    state: WorkerState, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = ArrayFile.read
    monkeypatch.setattr(ArrayFile, "read", lambda file: (reads.append(file), read(file))[1])
    for job_id in "ab":
        run_attempt(make_task(job_id=job_id, output=None))
    assert len(reads) == 1


def test_an_array_that_changed_fails_the_job_by_name(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task()
    np.save(tmp_path / "gain.npy", np.full((3, 5), 9, np.uint16))
    report, _ = run_attempt(task)
    assert isinstance(report.outcome, Failed)
    assert "gain.npy has changed since the run began" in report.outcome.error
    assert not report.began_to_write
    assert written(tmp_path) == set()


def failing_on(name: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    write = writing.write_stack

    def stack(path: Path, *rest: Any, **keywords: Any) -> Path:
        if path.stem == name:
            raise error
        return write(path, *rest, **keywords)

    monkeypatch.setattr(writing, "write_stack", stack)


def attempt_twice(task: AttemptTask, monkeypatch: pytest.MonkeyPatch) -> list[AttemptReport]:
    first, _ = run_attempt(task)
    monkeypatch.undo()
    second, _ = run_attempt(replace(task, number=2))
    return [first, second]


def test_what_was_written_before_a_failure_is_not_in_the_way_of_the_next_attempt(
    make_task: MakeTask, tmp_path: Path, state: WorkerState
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failing_on("image", MemoryError("no room to compress"), patch)
        first, second = attempt_twice(make_task(), patch)
    assert isinstance(first.outcome, OutOfMemory)
    assert isinstance(second.outcome, Done)
    assert written(tmp_path) == {"labels.tif", "image.tif", "labels.csv"}


def test_two_tables_of_one_name_are_told_and_nothing_is_left(make_task: MakeTask, tmp_path: Path) -> None:
    report, _ = run_attempt(make_task("table"))
    assert isinstance(report.outcome, Failed)
    assert "two steps give a table for" in report.outcome.error
    assert written(tmp_path) == set()


def test_a_table_that_is_there_is_not_replaced(make_task: MakeTask, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("mine")
    report, _ = run_attempt(make_task())
    assert isinstance(report.outcome, Failed)
    assert "labels.csv exists already" in report.outcome.error
    assert written(tmp_path) == {"labels.csv"}
    task = make_task()
    assert task.output is not None
    report, _ = run_attempt(replace(task, output=replace(task.output, overwrite=True)))
    assert isinstance(report.outcome, Done)
    assert (tmp_path / "labels.csv").read_text().startswith("well,area")


def test_a_channel_that_a_failed_attempt_has_written_is_replaced_by_the_next(
    make_task: MakeTask, tmp_path: Path, state: WorkerState
) -> None:
    shared, version = tmp_path / "shared.ome.zarr", DEFAULT_OPTIONS.zarr_version
    attributes = image_attributes(
        version,
        "shared",
        axes="czyx",
        levels=level_scales(1, 4),
        physical_size_um=None,
        channel_names=["image", "nuclei"],
        value_range=(0, 1),
        provenance={},
    )
    write_group(shared, version, attributes)
    places = {name: Destination(shared, channel, 2) for channel, name in enumerate(["image", "nuclei"])}
    output = OutputTarget(str(shared), "ome-zarr", False, {}, stacks=places)
    source = {"image": IMAGE, "nuclei": IMAGE}
    task = replace(make_task(), source=source, steps=(), memory_types=(), output=output)
    write, calls = writing.write_stack, [1, 2]

    def second_fails(*arguments: Any, **keywords: Any) -> Path:
        if calls.pop() == 1:
            raise MemoryError("no room to encode")
        return write(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "write_stack", second_fails)
        first, _ = run_attempt(task)
    assert isinstance(first.outcome, OutOfMemory)
    assert first.began_to_write
    again = replace(task, number=2, output=replace(output, overwrite=first.began_to_write))
    second, _ = run_attempt(again)
    assert isinstance(second.outcome, Done), second.outcome
    assert [record.channel for record in second.outputs] == [0, 1]
