"""The pieces of `benchmarks/gpu.py`, rehearsed on host memory: every line runs, and no figure is kept."""

import importlib
import json
import re
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_clock import LEAST_ROUNDS, Bench, Timing, rows_of
from benchmarks.gpu_runs import busy_seconds

IN_PROCESS = ["transfers", "stacking", "conversions", "pools", "pinned", "out_of_memory"]


def test_every_piece_is_a_function_that_says_what_it_measures() -> None:
    for name, module in gpu.PIECES.items():
        assert getattr(importlib.import_module(module), name).__doc__


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_piece_runs_through(name: str) -> None:
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("jax", reason="needs jax")
    bench = Bench(gpu=False, seconds=0.0, shrink=1 << 14, types=("torch", "jax"))
    rows = getattr(importlib.import_module(gpu.PIECES[name]), name)(bench)
    assert rows
    assert not [note for note in bench.notes if "failed" in note]
    json.dumps(rows)


def test_whole_runs_are_counted_from_their_journals() -> None:
    pytest.importorskip("torch", reason="needs torch")
    from benchmarks.gpu_runs import STEPS, end_to_end

    bench = Bench(gpu=False, seconds=0.0, shrink=1024, types=("torch",))
    ours, loop = end_to_end(bench)
    assert (ours["what"], ours["stacks"], ours["plans"]) == ("ours on the GPU", 3, "virtual:torch")
    assert 0 <= ours["idle"] < 1
    assert ours["simulated"] > 0
    assert loop["stacks"] == 3
    assert len(STEPS) == 3
    assert [note.partition(":")[0] for note in bench.notes] == ["the GPU and the CPU", "the CPU"]


def test_candidates_take_turns_and_one_that_fails_is_left_out() -> None:
    calls: list[str] = []

    def fail() -> None:
        raise RuntimeError("no room\nfor this")

    bench = Bench(gpu=False, seconds=0.0, types=())
    candidates = {"a": lambda: calls.append("a"), "fails": fail, "b": lambda: calls.append("b")}
    timings = bench.compare(candidates, ())
    assert set(timings) == {"a", "b"}
    assert len(timings["a"].seconds) == LEAST_ROUNDS
    assert bench.notes == ["fails failed: RuntimeError: no room"]
    # The warm-ups of each, and then a stretch of the one and of the other in turns.
    turns = re.sub(r"(.)\1*", r"\1", "".join(calls))
    assert turns == "ab" * (1 + LEAST_ROUNDS)


def test_rows_are_relative_to_ours() -> None:
    ours, other = rows_of({"ours": Timing((1.0, 2.0, 3.0)), "x": Timing((4.0,))}, "ours", 10**9, library="t")
    assert (ours["ms"], ours["least"], ours["most"], ours["GB/s"], ours["times ours"]) == (
        2e3,
        1e3,
        3e3,
        0.5,
        1,
    )
    assert (other["what"], other["times ours"], other["library"]) == ("x", 2.0, "t")
    assert rows_of({"x": Timing((4.0,))}, "ours", 1)[0]["times ours"] is None


def test_busy_time_counts_overlapping_stays_once() -> None:
    assert busy_seconds([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 4.0


def test_a_rehearsal_writes_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(["pools", "--rehearse", "--json", str(tmp_path / "result.json")])
    assert ended.value.code == 2
    assert "a rehearsal has no result to write" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_piece_that_needs_more_than_there_is_is_skipped_with_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(gpu.PIECES, "dask_cuda", "benchmarks.no_such_piece")
    assert gpu.measure("dask_cuda", 1.0)["state"] == "skipped"


def test_a_piece_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bench: Bench) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("benchmarks.gpu_pools.pools", fail)
    result = gpu.measure("pools", 1.0, rehearse=True)
    assert (result["state"], result["reason"]) == ("failed", "RuntimeError: the device is gone")
