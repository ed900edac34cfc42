"""Conversion and stacking beside NumPy, torch and arraybridge, on the same arrays in one process.

    python benchmarks/memcore_conversion.py [--quick] [--out benchmarks/results]

The contenders of a case take turns, in an order shuffled for each round, and medians are compared: ratios
carry over to other machines, times don't. Peak memory is measured in a process for each target. Writes
memcore_conversion.json and memcore_conversion.md with the machine they came from. A target that is missed is
shown as missed.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# ruff: noqa: E402  a file beside this one is named like the package `pools`
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import psutil
import pyclesperanto as cle
import torch

import memcore
from benchmarks.measure import Ratio

MIB = 1 << 20
PEAK_SHAPE = (64, 2048, 1024)  # uint16: 256 MiB
PEAK_TARGETS = {"numpy": 1.05, "torch": 1.05, "tensorflow": 1.05, "jax": 1.05, "pyclesperanto": 2.05}
DISTRIBUTIONS = ("numpy", "torch", "jax", "tensorflow_cpu", "pyclesperanto", "arraybridge")


@dataclass(frozen=True)
class Case:
    """Contenders by name; `ours` is held to `limit` times `against`, or to `limit_us` microseconds."""

    name: str
    contenders: dict[str, Callable[[], object]]
    against: str
    limit: float | None = None
    limit_us: float | None = None
    calls: int = 1


@dataclass(frozen=True)
class Result:
    name: str
    medians_us: dict[str, float]
    spread: dict[str, tuple[float, float]]
    against: str
    ratio: float
    limit: float | None
    limit_us: float | None
    met: bool


def cases() -> list[Case]:
    import jax
    import tensorflow
    from arraybridge import HOST, convert_memory, stack_slices

    random_values = np.random.default_rng(0)
    large = {
        dtype: [random_values.integers(0, 4000, (1024, 1024)).astype(dtype) for _ in range(64)]
        for dtype in ("uint16", "float32")
    }
    small = [random_values.integers(0, 4000, (64, 64)).astype("uint16") for _ in range(64)]
    middle = [random_values.random((512, 512), np.float32) for _ in range(64)]
    whole = np.stack(small)
    found = []
    for dtype, slices in large.items():
        out = np.empty((64, 1024, 1024), dtype)
        tensor = torch.from_numpy(np.empty((64, 1024, 1024), dtype))
        found += [
            Case(
                f"64 × 1024² {dtype}, numpy → numpy, reused destination",
                {
                    "ours": lambda s=slices, o=out: memcore.stack_slices(s, "numpy", 0, out=o),
                    "np.stack": lambda s=slices: np.stack(s),
                    "np.stack(out=)": lambda s=slices, o=out: np.stack(s, out=o),
                    "arraybridge": lambda s=slices: stack_slices(s, "numpy", HOST),
                },
                "np.stack",
                0.65 if dtype == "uint16" else None,
            ),
            Case(
                f"64 × 1024² {dtype}, numpy → torch, reused destination",
                {
                    "ours": lambda s=slices, t=tensor: memcore.stack_slices(s, "torch", "cpu", out=t),
                    "ours, new stack": lambda s=slices: memcore.stack_slices(s, "torch", "cpu"),
                    "from_numpy(np.stack)": lambda s=slices: torch.from_numpy(np.stack(s)),
                    "arraybridge": lambda s=slices: stack_slices(s, "torch", HOST),
                },
                "arraybridge",
                0.30 if dtype == "uint16" else None,
            ),
        ]
    for target, finish in (("jax", jax.block_until_ready), ("tensorflow", lambda tensor: tensor)):
        found.append(
            Case(
                f"64 × 1024² uint16, numpy → {target}",
                {
                    "ours": lambda t=target, f=finish: f(memcore.stack_slices(large["uint16"], t, "cpu")),
                    "np.stack": lambda: np.stack(large["uint16"]),
                    "arraybridge": lambda t=target, f=finish: f(stack_slices(large["uint16"], t, HOST)),
                },
                "np.stack",
                1.2,
            )
        )
    found += [
        Case(
            "64 × 64² uint16, numpy → torch",
            {
                "ours": lambda: memcore.stack_slices(small, "torch", "cpu"),
                "np.stack": lambda: np.stack(small),
                "arraybridge": lambda: stack_slices(small, "torch", HOST),
            },
            "np.stack",
            2.0,
            calls=20,
        ),
        Case(
            "64 × 512² float32, numpy → pyclesperanto",
            {
                "ours": lambda: memcore.stack_slices(middle, "pyclesperanto", 0),
                "push(np.stack)": lambda: cle.push(np.stack(middle)),
                # arraybridge 0.5.2 doesn't know the arrays of pyclesperanto 0.25.
            },
            "push(np.stack)",
            1.1,
        ),
        Case(
            "one conversion [64, 64, 64] uint16, numpy → torch",
            {
                "ours": lambda: memcore.convert_memory(whole, "numpy", "torch", "cpu"),
                "torch.from_numpy": lambda: torch.from_numpy(whole),
                "arraybridge": lambda: convert_memory(whole, "numpy", "torch", HOST),
            },
            "arraybridge",
            limit_us=3.0,
            calls=2000,
        ),
    ]
    assert tensorflow is not None  # its import belongs to none of the times
    return found


def measure(case: Case, rounds: int) -> Result:
    """Medians of one call, in microseconds, over rounds in which the contenders take turns."""
    times: dict[str, list[float]] = {name: [] for name in case.contenders}
    for call in case.contenders.values():
        call()
    order = list(case.contenders)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            random.shuffle(order)
            for name in order:
                call = case.contenders[name]
                start = perf_counter()
                for _ in range(case.calls):
                    call()
                times[name].append((perf_counter() - start) / case.calls * 1e6)
    finally:
        gc.enable()
    medians = {name: statistics.median(values) for name, values in times.items()}
    rounds_of = {name: Ratio.of(times["ours"], values) for name, values in times.items()}
    spread = {name: (ratio.low, ratio.high) for name, ratio in rounds_of.items()}
    ratio = medians["ours"] / medians[case.against]
    met = (case.limit is None or ratio <= case.limit) and (
        case.limit_us is None or medians["ours"] <= case.limit_us
    )
    return Result(case.name, medians, spread, case.against, ratio, case.limit, case.limit_us, met)


def peak(target: str) -> float:
    """Extra peak memory of one stack into a library, by its result's size, in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", target]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure_peak(target: str) -> float:
    """In the child: the high-water mark of one stack above what was resident before it."""
    place: Any = 0 if target == "pyclesperanto" else "cpu"
    memcore.stack_slices([np.zeros((8, 8), np.uint16)] * 2, target, place)
    slices = [np.full(PEAK_SHAPE[1:], z, np.uint16) for z in range(PEAK_SHAPE[0])]
    gc.collect()
    # Writing 5 sets the high-water mark to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    stack = memcore.stack_slices(slices, target, place)
    extra = _status("VmHWM") - before
    assert tuple(stack.shape) == PEAK_SHAPE
    return extra / (np.prod(PEAK_SHAPE) * 2)


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the host."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": next(line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30)),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "transparent_huge_pages": pages.read_text().strip() if pages.exists() else "none",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in DISTRIBUTIONS},
        "load_at_start": round(os.getloadavg()[0], 1),
    }


def report(host: dict[str, Any], rounds: int, results: list[Result], peaks: dict[str, float]) -> str:
    """The tables, in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    lines = [
        "# memcore beside arraybridge, NumPy and torch",
        "",
        f"`python benchmarks/memcore_conversion.py`: medians of {rounds} interleaved rounds, "
        f"on {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB, {host['system']}, huge pages "
        f"{host['transparent_huge_pages']}, load {host['load_at_start']} at the start; "
        f"Python {host['python']}, {versions}.",
        "",
        "| case | contender | median | ours / it |",
        "|---|---|---:|---:|",
    ]
    for result in results:
        for name, median in result.medians_us.items():
            ratio = result.medians_us["ours"] / median
            lines.append(f"| {result.name} | {name} | {_time(median)} | {ratio:.2f} |")
    lines += ["", "| target | measured | limit | |", "|---|---:|---:|---|"]
    for result in results:
        if result.limit is not None:
            limit, value = f"{result.limit} × {result.against}", f"{result.ratio:.2f}"
        elif result.limit_us is not None:
            limit, value = f"{result.limit_us} µs", f"{result.medians_us['ours']:.2f} µs"
        else:
            continue
        lines.append(f"| {result.name} | {value} | {limit} | {_verdict(result.met)} |")
    for name, peak_of_result in peaks.items():
        most = PEAK_TARGETS[name]
        verdict = _verdict(peak_of_result <= most)
        lines.append(
            f"| extra peak memory, 256 MiB into {name} | {peak_of_result:.3f} | {most} × the result "
            f"| {verdict} |"
        )
    return "\n".join(lines) + "\n"


def _time(us: float) -> str:
    return f"{us / 1000:.2f} ms" if us >= 1000 else f"{us:.2f} µs"


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--peak-of", choices=PEAK_TARGETS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(measure_peak(arguments.peak_of))
        return
    rounds = 3 if arguments.quick else 31
    host = machine()
    results = [measure(case, rounds) for case in cases()]
    peaks = {target: peak(target) for target in PEAK_TARGETS}
    text = report(host, rounds, results, peaks)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = {
        "machine": host,
        "rounds": rounds,
        "cases": [asdict(r) for r in results],
        "peak_of_result": peaks,
    }
    (arguments.out / "memcore_conversion.json").write_text(json.dumps(figures, indent=1) + "\n")
    (arguments.out / "memcore_conversion.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
