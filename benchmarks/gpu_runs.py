"""Whole runs: stacks from files through background, deconvolution and rescaling to files."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml

from benchmarks.gpu_clock import Bench
from memcore import convert_memory
from scheduler import load_config, run
from scheduler.execution.status import RunSummary
from scheduler.steps.resolve import resolve_step

Rows = list[dict[str, Any]]
STACKS, SHAPE = 20, (32, 1024, 1024)
TRIED_STACKS, TRIED_SHAPE = 3, (4, 40, 48)
STEPS: list[dict[str, Any]] = [
    {"use": "subtract_background", "with": {"radius": 25}},
    {"use": "richardson_lucy", "with": {"sigma": [1.5, 1.2, 1.2], "iterations": 3}},
    {"use": "rescale_intensity", "with": {"percentiles": [1, 99.9]}},
]
REPLAY_LIMIT_S = 60


def end_to_end(bench: Bench) -> Rows:
    """20 stacks of 32 × 1024² uint16 through background, deconvolution (3 iterations) and rescaling.

    `at work` counts from the first attempt to the last; `idle` is the share of that in which the device
    computed nothing and moved nothing; `simulated` is the makespan that replaying the run gives, over the
    measured one.
    """
    rows: Rows = []
    devices: dict[str, Mapping[str, Any]] = {
        "the GPU": {"gpus": [0] if bench.gpu else {"virtual": ["512MiB"]}, "cpu": False},
        "the GPU and the CPU": {"gpus": [0] if bench.gpu else {"virtual": ["512MiB"]}},
        "the CPU": {"gpus": []},
    }
    with _folder() as folder:
        _write_stacks(bench, folder / "in")
        for what, chosen in devices.items():
            if rows and time.monotonic() > bench.ends_at:
                bench.notes.append(f"{what}: no time was left")
                continue
            rows.append({"what": f"ours on {what}", **_run(folder, what, devices=chosen)})
        for library in bench.libraries(("cupy", "torch")):
            rows.append({"what": f"a loop over files with {library}", **_loop(bench, folder, library)})
    return rows


def dask_cuda(bench: Bench) -> Rows:
    """The same stacks on the worker of a `dask_cuda.LocalCUDACluster`, which the run is given by address."""
    from dask_cuda import LocalCUDACluster

    with _folder() as folder:
        _write_stacks(bench, folder / "in")
        with LocalCUDACluster(CUDA_VISIBLE_DEVICES=[0], dashboard_address=None) as cluster:
            address = {"kind": "address", "address": cluster.scheduler_address}
            return [{"what": "ours on dask-cuda's worker", **_run(folder, "dask-cuda", cluster=address)}]


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for inputs, outputs and what the runs learn of these jobs."""
    with tempfile.TemporaryDirectory(prefix="stackyard-gpu-runs-", ignore_cleanup_errors=True) as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name, "cache"))
        yield Path(name)


def _write_stacks(bench: Bench, folder: Path) -> None:
    count, shape = (STACKS, SHAPE) if bench.shrink == 1 else (TRIED_STACKS, TRIED_SHAPE)
    folder.mkdir()
    random = np.random.default_rng(0)
    stack = random.poisson(20, shape).astype(np.uint16)
    for number in range(count):
        stack[0, 0, 0] = number
        tifffile.imwrite(
            folder / f"n{number:02}.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"}
        )


def _run(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    config = {
        "input": {"path": str(folder / "in"), "pattern": "{name}.tif"},
        "steps": STEPS,
        "output": {"path": str(folder / f"out {name}"), "name": "{name}"},
        **sections,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    summary = run(load_config(path))
    if summary.exit_status:
        failures = "; ".join(f"{failure.job}: {failure.reason}" for failure in summary.failures[:3])
        raise RuntimeError(f"{summary.done} of {summary.jobs} jobs done on {name}: {failures}")
    return _figures(summary)


def _figures(summary: RunSummary) -> dict[str, Any]:
    with closing(sqlite3.connect(Path(summary.run_dir, "journal.sqlite"))) as journal:
        tries = journal.execute(
            "SELECT device.name, device.kind, started_at, attempt.ended_at, plan, detail FROM attempt"
            " JOIN device ON device.uuid = attempt.device WHERE outcome = 'done'"
        ).fetchall()
    first, last = min(each[2] for each in tries), max(each[3] for each in tries)
    stays = [
        tuple(stay)
        for _, kind, _, _, _, detail in tries
        if kind != "cpu"
        for stay in json.loads(detail)["on_device"]
    ]
    plans = sorted({json.loads(each[4])["name"] for each in tries})
    return {
        "stacks": summary.done,
        "wall s": summary.wall_s,
        "at work s": last - first,
        "stacks/s at work": summary.done / max(1e-9, last - first),
        "idle": 1 - busy_seconds(stays) / (last - first) if stays else None,
        "out of memory": summary.oom_attempts,
        "simulated": _simulated(summary, last - first),
        "plans": ", ".join(plans),
    }


def busy_seconds(stays: list[tuple[float, float]]) -> float:
    """Seconds in which at least one of the intervals was under way."""
    busy, until = 0.0, float("-inf")
    for began, ended in sorted(stays):
        busy += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return busy


def _simulated(summary: RunSummary, measured_s: float) -> float | None:
    command = [
        sys.executable,
        "-m",
        "scheduler.screens",
        "simulate",
        summary.run_dir,
        "--json",
        "--no-baselines",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=REPLAY_LIMIT_S, check=False)
    if done.returncode:
        return None
    return float(json.loads(done.stdout)["makespan_s"]) / max(1e-9, measured_s)


def _loop(bench: Bench, folder: Path, library: str) -> dict[str, Any]:
    """What one would write by hand: read, upload, the same functions, download, write, one by one."""
    steps = [(resolve_step(each["use"], with_=each["with"]).step, each["with"]) for each in STEPS]
    paths = sorted((folder / "in").glob("*.tif"))
    out = folder / f"loop {library}"
    out.mkdir()
    took: list[float] = []
    for number, path in enumerate([paths[0], *paths]):  # the first warms up: kernels are compiled
        began = time.perf_counter()
        array = convert_memory(tifffile.imread(path), "numpy", library, bench.place, copy=True)
        for step, keywords in steps:
            array = step.implementation_for(library)(array, **keywords)
        result = convert_memory(array, library, "numpy", "cpu")
        tifffile.imwrite(out / path.name, result, photometric="minisblack", metadata={"axes": "ZYX"})
        if number:
            took.append(time.perf_counter() - began)
    return {"stacks": len(took), "at work s": sum(took), "stacks/s at work": len(took) / sum(took)}
