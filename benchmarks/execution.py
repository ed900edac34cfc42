"""Execution on a real cluster: what a job costs, how near to ideal runs come, a real chain, and its memory.

    python benchmarks/execution.py [--quick | --full] [--out benchmarks/results]

Contenders take turns on clusters of a worker process of one thread for each core; ratios are taken round by
round. For the jobs of 100 ms the clusters take turns too. In the last part every worker process is killed by
its nanny when it outgrows a limit that the chain, run by hand, exceeds. Writes execution.json, with the
machine.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# ruff: noqa: E402  a file beside this one is named like the package `pools`
ROOT = Path(__file__).resolve().parents[1]
if __name__ in ("__main__", "__mp_main__"):
    sys.path[0] = str(ROOT)

from benchmarks import chain_contenders as contenders
from benchmarks.chain_turns import Turns, targets
from benchmarks.execution_overhead import efficiency, no_ops
from benchmarks.measure import Ratio, machine, one_thread_each, take_turns
from benchmarks.rows import Row, as_json, seconds

MIB = 1 << 20
# Of what the chain takes beyond an idle process, as much as a worker may have beyond it.
ROOM = 0.6


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run."""

    rounds: int
    no_ops: int
    jobs: int
    chain_rounds: int
    stacks: int
    shape: tuple[int, int, int]
    # Not fewer voxels: what Python and its libraries take would hide what stacks take.
    limited: int


SCALES = {
    "quick": Scale(3, 40, 10, 1, 2, (16, 256, 256), 0),
    "default": Scale(7, 300, 60, 2, 20, (16, 1024, 1024), 20),
    "full": Scale(21, 1000, 200, 9, 20, (32, 1024, 1024), 20),
}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and few, to see that it runs")
    parser.add_argument("--full", action="store_true", help="more rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    size = "quick" if options.quick else "full" if options.full else "default"
    scale = SCALES[size]
    host = machine("distributed", "dask", "joblib", "numpy", "scipy", "tifffile")
    with one_thread_each():
        rows = no_ops(scale.rounds, scale.no_ops)
        rows += efficiency(scale.rounds // 2 + 1, scale.jobs)
        with tempfile.TemporaryDirectory(prefix="stackyard-benchmark-") as folder:
            rows += real_chain(scale, Path(folder))
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"machine": host, "size": size, "rounds": scale.rounds, "rows": as_json(rows)}
    (options.out / "execution.json").write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(f"{row.what}, beside {row.peer}: {row.ours} and {row.theirs}; {row.note}")


def real_chain(scale: Scale, folder: Path) -> list[Row]:
    """Stacks through four steps, ours and a Dask script, where memory suffices and where it doesn't."""
    sources = contenders.make_inputs(folder / "in", scale.stacks, scale.shape)
    reference = targets(folder / "reference", sources)
    # Also the warm-up of the page cache, and what every result is compared with.
    contenders.loop(list(zip(sources, reference, strict=True)))
    planes, height, width = scale.shape
    what = f"chain of 4 steps over {scale.stacks} stacks of {planes}x{height}x{width}"
    with contenders.ours() as mine, contenders.dask_script() as script:
        for each in (mine, script):
            contenders.warm(each, folder)
        turns = Turns(folder, sources, reference)
        runs = {each.name: turns.of(each) for each in (mine, script)}
        times = take_turns(runs, scale.chain_rounds, warm_up=False, after=turns.clear)
    rows = [
        Row.compared(
            "execution",
            what,
            "Dask script by hand",
            Ratio.of(times["ours"].wall, times[script.name].wall),
            ours=seconds(times["ours"].median),
            theirs=seconds(times[script.name].median),
            target="<= 1.0",
            note="same pixels",
            headline=True,
        )
    ]
    if not scale.limited:
        return rows
    idle, peak = contenders.footprint(sources[0], folder)
    limit = int(idle + ROOM * (peak - idle))
    mib = f"{limit // MIB} MiB a worker (one takes {peak // MIB} MiB by hand)"
    told = []
    for make in (contenders.ours, contenders.dask_script):
        with make(limit) as each:
            told.append(turns.to_the_end(each))
    (our_s, our_end), (_, their_end) = told
    rows.append(
        Row(
            "execution",
            f"{what}, {mib}",
            "Dask script by hand",
            our_end,
            their_end,
            note="" if our_s is not None else "ours did not finish",
            headline=True,
        )
    )
    return rows


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
