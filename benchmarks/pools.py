"""What pooling gains: reused against fresh memory, hits, steps of a hit, copies saved, memory given back.

    python benchmarks/pools.py [--quick] [--out benchmarks/results]

Fresh and pooled runs alternate in one process, and medians are compared: ratios carry over to other machines,
times don't. Writes pools.json and pools.md with the machine they came from.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import timeit
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

# ruff: noqa: E402  this file is named like the package that it measures
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "benchmarks"]
sys.path.insert(0, str(ROOT))

import numpy as np
import psutil

from benchmarks.measure import Ratio
from memcore.host import HostBlock, HostBuffer
from pools import ArrayPool, PoolSet, PressureWatcher, VirtualDeviceMemory
from pools.host_store import HostStore

MIB = 1 << 20
FILL_TARGET = {True: 0.65, False: 0.15}  # pooled / fresh, with huge pages and without
STEP_TARGET_US = 5.0
HIT_TARGET = 0.95
BACK_TARGET_S = 1.0
FLAT_TARGET = 0.02


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the host."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    names = ("numpy", "torch", "jax", "cupy-cuda12x", "cupy-cuda13x")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30)),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "transparent_huge_pages": pages.read_text().strip() if pages.exists() else "none",
        "python": platform.python_version(),
        "versions": {name: version for name in names if (version := _version(name))},
        "load": round(os.getloadavg()[0], 1),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def fresh_against_pooled(nbytes: int, *, huge_pages: bool, repeats: int) -> list[dict[str, Any]]:
    """Fill an array, and add two into a third, in memory that is new and in memory that is lent again."""
    size = nbytes // 4
    left, right = np.ones(size, np.float32), np.ones(size, np.float32)
    pool = ArrayPool(2 * nbytes, store=HostStore(huge_pages=huge_pages))

    def fresh(work: Callable[[np.ndarray], object]) -> None:
        work(HostBuffer(HostBlock(nbytes, huge_pages=huge_pages)).array((size,), "float32"))

    def pooled(work: Callable[[np.ndarray], object]) -> None:
        with pool.acquire(size, "float32") as array:
            work(array)

    found = []
    works: dict[str, Callable[[np.ndarray], object]] = {
        "fill": lambda array: array.fill(1),
        "add": lambda array: np.add(left, right, out=array),
    }
    for name, work in works.items():
        times: dict[str, list[float]] = {"fresh": [], "pooled": []}
        pooled(work)
        fresh(work)
        for _ in range(repeats):
            for how, run in (("fresh", fresh), ("pooled", pooled)):
                start = perf_counter()
                run(work)
                times[how].append(perf_counter() - start)
        medians = {how: statistics.median(values) for how, values in times.items()}
        ratio = medians["pooled"] / medians["fresh"]
        rounds = Ratio.of(times["pooled"], times["fresh"])
        target = FILL_TARGET[huge_pages] if name == "fill" else None
        found.append({
            "work": name, "mib": nbytes // MIB, "huge_pages": huge_pages,
            "fresh_ms": round(medians["fresh"] * 1e3, 3), "pooled_ms": round(medians["pooled"] * 1e3, 3),
            "ratio": round(ratio, 3), "target": target, "met": None if target is None else ratio <= target,
            "spread": [round(rounds.low, 3), round(rounds.high, 3)],
        })  # fmt: skip
    return found


def a_hit() -> dict[str, Any]:
    """Acquire and release of a pooled array: microseconds, both ways to end a lease."""
    pool = ArrayPool("64MiB")
    shape = (64, 256, 256)

    def block() -> None:
        with pool.acquire(shape, "uint16"):
            pass

    def explicit() -> None:
        pool.lease(shape, "uint16").release()

    block()
    best = {
        name: min(timeit.repeat(function, number=500, repeat=400)) / 500 * 1e6
        for name, function in (("with", block), ("release", explicit))
    }
    return {
        "with_us": round(best["with"], 2),
        "release_us": round(best["release"], 2),
        "target": STEP_TARGET_US,
        "met": max(best.values()) <= STEP_TARGET_US,
    }


def job_mix(jobs: int, shapes: list[tuple[int, int, int]], limit: str) -> float:
    """The steady hit rate of jobs that take a stack of a random shape through four steps, in two dtypes."""
    chance = random.Random(7)
    pool = ArrayPool(limit)
    before = pool.stats()
    for number in range(jobs):
        if number == jobs // 20:  # warm
            before = pool.stats()
        shape = chance.choice(shapes)
        stack = pool.lease(shape, "uint16", job=f"job {number}")
        for _ in range(4):
            result = pool.lease(shape, chance.choice(("uint16", "float32")))
            stack.end()
            stack = result
        stack.end()
        del result
    after = pool.stats()
    hits, misses = after.hits - before.hits, after.misses - before.misses
    return hits / (hits + misses)


def hit_rates(jobs: int) -> dict[str, Any]:
    """A screen has few shapes; for many shapes the limit decides."""
    few = [(planes, side, side) for planes in (8, 16, 24) for side in (256, 512)]
    many = [(planes, side, side) for planes in range(8, 33) for side in (192, 256, 320)]
    rate = job_mix(jobs, few, "256MiB")
    return {
        "jobs": jobs,
        "hit_rate": round(rate, 4),
        "many_shapes": {
            limit: round(job_mix(jobs, many, limit), 4) for limit in ("128MiB", "256MiB", "512MiB")
        },
        "target": HIT_TARGET,
        "met": rate >= HIT_TARGET,
    }


def flat(jobs: int) -> dict[str, Any]:
    """Resident memory over many jobs: the median of the last quarter against that of the second."""
    process, resident = psutil.Process(), []
    pool = ArrayPool("256MiB")
    chance = random.Random(3)
    for number in range(jobs):
        with pool.acquire((chance.choice((8, 16, 24)), 512, 512), "uint16") as array:
            array.fill(number % 100)
        del array
        if number % 10 == 9:
            resident.append(process.memory_info().rss)
    quarter = len(resident) // 4
    early, late = statistics.median(resident[quarter : 2 * quarter]), statistics.median(resident[-quarter:])
    change = late / early - 1
    return {
        "jobs": jobs,
        "early_mib": round(early / MIB, 1),
        "late_mib": round(late / MIB, 1),
        "change": round(change, 4),
        "target": FLAT_TARGET,
        "met": abs(change) <= FLAT_TARGET,
    }


def given_back() -> dict[str, Any]:
    """Seconds from the moment when a stranger fills a device until our idle memory has gone back."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(5):
            device = VirtualDeviceMemory(Path(folder) / f"device{turn}", 512 * MIB)
            # a pool of host memory stands in for a framework's on the virtual device
            with PoolSet("1GiB", virtual_devices={0: device}) as pools:
                pool = ArrayPool(pools._budgets[0], virtual=device, device=0)
                pools._pools["numpy", 0] = pool
                with PressureWatcher(pools, 64 * MIB, {"cpu": lambda: None}):
                    with pool.acquire(256 * MIB, "uint8") as array:
                        array.fill(1)
                    del array
                    stranger = device.charge(224 * MIB, owner="stranger")
                    start = perf_counter()
                    tick = threading.Event()
                    while device.used() > 224 * MIB and perf_counter() - start < 10:
                        tick.wait(0.005)
                    seconds.append(perf_counter() - start)
                    stranger.release()
            device.unlink()
    worst = max(seconds)
    return {"worst_s": round(worst, 3), "target": BACK_TARGET_S, "met": worst <= BACK_TARGET_S}


def into_jax() -> dict[str, Any]:
    """A frozen pool buffer becomes a JAX array: the pointer says whether it was copied."""
    if _version("jax") is None:
        return {"skipped": "needs jax"}
    from memcore import convert_memory

    pool = ArrayPool("256MiB")
    lease = pool.lease((64, 512, 512), "float32")
    lease.array.fill(2)
    frozen = lease.freeze()
    start = perf_counter()
    array = convert_memory(frozen, "numpy", "jax", "cpu")
    seconds = perf_counter() - start
    same = array.unsafe_buffer_pointer() == frozen.ctypes.data
    return {"mib": 64, "same_pointer": same, "first_import_ms": round(seconds * 1e3, 2), "met": same}


def on_a_gpu(repeats: int) -> dict[str, Any]:
    """Allocate and free on the device, in microseconds: our pools against the frameworks' own allocators."""
    found: dict[str, Any] = {}
    shape = (64, 1024, 1024)

    def best(function: Callable[[], object]) -> float:
        function()
        return round(min(timeit.repeat(function, number=100, repeat=repeats)) / 100 * 1e6, 2)

    def leased(pool: ArrayPool) -> Callable[[], None]:
        def run() -> None:
            with pool.acquire(shape, "uint16"):
                pass

        return run

    if _version("torch"):
        import torch

        if torch.cuda.is_available():
            pools = PoolSet("1GiB", {0: "4GiB"})
            found["torch caching allocator"] = best(
                lambda: torch.empty(shape, dtype=torch.uint16, device="cuda")
            )
            found["torch pool"] = best(leased(pools.pool("torch", 0)))
    if _version("cupy-cuda12x") or _version("cupy-cuda13x"):
        import cupy

        try:
            cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError:
            pass
        else:
            pools = PoolSet("1GiB", {0: "4GiB"})
            found["cupy memory pool"] = best(lambda: cupy.empty(shape, cupy.uint16))
            found["cupy pool of ours"] = best(leased(pools.pool("cupy", 0)))
            if any(_version(f"rmm-cu{major}") for major in (12, 13)):
                import rmm

                resource = rmm.mr.PoolMemoryResource(rmm.mr.CudaMemoryResource(), initial_pool_size=1 << 30)
                found["rmm pool"] = best(lambda: rmm.DeviceBuffer(size=2 * 64 * MIB, mr=resource))
    return found or {"skipped": "needs a CUDA device"}


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    host = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    lines = [
        "# Pools: measured",
        "",
        f"{host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB; {host['system']}, "
        f"transparent huge pages `{host['transparent_huge_pages']}`; Python {host['python']}, {versions}; "
        f"load {host['load']}.",
        "",
        f"`python benchmarks/pools.py`; medians of {results['repeats']} alternating runs.",
        "",
        "| work | MiB | huge pages | fresh ms | pooled ms | pooled / fresh | target | met |",
        "|---|---:|---|---:|---:|---:|---:|---|",
    ]
    for row in results["fresh_against_pooled"]:
        lines.append(
            f"| {row['work']} | {row['mib']} | {_yes(row['huge_pages'])} | {row['fresh_ms']} "
            f"| {row['pooled_ms']} | {row['ratio']} | {row['target'] or '–'} | {_yes(row['met'])} |"
        )
    hit, mix, same, back, steady = (results[key] for key in ("hit", "mix", "jax", "given_back", "flat"))
    lines += [
        "",
        "| what | measured | target | met |",
        "|---|---|---|---|",
        f"| acquire and release on a hit | {hit['with_us']} µs (`with`), {hit['release_us']} µs (`release`) "
        f"| ≤ {hit['target']} µs | {_yes(hit['met'])} |",
        f"| hit rate over {mix['jobs']} jobs of 6 shapes, 2 dtypes, 256 MiB | {mix['hit_rate']:.2%} "
        f"| ≥ {mix['target']:.0%} | {_yes(mix['met'])} |",
        *(
            f"| the same of 75 shapes, {limit.replace('MiB', ' MiB')} | {rate:.2%} | – | – |"
            for limit, rate in mix["many_shapes"].items()
        ),
        f"| frozen buffer into JAX | {same.get('skipped') or ('shared' if same['met'] else 'copied')} "
        f"| same pointer | {_yes(same.get('met'))} |",
        f"| idle memory back after pressure | {back['worst_s']} s (worst of 5) | ≤ {back['target']} s "
        f"| {_yes(back['met'])} |",
        f"| resident memory over {steady['jobs']} jobs | {steady['change']:+.2%} | ±{steady['target']:.0%} "
        f"| {_yes(steady['met'])} |",
    ]
    if "skipped" in results["gpu"]:
        lines += ["", f"On a GPU: not measured ({results['gpu']['skipped']})."]
    else:
        lines += ["", "| allocate and free 128 MiB on the GPU | µs |", "|---|---:|"]
        lines += [f"| {name} | {value} |" for name, value in results["gpu"].items()]
    return "\n".join(lines) + "\n"


def _yes(value: bool | None) -> str:
    return "–" if value is None else "yes" if value else "no"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: does it run?")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    sizes = (16,) if options.quick else (64, 128, 256, 512, 1024)
    repeats = 3 if options.quick else 15
    jobs = 100 if options.quick else 1000
    gc.freeze()
    results: dict[str, Any] = {
        "machine": machine(),
        "repeats": repeats,
        "hit": a_hit(),
        "mix": hit_rates(jobs),
    }
    results["flat"] = flat(jobs)
    results["given_back"] = given_back()
    results["fresh_against_pooled"] = [
        row
        for huge_pages in (True, False)
        for mib in sizes
        for row in fresh_against_pooled(mib * MIB, huge_pages=huge_pages, repeats=repeats)
    ]
    results["jax"] = into_jax()
    results["gpu"] = on_a_gpu(repeats)
    text = report(results)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "pools.json").write_text(json.dumps(results, indent=2) + "\n")
    (options.out / "pools.md").write_text(text)


if __name__ == "__main__":
    main()
