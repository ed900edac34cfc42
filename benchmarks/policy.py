"""The scheduling policy on simulated clusters: out-of-memory attempts, makespan, and what a decision costs.

    python benchmarks/policy.py [--quick] [--out benchmarks/results]

The mixes are those of configs/simulation, seeded; each runs through the dispatcher and through five simple
schedulers on the same virtual cluster. A failed attempt costs the time until it failed and `oom_cost_s` (2 s)
more; that cost is swept. Decision times are processor time of the one thread, so that a busy machine doesn't
blur them. Writes policy.json, policy.md and policy.svg with the machine they came from. A target that is
missed is shown as missed.
"""

import argparse
import gc
import json
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import thread_time
from typing import Any

# ruff: noqa: E402  a file beside this one is named like the package `pools`
sys.path[0] = str(Path(__file__).resolve().parents[1])

import yaml

from benchmarks.policy_report import machine, write_report
from benchmarks.policy_speed import events, placements, queue_curve
from scheduler.core.baselines import BASELINES
from scheduler.core.bound import makespan_bound
from scheduler.core.dispatcher import Dispatcher
from scheduler.core.engine import Engine, Outcome
from scheduler.core.events import Event
from scheduler.core.footprint import Estimates
from scheduler.core.instructions import Instruction, Start
from scheduler.core.model import Device, DeviceKind, Footprint, Job, JobPlan
from scheduler.core.oracle import exact_makespan
from scheduler.core.simulate import run_baseline, run_dispatcher
from scheduler.core.trace import Trace, TraceJob, TruePlan
from scheduler.screens.workload import Mix, make_trace

GIB = 1 << 30
MIXES = Path(__file__).resolve().parents[1] / "configs" / "simulation"
MAKESPAN_TARGETS = {"small": 1.10, "mixed": 1.30, "large": 1.60}
# exact: declared footprints are the true ones. error: they are wrong by family, and jobs scatter. hogs: also
# strangers.
SCENARIOS = {"exact": {"exact": True}, "error": {}, "hogs": {"hogs": True}}
OOM_TARGETS = {"exact": 0.0, "error": 1.0, "hogs": 2.0}
OOM_COSTS_S = (0.0, 2.0, 10.0, 30.0)


@dataclass(frozen=True)
class Target:
    """One promise: `value` must be at most (or at least) `limit`."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is kept."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def main() -> int:
    """Measure, write the results, and say how many targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, smaller clusters")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    quick: bool = options.quick
    seeds = range(1) if quick else range(5)
    jobs = 2000
    found: dict[str, Any] = {"machine": machine(), "quick": quick, "jobs": jobs, "seeds": len(seeds)}
    targets: list[Target] = []

    rows = list(_mixes(jobs, seeds))
    found["mixes"] = rows
    targets += _mix_targets(rows)
    found["oom_cost"] = sweep = list(_sweep(jobs, seeds[0]))
    targets += [
        Target(f"mixed with hogs, a failed attempt costs {row['oom_cost_s']:g} s: makespan / best baseline",
               row["ours"] / min(row["baselines"].values()), 1.0)
        for row in sweep
    ]  # fmt: skip
    found["small_cases"] = small = _small_cases(10 if quick else 60)
    targets.append(Target("small cases: makespan / exact optimum, mean", small["mean"], 1.10))
    found["estimates"] = estimates = _estimates(jobs, seeds)
    targets.append(
        Target("estimates: share of jobs with peak <= estimate", estimates["covered"], 0.99, at_least=True)
    )
    targets.append(Target("estimates: median waste", estimates["median_waste"], 0.25))

    found["events"] = speed = events(queued=10_000, rounds=2_000 if quick else 20_000)
    targets.append(Target("16 devices, 10k queued: decision p99, ms", speed["p99_ms"], 1.0))
    targets.append(
        Target("16 devices, 10k queued: events per s", speed["events_per_s"], 50_000, at_least=True)
    )
    scale = (1_000, 50_000) if quick else (10_000, 1_000_000)
    found["placements"] = placed = placements(*scale)
    targets.append(
        Target(
            f"{scale[0]} devices, {scale[1]} jobs: placements per s",
            placed["placements_per_s"],
            15_000,
            at_least=True,
        )
    )
    lengths = (1_000, 10_000, 100_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    found["queue_curve"] = curve = queue_curve(lengths, 2_000 if quick else 10_000)
    targets.append(
        Target(f"decision at {lengths[-1]} queued / at {lengths[0]}", curve[-1]["us"] / curve[0]["us"], 2.0)
    )

    found["targets"] = [{**asdict(target), "met": target.met} for target in targets]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "policy.json").write_text(json.dumps(found, indent=1) + "\n")
    write_report(found, options.out)
    for target in targets:
        sign = ">=" if target.at_least else "<="
        print(
            f"{'met   ' if target.met else 'MISSED'} {target.name}: {target.value:.4g} ({sign} "
            f"{target.limit:g})"
        )
    met = sum(target.met for target in targets)
    print(f"{met} of {len(targets)} targets met")
    return 0 if met == len(targets) else 1


def _mix(name: str) -> Mix:
    return Mix.from_mapping(yaml.safe_load((MIXES / f"{name}.yaml").read_text()))


def _mixes(jobs: int, seeds: range) -> Iterator[dict[str, Any]]:
    for name in MAKESPAN_TARGETS:
        for scenario, terms in SCENARIOS.items():
            for seed in seeds:
                trace = make_trace(_mix(name), seed, jobs=jobs, **terms)
                bound = makespan_bound(trace)
                runs = {"ours": run_dispatcher(trace)}
                runs |= {baseline.name: run_baseline(trace, baseline) for baseline in BASELINES}
                yield {
                    "mix": name,
                    "scenario": scenario,
                    "seed": seed,
                    "bound_s": bound,
                    "runs": {who: _figures(outcome, jobs, bound) for who, outcome in runs.items()},
                }


def _figures(outcome: Outcome, jobs: int, bound: float) -> dict[str, float]:
    return {
        "makespan_s": outcome.makespan_s,
        "ratio": outcome.makespan_s / bound,
        "oom_per_100": 100 * outcome.oom_attempts / jobs,
        "done": outcome.done,
        "lost": outcome.lost,
        "on_cpu": outcome.on_cpu,
    }


def _mix_targets(rows: list[dict[str, Any]]) -> Iterator[Target]:
    for name, limit in MAKESPAN_TARGETS.items():
        for scenario in SCENARIOS:
            mine = [row for row in rows if (row["mix"], row["scenario"]) == (name, scenario)]
            ours = [row["runs"]["ours"] for row in mine]
            where = f"{name}, {scenario}"
            yield Target(f"{where}: jobs lost", sum(run["lost"] for run in ours), 0)
            worst = max(run["oom_per_100"] for run in ours)
            yield Target(
                f"{where}: out-of-memory attempts per 100 jobs, worst seed", worst, OOM_TARGETS[scenario]
            )
            ratio = statistics.mean(run["ratio"] for run in ours)
            yield Target(f"{where}: makespan / bound, mean", ratio, limit)
            best = statistics.mean(
                row["runs"]["ours"]["makespan_s"]
                / min(run["makespan_s"] for who, run in row["runs"].items() if who != "ours")
                for row in mine
            )
            yield Target(f"{where}: makespan / best baseline, mean", best, 1.0)


def _sweep(jobs: int, seed: int) -> Iterator[dict[str, Any]]:
    """What a failed attempt costs beyond its own time changes every scheduler's makespan, ours least."""
    trace = make_trace(_mix("mixed"), seed, jobs=jobs, hogs=True)
    for cost in OOM_COSTS_S:
        costly = replace(trace, oom_cost_s=cost)
        yield {
            "oom_cost_s": cost,
            "ours": run_dispatcher(costly).makespan_s,
            "baselines": {baseline.name: run_baseline(costly, baseline).makespan_s for baseline in BASELINES},
        }


def _small_cases(count: int) -> dict[str, Any]:
    """Six jobs on two GPUs whose kinds were measured before, against the exact optimum."""
    ratios = []
    for seed in range(count):
        choose = random.Random(seed)
        devices = tuple(Device(f"g{n}", f"gpu{n}", DeviceKind.CUDA, 24 * GIB, 3, "A") for n in range(2))
        estimates = Estimates()
        jobs = []
        for number in range(6):
            nbytes, seconds = int(GIB * choose.uniform(2, 20)), choose.uniform(5, 60)
            plan = JobPlan("gpu", (DeviceKind.CUDA,), Footprint(nbytes, 0), cost=seconds)
            job = Job(f"job{number}", f"kind{number}", (plan,), family="family")
            jobs.append(TraceJob(job, {"gpu": TruePlan(nbytes, 0, seconds)}))
            for _ in range(5):
                estimates.observe_device_peak("family", job.kind, plan, "A", nbytes)
            estimates.observe_seconds("family", plan, "A", seconds)
        trace = Trace("small case", devices, tuple(jobs))
        ratios.append(run_dispatcher(trace, estimates=estimates).makespan_s / exact_makespan(trace))
    ratios.sort()
    share_optimal = sum(ratio < 1.001 for ratio in ratios) / count
    return {
        "cases": count,
        "mean": statistics.mean(ratios),
        "worst": ratios[-1],
        "optimal_share": share_optimal,
    }


class _Watched:
    """The dispatcher, with every reservation that isn't the first of its family noted."""

    def __init__(self, trace: Trace) -> None:
        self._dispatcher = Dispatcher(devices=trace.devices)
        self._truth = {trace_job.job.job_id: trace_job for trace_job in trace.jobs}
        self.covered: list[bool] = []
        self.waste: list[float] = []

    def handle(self, event: Event) -> list[Instruction]:
        found = self._dispatcher.handle(event)
        for instruction in found:
            if isinstance(instruction, Start) and not instruction.placement.plan.on_cpu:
                placement = instruction.placement
                if placement.alone:
                    continue
                peak = self._truth[placement.job_id].truth[placement.plan.name].device_bytes
                self.covered.append(peak <= placement.reserve_bytes)
                self.waste.append(max(0.0, 1 - peak / placement.reserve_bytes))
        return found


def _estimates(jobs: int, seeds: range) -> dict[str, float]:
    covered: list[bool] = []
    waste: list[float] = []
    for seed in seeds:
        trace = make_trace(_mix("mixed"), seed, jobs=jobs)
        watched = _Watched(trace)
        Engine(trace, watched).run()
        covered += watched.covered
        waste += watched.waste
    return {
        "jobs": len(covered),
        "covered": sum(covered) / len(covered),
        "median_waste": statistics.median(waste),
    }


if __name__ == "__main__":
    began = thread_time()
    gc.disable()
    status = main()
    print(f"{thread_time() - began:.0f} s of processor time")
    raise SystemExit(status)
