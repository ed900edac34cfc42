"""How far it scales: jobs on real workers, devices in simulation, and where one Dask scheduler ends.

    python benchmarks/scaling.py [--quick | --full] [--out benchmarks/results]

No-op jobs and jobs of 10 ms go through the embedded cluster's workers, beside as many bare Dask tasks on the
same workers. Devices from 1 to 10^4 are simulated, each busy with ten jobs, beside the simplest scheduler on
the same simulated cluster. A Dask scheduler does its work in one thread: what a job costs there bounds the
jobs a second, and so the devices that one cluster keeps busy. That bound is simulated with the cost just
measured, for one cluster and for several with a driver each. Writes scaling.json and scaling.svg with the
machine.
"""

import argparse
import contextlib
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

# ruff: noqa: E402  a file beside this one is named like the package `pools`
ROOT = Path(__file__).resolve().parents[1]
if __name__ in ("__main__", "__mp_main__"):
    sys.path[0] = str(ROOT)

from benchmarks import execution_work as work
from benchmarks.execution_overhead import TINY, embedded, keep_in_flight, run_jobs
from benchmarks.measure import Ratio, machine, one_thread_each, take_turns
from benchmarks.policy_speed import GIB, Kinds
from benchmarks.rows import Row, as_json, seconds
from scheduler import StackJob
from scheduler.core.baselines import Baseline
from scheduler.core.dispatcher import Dispatcher
from scheduler.core.engine import Engine, Outcome
from scheduler.core.model import Device, DeviceKind, Footprint, Job, JobPlan
from scheduler.core.simulate import run_baseline, run_dispatcher
from scheduler.core.trace import Trace, TraceJob, TruePlan

SHORT_S = 0.01
JOBS_A_DEVICE = 10
MANY_DEVICES, FEW_JOBS = 1_000, 2_000
# Of the simulated end of one scheduler: GPUs with one slot each, and what a job takes there.
FARM_JOB_S = 1.0
KEPT = 0.9


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers of no-op jobs, of jobs of 10 ms, and of simulated devices; and rounds where they are few."""

    no_ops: tuple[int, ...]
    short: tuple[int, ...]
    devices: tuple[int, ...]
    farm: int
    rounds: int


SCALES = {
    "quick": Scale((50, 200), (50,), (1, 10, 100), 200, 1),
    "default": Scale((100, 1_000, 10_000), (100, 1_000), (1, 10, 100, 1_000, 10_000), 4_000, 3),
    "full": Scale((100, 1_000, 10_000, 100_000), (100, 1_000, 10_000), (1, 10, 100, 1_000, 10_000), 4_000, 5),
}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few jobs, to see that it runs")
    parser.add_argument("--full", action="store_true", help="up to 10^5 no-op jobs and 10^4 of 10 ms")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    size = "quick" if options.quick else "full" if options.full else "default"
    scale = SCALES[size]
    host = machine("distributed", "dask", "numpy")
    with one_thread_each():
        jobs, rows = by_jobs(scale)
    devices, more = by_devices(scale.devices)
    job_s = min(point["ours_s"] for point in jobs if point["kind"] == "no-op")
    farms, evenmore = by_clusters(job_s, scale.farm)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {
        "machine": host,
        "size": size,
        "jobs": jobs,
        "devices": devices,
        "clusters": farms,
        "job_s": job_s,
        "end": where_one_ends(job_s),
        "rows": as_json([*rows, *more, *evenmore]),
    }
    (options.out / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    with contextlib.suppress(ImportError):  # the figures are what counts
        from benchmarks.plots import plot_scaling

        plot_scaling(found, options.out / "scaling.svg")
    for row in (*rows, *more, *evenmore):
        print(f"{row.what}, beside {row.peer}: {row.ours} and {row.theirs}; {row.note}")
    print(found["end"])


def by_jobs(scale: Scale) -> tuple[list[dict[str, Any]], list[Row]]:
    """What a job costs as their number grows, ours and bare, on the same workers."""
    points: list[dict[str, Any]] = []
    rows: list[Row] = []
    with embedded() as (scheduler, client):
        slots = len(client.scheduler_info(n_workers=-1)["workers"])

        def ours(step: Any, count: int) -> None:
            run_jobs(scheduler, [StackJob(TINY, [step]) for _ in range(count)])

        def bare(function: Any, argument: Any, count: int) -> None:
            keep_in_flight(client, function, [(argument,)] * count, 2 * slots, with_results=False)

        sleep = {"use": "benchmarks.execution_work:sleeping", "with": {"seconds": SHORT_S}}
        kinds = [
            ("no-op", work.identity, work.nothing, TINY, scale.no_ops, 0.0),
            ("10 ms", sleep, work.sleep_for, SHORT_S, scale.short, SHORT_S / slots),
        ]
        for kind, step, function, argument, counts, ideal in kinds:
            for count in counts:
                times = take_turns(
                    {"ours": partial(ours, step, count), "bare": partial(bare, function, argument, count)},
                    scale.rounds if count <= 1000 else 1,
                    warm_up=count == counts[0],
                )
                each = {who: took.median / count for who, took in times.items()}
                points.append({"kind": kind, "jobs": count, **{f"{w}_s": s for w, s in each.items()}})
                note = f"at best {seconds(ideal)} a job" if ideal else ""
                rows.append(
                    Row.compared(
                        "scaling",
                        f"{count} jobs of {kind}" if ideal else f"{count} no-op jobs",
                        "Dask submit",
                        Ratio.of(times["ours"].wall, times["bare"].wall),
                        ours=f"{seconds(each['ours'])} a job",
                        theirs=f"{seconds(each['bare'])} a job",
                        note=note,
                        headline=count == counts[-1],
                    )
                )
    return points, rows


def gpus(count: int, *, slots: int = 4) -> tuple[Device, ...]:
    """So many equal GPUs, eight to a host."""
    cuda = DeviceKind.CUDA
    return tuple(
        Device(f"g{n}", f"gpu{n}", cuda, 24 * GIB, slots, "A", f"h{n // 8}", GIB // 2) for n in range(count)
    )


def by_devices(counts: tuple[int, ...]) -> tuple[list[dict[str, Any]], list[Row]]:
    """What placing a job costs as the number of devices grows; processor time, the simulation included."""
    points: list[dict[str, Any]] = []
    rows: list[Row] = []
    for count in counts:
        kinds = Kinds()
        jobs = tuple(kinds.trace_job() for _ in range(max(200, JOBS_A_DEVICE * count)))
        trace = Trace("scaling", gpus(count), jobs, load_fraction=0.0)
        # It looks at every device for every job: of many devices a part of the jobs tells what one costs.
        few = replace(trace, jobs=jobs[:FEW_JOBS]) if count > MANY_DEVICES else trace
        mine = _placed(lambda trace=trace: Engine(trace, Dispatcher(devices=trace.devices)).run(), trace)
        theirs = _placed(lambda trace=few: run_baseline(trace, Baseline), few)
        points.append({"devices": count, "ours": mine, "peer": theirs})
        rows.append(
            Row(
                "scaling",
                f"{len(jobs)} jobs on {count} simulated GPUs: placing one (makespan, out-of-memory attempts)",
                "first in, first out, memory-blind (simulated)",
                f"{seconds(mine['job_s'])} ({mine['makespan_s']:.0f} s, {mine['oom']})",
                f"{seconds(theirs['job_s'])} "
                + (
                    f"({theirs['makespan_s']:.0f} s, {theirs['oom']})"
                    if few is trace
                    else f"(the first {FEW_JOBS})"
                ),
                mine["job_s"] / theirs["job_s"],
                note="processor time, the simulated cluster included; the ratio is that of the placing",
                headline=count == counts[-1],
            )
        )
    return points, rows


def _placed(run: Callable[[], Outcome], trace: Trace) -> dict[str, float]:
    gc.collect()
    began = thread_time()
    outcome = run()
    took = (thread_time() - began) / len(trace.jobs)
    return {"job_s": took, "makespan_s": outcome.makespan_s, "oom": outcome.oom_attempts}


def by_clusters(job_s: float, devices: int) -> tuple[list[dict[str, Any]], list[Row]]:
    """Devices that want a job a second each, fed by one scheduler that takes `job_s` for each, or by several.

    A scheduler's jobs come to its dispatcher no faster than one each `job_s`; each cluster has its share of
    the devices and of the jobs, and the whole ends with the last.
    """
    total = 20 * devices
    ideal = total / devices * FARM_JOB_S
    points: list[dict[str, Any]] = []
    clusters = 1
    while True:
        share, own = total // clusters, max(1, devices // clusters)
        took = run_dispatcher(_farm(share, own, job_s)).makespan_s
        points.append({"clusters": clusters, "devices": devices, "makespan_s": took, "kept": ideal / took})
        if ideal / took >= KEPT or clusters >= devices:
            break
        clusters *= 2
    one, enough = points[0], points[-1]
    row = Row(
        "scaling",
        f"{devices} simulated GPUs, {FARM_JOB_S:g} s a job, {seconds(job_s)} of a Dask scheduler each",
        "the same on one Dask cluster",
        f"{enough['makespan_s']:.0f} s on {enough['clusters']} clusters ({enough['kept']:.0%} busy)",
        f"{one['makespan_s']:.0f} s ({one['kept']:.0%} busy)",
        enough["makespan_s"] / one["makespan_s"],
        note=where_one_ends(job_s),
        headline=True,
    )
    return points, [row]


def _farm(jobs: int, devices: int, job_s: float) -> Trace:
    plan = JobPlan("gpu", (DeviceKind.CUDA,), Footprint(GIB, 0), cost=FARM_JOB_S)
    truth = {plan.name: TruePlan(GIB, 0, FARM_JOB_S)}
    coming = tuple(
        TraceJob(Job(f"j{n}", "kind", (plan,), family="family"), truth, n * job_s) for n in range(jobs)
    )
    return Trace("farm", gpus(devices, slots=1), coming, load_fraction=0.0)


def where_one_ends(job_s: float) -> str:
    """The most slots that one Dask scheduler keeps busy, by how long a job takes there."""
    ends = ", ".join(f"{int(length / job_s):,} of {length:g} s" for length in (0.01, 1.0, 60.0))
    return f"one Dask scheduler here ends at {1 / job_s:.0f} jobs/s: slots it keeps busy with jobs: {ends}"


if __name__ == "__main__":
    began = perf_counter()
    with contextlib.suppress(KeyboardInterrupt):
        main()
    print(f"{perf_counter() - began:.0f} s")
