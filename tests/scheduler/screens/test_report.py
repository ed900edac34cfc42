"""The page about a run: everything in the journal, nothing from the network, whatever the names are."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from pools import PoolStats
from scheduler.config import RunConfig
from scheduler.execution.journal import Journal
from scheduler.execution.prepare import find_groups
from scheduler.execution.task import OutputRecord
from scheduler.images.outputs import prepare_output, write_stack
from scheduler.images.sample import write_sample
from scheduler.screens import cli
from scheduler.screens.report.figures import place_in_slots
from scheduler.screens.report.records import AttemptRow, DeviceRow, JobRow, ResultRow, RunRows, read_run
from scheduler.screens.report.thumbnails import before_and_after, png

MIB = 1 << 20
BEGAN = 1_700_000_000.0
CONFIG = {
    "input": {"path": "img", "pattern": "{well}_s{site}_z{z}_c{channel}.tif"},
    "steps": [{"use": "gaussian", "with": {"sigma": 1}}],
    "output": {"path": "out", "name": "{well}_s{site}"},
}

PLATE_IMAGE = {
    "version": "0.5",
    "multiscales": [
        {
            "axes": [
                {"name": "c", "type": "channel"},
                *({"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"),
            ],
            "datasets": [
                {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1, 1]}]}
            ],
        }
    ],
}


def make_journal(run_dir: Path, config: dict[str, object] | None = None) -> Journal:
    run_dir.mkdir(parents=True)
    journal = Journal.create(
        run_dir / "journal.sqlite", version="0.1", host="a-host", started_at=BEGAN, config=config or {}
    )
    journal.add_device("GPU-1", "gpu0", "cuda", virtual=False, total_bytes=1024 * MIB, slots=1)
    journal.add_device("CPU-1", "cpu", "cpu", virtual=False, total_bytes=4096 * MIB, slots=2)
    return journal


def add_attempt(
    journal: Journal, job: str, device: str, start_s: float, end_s: float, outcome: str, **detail: object
) -> None:
    plan = {"name": "cuda:torch", "memory_types": ["torch"], "conversions": ["numpy to torch, 6 MiB"]}
    journal.start_attempt(
        job, 1, device=device, plan=plan, device_bytes=100 * MIB, host_bytes=50 * MIB, at=BEGAN + start_s
    )
    journal.end_attempt(job, 1, outcome=outcome, detail=detail, at=BEGAN + end_s)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with a job done on the GPU, one failed on the CPU, and memory readings."""
    journal = make_journal(tmp_path / "run")
    for job in ("good", "<b>bad</b>"):
        journal.add_job(job, output=None, shape=(2, 3, 4), dtype="uint16", at=BEGAN)
    journal.add_decision("good", verdict="admit", reason="runs alone on gpu0", inputs={}, at=BEGAN + 1)
    add_attempt(journal, "good", "GPU-1", 1.0, 5.0, "done", device_peak_bytes=80 * MIB, host_peak_bytes=None)
    journal.end_job("good", state="done", reason="done on gpu0", at=BEGAN + 5)
    add_attempt(journal, "<b>bad</b>", "CPU-1", 2.0, 3.0, "failed", error="boom")
    journal.end_job("<b>bad</b>", state="failed", reason="<script>alert(1)</script>", at=BEGAN + 3)
    for at, used in ((1.0, 100 * MIB), (2.0, None), (3.0, 300 * MIB), (4.0, 200 * MIB)):
        journal.add_memory(
            "GPU-1",
            total_bytes=1024 * MIB,
            used_bytes=used,
            reserved_bytes=100 * MIB,
            idle_bytes=20 * MIB,
            external_bytes=50 * MIB,
            at=BEGAN + at,
        )
    journal.end_run(state="done", at=BEGAN + 6)
    journal.close()
    return tmp_path / "run"


def report(*arguments: object):
    return CliRunner().invoke(cli.app, ["report", *map(str, arguments)])


def page_of(run_dir: Path) -> str:
    result = report(run_dir)
    assert result.exit_code == 0, result.output
    return (run_dir / "report.html").read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees: without scripts, styles and tags."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL))


def test_rows_are_those_of_the_journal(run_dir):
    run = read_run(run_dir)
    assert (run.version, run.host, run.state, run.wall_s) == ("0.1", "a-host", "done", 6.0)
    assert [(device.name, device.total_bytes) for device in run.devices] == [
        ("gpu0", 1024 * MIB),
        ("cpu", 4096 * MIB),
    ]
    good, bad = run.attempts
    assert (good.start_s, good.end_s, good.reserved_bytes, good.peak_bytes) == (1.0, 5.0, 100 * MIB, 80 * MIB)
    # On the CPU what is reserved is host memory.
    assert (bad.outcome, bad.reserved_bytes, bad.peak_bytes) == ("failed", 50 * MIB, None)
    assert [row.used_bytes for row in run.memory] == [100 * MIB, None, 300 * MIB, 200 * MIB]


def test_page_tells_what_happened(run_dir):
    text = " ".join(text_of(page_of(run_dir)).split())
    for said in (
        "2 jobs: 1 done, 1 failed",
        "done after 6.0 s",
        "2 attempts, 0 out of memory",
        "gpu0 cuda 1 GiB 1 1 67 %",
        "cpu cpu 4 GiB 2 0 8 %",
        "runs alone on gpu0",
        "numpy to torch, 6 MiB",
    ):
        assert said in text


def test_page_draws_timeline_memory_and_peaks(run_dir):
    page = page_of(run_dir)
    for title in ("Where and when", "Memory of gpu0 (1 GiB)", "Reserved and measured peak"):
        assert title in page
    # One reading is no curve.
    assert "Memory of cpu" not in page


def test_names_and_reasons_are_text_and_no_markup(run_dir):
    page = page_of(run_dir)
    assert '<td class="reason">&lt;b&gt;bad&lt;/b&gt;</td>' in page
    assert "<script>alert(1)" not in page
    assert "<b>bad" not in page.replace("\\u003c", "<").split("Bokeh.safely")[0].split("</script>")[-1]


def test_page_needs_no_other_file(run_dir):
    page = page_of(run_dir)
    outside = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<(link|iframe)\b", outside)
    assert not re.search(r"<script[^>]*\bsrc=", page)
    assert all(source.startswith("data:") for source in re.findall(r'<img[^>]*src="([^"]*)"', page))


def test_a_run_that_goes_on_and_one_without_any_attempt(tmp_path):
    journal = make_journal(tmp_path / "going")
    journal.add_job("a", output=None, shape=(1, 1, 1), dtype="uint8", at=BEGAN)
    journal.commit()
    text = " ".join(text_of(page_of(tmp_path / "going")).split())
    assert "1 job: 1 waiting" in text
    journal.start_attempt(
        "a", 1, device="CPU-1", plan={"name": "p"}, device_bytes=0, host_bytes=1, at=BEGAN + 1
    )
    journal.add_decision("a", verdict="admit", reason="r", inputs={}, at=BEGAN + 4)
    journal.commit()
    run = read_run(tmp_path / "going")
    assert (run.state, run.wall_s, run.attempts[0].end_s, run.attempts[0].outcome) == (
        "running",
        4.0,
        None,
        "running",
    )
    assert "1 job: 1 running" in " ".join(text_of(page_of(tmp_path / "going")).split())
    journal.close()


def test_attempts_whose_driver_died_end_where_the_next_begins_or_with_the_run(tmp_path):
    journal = make_journal(tmp_path / "run")
    for job, starts in (("a", (1, 5)), ("b", (2,))):
        journal.add_job(job, output=None, shape=(1, 1, 1), dtype="uint8", at=BEGAN)
        for number, start in enumerate(starts, 1):
            journal.start_attempt(
                job,
                number,
                device="CPU-1",
                plan={"name": "p"},
                device_bytes=0,
                host_bytes=1,
                at=BEGAN + start,
            )
    journal.end_attempt("a", 2, outcome="done", detail={}, at=BEGAN + 6)
    journal.end_run(state="interrupted", at=BEGAN + 9)
    journal.close()
    ends = {
        (each.job, each.number): (each.end_s, each.outcome) for each in read_run(tmp_path / "run").attempts
    }
    assert ends == {("a", 1): (5.0, "driver_died"), ("a", 2): (6.0, "done"), ("b", 1): (9.0, "driver_died")}


def test_pictures_of_input_and_result(tmp_path):
    write_sample(tmp_path / "img", wells=1, sites=1, channels=1, planes=3, size=64)
    (tmp_path / "out").mkdir()
    result = tmp_path / "out/A01_s1.ome.tif"
    tifffile.imwrite(result, np.eye(64, dtype=np.float32)[None], ome=True, metadata={"axes": "ZYX"})
    config = CONFIG | {"input": CONFIG["input"] | {"path": str(tmp_path / "img")}}
    journal = make_journal(tmp_path / "run", config)
    name = "well-A01_site-1_channel-1"
    for job, output in ((name, str(result)), ("gone", str(tmp_path / "gone.tif"))):
        journal.add_job(job, output=output, shape=(3, 64, 64), dtype="uint16", at=BEGAN)
        journal.end_job(job, state="done", reason="", at=BEGAN + 1)
    journal.end_run(state="done", at=BEGAN + 1)
    journal.close()
    page = page_of(tmp_path / "run")
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 2
    assert "gone: its input isn&#x27;t there any more" in page
    result.unlink()
    page = page_of(tmp_path / "run")
    assert "<img" not in page
    assert f"{name}: " in page


def test_pictures_of_the_images_of_a_plate(tmp_path):
    write_sample(tmp_path / "img", wells=1, sites=1, channels=2, planes=2, size=16)
    name = "plate.ome.zarr/{well}/{site}"
    config = RunConfig.model_validate({
        **CONFIG,
        "input": {"path": str(tmp_path / "img"), "pattern": "{well}_s{site}_z{z}_c{channel}.tif"},
        "output": {"path": str(tmp_path / "out"), "name": name, "format": "ome-zarr"},
    })
    sources = [group.stacks[0][1] for group in find_groups(config)]
    jobs = []
    for index, place in enumerate(prepare_output(tmp_path / "out", name, sources, "ome-zarr")):
        stack = np.full((2, 16, 16), index + 1, np.uint16)
        stack[:, 0, : 8 * (index + 1)] = 200
        write_stack(place.path, stack, format="ome-zarr", channel=place.channel, channels=place.channels)
        result = ResultRow("stack", str(place.path), place.channel)
        jobs.append(
            JobRow(sources[index].name, "done", "", result.path, (2, 16, 16), "uint16", 0, 1, (result,))
        )
        (pair,) = before_and_after(config, jobs[-1:])
        assert (pair.problem, pair.after) == ("", png(stack[0]))
    assert len(jobs) == 2


def test_pictures_of_several_stacks_of_a_job(tmp_path):
    write_sample(tmp_path / "img", wells=1, sites=1, channels=2, planes=3, size=64)
    (tmp_path / "out").mkdir()
    names = ("nuclei", "labels")
    for name in names:
        picture = np.eye(64, dtype=np.float32)[None]
        tifffile.imwrite(tmp_path / f"out/{name}.ome.tif", picture, ome=True, metadata={"axes": "ZYX"})
    shared = zarr.create_group(tmp_path / "out/p.ome.zarr", attributes={"ome": PLATE_IMAGE})
    shared.create_array("0", data=np.zeros((2, 1, 8, 8), np.uint8), dimension_names=list("czyx"))
    config = CONFIG | {
        "input": CONFIG["input"] | {"path": str(tmp_path / "img")},
        "steps": [{"use": "my:seg", "inputs": {"image": {"channel": 1}, "nuclei": {"channel": 2}}}],
    }
    journal = make_journal(tmp_path / "run", config)
    job = "well-A01_site-1"
    journal.add_job(
        job, output=str(tmp_path / "out/nuclei.ome.tif"), shape=(3, 64, 64), dtype="uint16", at=BEGAN
    )
    written = [
        OutputRecord(name, str(tmp_path / f"out/{name}.ome.tif"), (1, 64, 64), "float32") for name in names
    ]
    written.append(OutputRecord("second", str(tmp_path / "out/p.ome.zarr"), (1, 8, 8), "uint8", channel=1))
    written.append(OutputRecord("seg", str(tmp_path / "out/seg.csv"), (3, 2)))
    journal.set_result(job, shape=(1, 64, 64), dtype="float32", outputs=written)
    journal.end_job(job, state="done", reason="", at=BEGAN + 1)
    journal.end_run(state="done", at=BEGAN + 1)
    journal.close()
    page = page_of(tmp_path / "run")
    shown = re.findall(r'<img src="data:[^"]*" alt="([^"]*) after"', page)
    assert shown == [f"{job}: nuclei", f"{job}: labels", f"{job}: second"]
    # A result is shown beside the input of its name.
    before = re.findall(r'<img src="(data:[^"]*)" alt="[^"]* before"', page)
    assert len(set(before)) == 2


@pytest.mark.parametrize(
    "plane",
    [
        np.arange(700 * 500, dtype=np.uint16).reshape(700, 500),
        np.zeros((1, 1)),
        np.full((5, 7), np.nan),
        np.eye(9, dtype=bool),
    ],
)
def test_pictures_are_small_and_of_eight_bits(plane):
    import base64
    import io

    picture = Image.open(io.BytesIO(base64.b64decode(png(plane).partition(",")[2])))
    assert picture.mode == "L"
    assert max(picture.size) <= 320
    if plane.shape == (700, 500):
        assert picture.getextrema() == (0, 255)
        assert picture.size == (167, 234)


def test_an_attempt_that_stood_in_its_worker_s_queue_takes_no_lane_there():
    times = {"read_s": 0.5, "compute_s": 1.0, "write_s": 0.5}
    first = AttemptRow("a", 1, "cpu", "p", (), 1.0, 3.0, "done", 0, None, times)
    queued = AttemptRow("b", 1, "cpu", "p", (), 1.0, 4.96, "done", 0, None, times)
    silent = AttemptRow("c", 1, "cpu", "p", (), 1.0, 3.5, "worker_died", 0, None, {})
    device = DeviceRow("cpu", "cpu", "cpu", False, 1, 2)
    run = RunRows("", "", "done", 0.0, 5.0, {}, (device,), (), (first, queued, silent), (), ())
    placed = {attempt.job: (attempt.start_s, lane[1]) for attempt, lane in place_in_slots(run)}
    # b seems to begin 40 ms before a ends, as the driver hears of that end a little later.
    assert placed == {"a": (1.0, 0), "c": (1.0, 1), "b": (3.0, 0)}
    assert queued.work(5.0) == pytest.approx((2.96, 4.96))
    assert silent.work(5.0) == (1.0, 3.5)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20), st.sampled_from(["a", "b"])), max_size=30))
def test_attempts_in_one_lane_never_overlap(spans):
    attempts = tuple(
        AttemptRow(f"j{index}", 1, device, "p", (), start, start + length, "done", 0, None, {})
        for index, (start, length, device) in enumerate(spans)
    )
    devices = tuple(DeviceRow(name, name, "cuda", False, 1, 1) for name in "ab")
    run = RunRows("", "", "done", 0.0, 50.0, {}, devices, (), attempts, (), ())
    lanes: dict[tuple[str, int], list[AttemptRow]] = {}
    for attempt, lane in place_in_slots(run):
        assert lane[0] == attempt.device
        lanes.setdefault(lane, []).append(attempt)
    assert sum(map(len, lanes.values())) == len(attempts)
    for row in lanes.values():
        assert all(one.end_s <= other.start_s for one, other in pairwise(row))


@pytest.mark.parametrize("content", [b"", b"no database" * 100])
def test_no_journal_of_a_run(tmp_path, content):
    (tmp_path / "journal.sqlite").write_bytes(content)
    result = report(tmp_path)
    assert result.exit_code == 2
    assert "can't be read" in result.stderr
    assert not (tmp_path / "report.html").exists()


def test_output_elsewhere(run_dir, tmp_path):
    result = report(run_dir, "--output", tmp_path / "page.html")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'page.html'}\n")
    assert (tmp_path / "page.html").exists()
    assert not (run_dir / "report.html").exists()


def test_json(run_dir):
    page = str(run_dir / "report.html")
    assert json.loads(report(run_dir, "--json").stdout) == {"run_dir": str(run_dir), "report": page}


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("STACKYARD_REQUIRE_CHROMIUM"), reason="no Chromium here"
)
def test_page_opens_in_a_browser_without_an_error(run_dir, tmp_path):
    assert CHROMIUM is not None, "STACKYARD_REQUIRE_CHROMIUM is set, and there is no Chromium"
    page_of(run_dir)
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            # Nothing of its own over the network, which may be none.
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-quic",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=10000",
            "--dump-dom",
            (run_dir / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert not re.findall(r"^.*:(?:ERROR|WARNING|SEVERE):CONSOLE.*$", done.stderr, re.MULTILINE)
    # The figures were drawn: Bokeh replaces each placeholder with its own element.
    assert done.stdout.count('class="bk-Figure"') == 3


def test_what_pools_did_is_added_up_over_processes_each_as_it_told_last(tmp_path: Path) -> None:
    journal = make_journal(tmp_path / "run")
    for number, (pid, hits, misses) in enumerate([(1, 0, 1), (1, 3, 1), (2, 5, 1)]):
        job = f"job{number}"
        journal.add_job(job, output=None, shape=(2, 3, 4), dtype="uint16", at=BEGAN)
        stats = asdict(PoolStats(hits, misses, bytes_peak=6 * MIB, bytes_trimmed=MIB, refused=1))
        add_attempt(
            journal, job, "CPU-1", number, number + 1.0, "done", worker_pid=pid, pools={"numpy on cpu": stats}
        )
    journal.end_run(state="done", at=BEGAN + 6)
    journal.close()
    assert read_run(tmp_path / "run").pools() == {
        ("CPU-1", "numpy on cpu"): PoolStats(8, 2, bytes_peak=12 * MIB, bytes_trimmed=2 * MIB, refused=2)
    }
    page = page_of(tmp_path / "run")
    cells = ["cpu", "numpy on cpu", "10", "80 %", "12 MiB", "2 MiB", "2"]
    row = page.partition("<h2>Pools</h2>")[2].partition("</table>")[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == cells
