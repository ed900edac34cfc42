"""The benchmarks import, their pure parts run, and what they compare is the same work."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import dask
import numpy as np
import pytest
import tifffile

from benchmarks import chain_contenders, end_to_end, execution, measure, report, rows, scaling
from benchmarks.chain_turns import Turns
from benchmarks.rows import Row
from scheduler.execution.chain import chain_halo
from scheduler.steps.resolve import resolve_step

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_it_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # scripts put the root of the tree in front
    if name == "memcore_conversion":
        for library in ("torch", "pyclesperanto"):
            pytest.importorskip(library)
    assert importlib.import_module(f"benchmarks.{name}")


def test_every_benchmark_of_the_runner_is_there() -> None:
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in report.ORDER)


# the README and the results


def test_the_readmes_table_is_that_of_the_results() -> None:
    text = (ROOT / "README.md").read_text()
    shown = text.partition(report.BEGIN)[2].partition(report.END)[0]
    assert shown.strip() == json.loads((RESULTS / "bench.json").read_text())["short"].strip()


def test_the_tables_are_what_the_results_say_and_every_row_has_a_peer(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    kept = json.loads((RESULTS / "bench.json").read_text())
    found = report.write_again(tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text()) == kept
    assert (tmp_path / "README.md").read_text() == (RESULTS / "README.md").read_text()
    assert found
    assert all(row.peer and (row.ratio is not None or row.note or row.theirs) for row in found)
    readme = tmp_path / "page.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.fill(readme, tmp_path)
    assert readme.read_text() == f"before\n{report.BEGIN}\n{kept['short']}\n{report.END}\nafter\n"


def test_a_missed_target_and_an_absent_peer_are_shown() -> None:
    missed = Row("b", "work", "peer", "2 s", "1 s", 2.0, 1.9, 2.1, "<= 1.3")
    absent = Row("b", "work", "joblib", note="joblib isn't installed")
    lines = report.table([missed, absent])
    assert lines[2] == "| work | 2 s | peer | 1 s | 2 (1.9–2.1) | **≤ 1.3: missed** |"
    assert lines[3] == "| work | – | joblib | – | joblib isn't installed | – |"


@pytest.mark.parametrize(
    ("target", "ratio", "met"), [("<= 1.3", 1.3, True), ("<= 1.3", 1.31, False), (">= 1", 0.9, False)]
)
def test_a_target_is_met_up_to_its_limit(target: str, ratio: float, met: bool) -> None:
    assert Row("b", "w", "p", ratio=ratio, target=target).met is met


def test_quick_results_are_held_to_no_target(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = Row("execution", "work", "peer", "2 s", "1 s", 2.0, target="<= 1.0")
    (tmp_path / "execution.json").write_text(json.dumps({"rows": rows.as_json([row])}))
    about = {**measure.machine(), "command": "make bench-quick", "size": "quick"}
    assert [each.met for each in report.write(tmp_path, about)] == [None]


# measuring


def test_contenders_take_turns_and_each_round_begins_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PAUSE_S", 0.0)
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = measure.take_turns(runs, 3, after=lambda: order.append("-"))
    assert "".join(order) == "a-b-c-" + "a-b-c-" + "b-c-a-" + "c-a-b-"
    assert [len(each.wall) for each in times.values()] == [3, 3, 3]


def test_a_ratio_is_taken_round_by_round() -> None:
    # the second round was ten times slower for both
    ratio = measure.Ratio.of([1.0, 20.0, 3.0], [1.0, 10.0, 1.0])
    assert (ratio.low, ratio.median, ratio.high) == (1.5, 2.0, 2.5)


def test_the_peak_of_a_process_is_seen() -> None:
    with measure.PeakMemory(lambda: [measure.psutil.Process().pid]) as peak:
        pass
    assert peak.nbytes > 1 << 20


# what is compared


def test_the_halo_of_the_hand_written_blocks_is_the_chains() -> None:
    steps = [(resolve_step(step["use"], with_=step["with"]), "numpy") for step in chain_contenders.STEPS]
    reach = chain_halo(steps)
    assert reach is not None
    assert reach[1][1:] == (chain_contenders.HALO, chain_contenders.HALO)


def test_blocks_and_a_loop_and_our_steps_give_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_image")
    monkeypatch.setattr(chain_contenders, "BLOCK", 128)
    (source,) = chain_contenders.make_inputs(tmp_path / "in", 1, (3, 256, 256))
    chain_contenders.loop([(source, tmp_path / "loop.tif")])
    dask.compute(chain_contenders.overlapped(source, tmp_path / "blocks.tif"), scheduler="synchronous")
    ours = tifffile.imread(source)
    for step in chain_contenders.STEPS:
        resolved = resolve_step(step["use"], with_=step["with"])
        ours = resolved.step.implementation_for("numpy")(ours, **resolved.parameters)
    assert ours.std() > 0
    for name in ("loop.tif", "blocks.tif"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / name), ours, strict=True)


def test_a_wrong_pixel_is_noticed(tmp_path: Path) -> None:
    source, expected = tmp_path / "a.tif", tmp_path / "a.ome.tif"
    for path in (source, expected):
        tifffile.imwrite(path, np.zeros((2, 8, 8), np.uint16))
    turns = Turns(tmp_path, [source], [expected])

    def run(pairs: chain_contenders.Pairs) -> None:
        tifffile.imwrite(pairs[0][1], np.eye(8, dtype=np.uint16)[None].repeat(2, 0))

    turns.of(chain_contenders.Contender("wrong", run, list))()
    with pytest.raises(AssertionError, match=r"other pixels than the loop's in a\.ome\.tif"):
        turns.clear()


def test_every_size_has_its_scale() -> None:
    for module in (execution, end_to_end, scaling):
        assert set(module.SCALES) == {"quick", "default", "full"}


# scaling, simulated


def test_devices_are_compared_by_what_placing_a_job_costs() -> None:
    points, found = scaling.by_devices((1,))
    assert points[0]["ours"]["oom"] == 0
    assert found[0].ratio is not None


def test_clusters_are_doubled_until_the_devices_are_busy() -> None:
    # one scheduler gives a job every 50 ms, and 40 devices want one every 25 ms
    points, (row,) = scaling.by_clusters(0.05, 40)
    assert [point["clusters"] for point in points] == [1, 2]
    assert points[0]["kept"] == pytest.approx(0.5, abs=0.05)
    assert row.ratio is not None
    assert row.ratio < 0.6
    assert "20 jobs/s" in row.note
