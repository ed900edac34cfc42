"""Runs whose jobs have several stacks, arrays from files, tables, and outputs that several jobs share."""

import csv
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from scheduler.config import RunConfig
from scheduler.execution.devices import DevicesError
from scheduler.execution.journal import Journal
from scheduler.execution.prepare import look
from scheduler.execution.resume import resume
from scheduler.execution.run import run
from scheduler.execution.task import OutputRecord
from scheduler.images.errors import InputError, OutputError

MakeConfig = Callable[..., RunConfig]
STEPS = '''
import numpy as np
from scipy import ndimage
from memcore import memory_types

@memory_types("numpy", output_like=lambda shape, dtype: (shape, "int32"))
def segment(nuclei, *, image, gain, level):
    """Gives labels, the image over the gain, and a table of the labels."""
    labels, count = ndimage.label(nuclei > level)
    numbers = np.arange(1, count + 1)
    table = {"label": numbers, "mean": ndimage.mean(image, labels, numbers)}
    return {"labels": labels.astype(np.int32), "image": (image / gain).astype(np.float32)}, table
'''
BOTH = {"image": {"channel": 1}, "nuclei": {"channel": 2}}
GAIN = np.linspace(1, 2, 31 * 37, dtype=np.float32).reshape(31, 37)


@pytest.fixture
def two_channels(tmp_path: Path, make_config: MakeConfig) -> RunConfig:
    """Both channels are projected by themselves and then segmented together."""
    (tmp_path / "mysegment.py").write_text(STEPS)
    np.save(tmp_path / "gain.npy", GAIN)
    segment: dict[str, Any] = {"use": "mysegment:segment", "inputs": BOTH, "outputs": ["labels", "image"]}
    segment |= {"with": {"level": 3500}, "arrays": {"gain": "gain.npy"}}
    return make_config(
        steps=[{"use": "max_projection", "memory": "numpy"}, segment],
        output={"path": "out", "name": "{well}/{stack}", "compression": "zlib"},
    )


def stack_of(plate: Path, well: str, channel: int) -> np.ndarray:
    return np.stack([tifffile.imread(path) for path in sorted(plate.glob(f"{well}_z*_c{channel}.tif"))])


def test_two_channels_become_labels_an_image_and_a_table(
    plate: Path, two_channels: RunConfig, tmp_path: Path
) -> None:
    summary = run(two_channels)
    assert (summary.jobs, summary.done, summary.exit_status) == (2, 2, 0)
    out = tmp_path / "out"
    nuclei = stack_of(plate, "A01", 2).max(axis=0, keepdims=True)
    image = stack_of(plate, "A01", 1).max(axis=0, keepdims=True)
    labels, count = ndimage.label(nuclei > 3500)
    # tifffile drops an axis of one plane
    np.testing.assert_array_equal(tifffile.imread(out / "A01/labels.ome.tif"), labels[0])
    np.testing.assert_array_equal(tifffile.imread(out / "A01/image.ome.tif"), (image / GAIN)[0])
    with tifffile.TiffFile(out / "A01/labels.ome.tif") as file:
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"
        assert 'Name="labels"' in (file.ome_metadata or "")
    with (out / "A01/segment.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["well", "label", "mean"]
    assert len(rows) == count + 1
    assert rows[1][:2] == ["A01", "1"]
    journal = Journal.open_readonly(Path(summary.run_dir, "journal.sqlite"))
    job = next(journal.jobs())
    assert (job.job_id, job.output) == ("well-A01", str(out / "A01/labels.ome.tif"))
    assert job.outputs == (
        OutputRecord("labels", str(out / "A01/labels.ome.tif"), (1, 31, 37), "int32"),
        OutputRecord("image", str(out / "A01/image.ome.tif"), (1, 31, 37), "float32"),
        OutputRecord(
            "segment",
            str(out / "A01/segment.csv"),
            (count, 2),
            digest=hashlib.sha256((out / "A01/segment.csv").read_bytes()).hexdigest(),
        ),
    )
    with pytest.raises(OutputError, match=r"4 of 4 outputs exist already"):
        run(two_channels)

    # What is gone is found out and done again; what is whole stays.
    kept = (out / "B02/labels.ome.tif").stat().st_ino
    (out / "A01/segment.csv").unlink()
    assert resume(summary.run_dir).done == 2
    assert (out / "A01/segment.csv").is_file()
    (out / "A01/image.ome.tif").unlink()
    assert resume(summary.run_dir).done == 2
    assert (out / "A01/image.ome.tif").is_file()
    assert (out / "B02/labels.ome.tif").stat().st_ino == kept
    assert [each.attempts for each in journal.jobs()] == [3, 1]

    # With another gain what is still to be done would be of another kind.
    np.save(tmp_path / "gain.npy", 2 * GAIN)
    with pytest.raises(InputError, match=r"gain.npy has changed since the run began"):
        resume(summary.run_dir)
    for name in ("labels.ome.tif", "image.ome.tif"):
        (out / "A01" / name).unlink()
        (out / "B02" / name).unlink()
    with pytest.raises(OutputError, match=r"2 tables exist already in .*A01: segment.csv"):
        run(two_channels)


def test_channels_of_several_jobs_share_the_images_of_a_plate(
    plate: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(
        steps=[{"use": "max_projection", "memory": "numpy"}],
        output={
            "path": "out",
            "format": "ome-zarr",
            "name": "p.ome.zarr/{well}/1",
            "levels": 2,
            "chunks": [1, 16, 16],
            "zarr_version": "0.5",
        },
    )
    summary = run(config)
    assert (summary.done, summary.exit_status) == (4, 0)
    image = zarr.open_group(tmp_path / "out/p.ome.zarr/B/02/1", mode="r")
    levels = [image[level] for level in ("0", "1")]
    assert [(level.shape, level.chunks) for level in levels] == [
        ((2, 1, 31, 37), (1, 1, 16, 16)),
        ((2, 1, 15, 18), (1, 1, 15, 16)),
    ]
    for channel in (1, 2):
        np.testing.assert_array_equal(levels[0][channel - 1, 0], stack_of(plate, "B02", channel).max(axis=0))
    plate_metadata = zarr.open_group(tmp_path / "out/p.ome.zarr", mode="r").attrs["ome"]["plate"]
    assert [well["path"] for well in plate_metadata["wells"]] == ["A/01", "B/02"]

    with pytest.raises(OutputError, match=r"4 of 4 outputs exist already"):
        run(config)

    # Of what is done nothing is touched.
    labels = tmp_path / "out/p.ome.zarr/A/01/1/zarr.json"
    labels.write_text(labels.read_text().replace("channel 1", "DAPI"))
    resume(summary.run_dir)

    # One channel is damaged, and the metadata of the plate is gone.
    shutil.rmtree(tmp_path / "out/p.ome.zarr/B/02/1/0/c/1")
    (tmp_path / "out/p.ome.zarr/zarr.json").unlink()
    assert resume(summary.run_dir).done == 4
    journal = Journal.open_readonly(Path(summary.run_dir, "journal.sqlite"))
    assert [job.attempts for job in journal.jobs()] == [1, 1, 1, 2]
    assert "DAPI" in labels.read_text()
    assert zarr.open_group(tmp_path / "out/p.ome.zarr", mode="r").attrs["ome"]["plate"] == plate_metadata
    np.testing.assert_array_equal(levels[0][1, 0], stack_of(plate, "B02", 2).max(axis=0))


# before anything runs


@pytest.mark.parametrize(
    ("name", "taken"),
    [("gain", "gain.ome.tif"), ("gain_{well}/{stack}", "gain_A01/image_max_projection.csv")],
)
def test_an_array_that_a_result_would_replace_is_refused(
    plate: Path, two_channels: RunConfig, tmp_path: Path, name: str, taken: str
) -> None:
    place = tmp_path / "out" / taken
    place.parent.mkdir(parents=True)
    if place.suffix == ".csv":
        (place / "there").mkdir(parents=True)
        place = place / "there" / "gain.npy"
        np.save(place, GAIN)
    else:
        tifffile.imwrite(place, GAIN)
    segment = two_channels.steps[1].model_copy(update={"arrays": {"gain": place}})
    output = two_channels.output.model_copy(update={"name": name})
    select = {"well": "A01"}
    config = two_channels.model_copy(
        update={
            "steps": (two_channels.steps[0], segment.model_copy(update={"outputs": ("labels",)})),
            "output": output,
            "input": two_channels.input.model_copy(update={"select": select}),
        }
    )
    with pytest.raises(OutputError, match=rf"{taken} is among the files that are read"):
        look(config)


def test_a_run_that_is_refused_leaves_no_plate(
    plate: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise DevicesError("none of them")

    monkeypatch.setattr("scheduler.execution.run.open_devices", refuse)
    config = make_config(output={"path": "out", "format": "ome-zarr", "name": "p.zarr/{well}/1"})
    for _ in range(2):
        with pytest.raises(DevicesError, match="none of them"):
            run(config)
    assert not (tmp_path / "out/p.zarr").exists()


def test_a_job_has_the_fields_that_its_stacks_share(two_channels: RunConfig, tmp_path: Path) -> None:
    prepared = look(two_channels)
    request = prepared.request(prepared.jobs[1], run_id="r", overwrite=False)
    assert [job.job_id for job in prepared.jobs] == ["well-A01", "well-B02"]
    assert request.forms == (("image", ((3, 31, 37), "uint16")), ("nuclei", ((3, 31, 37), "uint16")))
    assert request.output is not None
    assert request.output.fields == (("well", "B02"),)
    table = str(tmp_path / "out/B02/segment.csv")
    assert request.output.tables["segment"] == table
    assert set(request.output.tables) == {"image_max_projection", "nuclei_max_projection", "segment"}


def test_another_array_makes_another_chain(two_channels: RunConfig, tmp_path: Path) -> None:
    before = look(two_channels).chain.digest
    np.save(tmp_path / "gain.npy", 2 * GAIN)
    assert look(two_channels).chain.digest != before


def test_a_well_without_one_of_its_channels_is_named(two_channels: RunConfig, plate: Path) -> None:
    for path in plate.glob("B02_*_c2.tif"):
        path.unlink()
    with pytest.raises(InputError, match=r"well B02 has 0 stacks for 'nuclei'"):
        look(two_channels)


def test_a_channel_that_is_nowhere_is_named_with_those_there_are(make_config: MakeConfig) -> None:
    steps = [{"use": "max_projection", "inputs": {"image": {"channel": 3}}}]
    config = make_config(steps=steps, output={"path": "out", "name": "{well}"})
    with pytest.raises(InputError, match=r"inputs: image: select: no channel is 3; there are 2: 1, 2"):
        look(config)


def test_tables_of_a_plate_lie_beside_it(two_channels: RunConfig, tmp_path: Path) -> None:
    segment = two_channels.steps[1].model_copy(update={"outputs": ("labels",)})
    output = two_channels.output.model_copy(update={"format": "ome-zarr", "name": "p.zarr/{well}/1"})
    prepared = look(two_channels.model_copy(update={"steps": (segment,), "output": output}))
    assert [job.tables for job in prepared.jobs] == [
        {"segment": tmp_path / f"out/p_well-{well}_segment.csv"} for well in ("A01", "B02")
    ]
