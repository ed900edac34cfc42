"""Stacks of 32x1024x1024 through background, deconvolution and rescaling, by four ways, from file to file.

    python benchmarks/end_to_end.py [--quick | --full] [--out benchmarks/results]

Ours, a Dask script, dask-image with `map_overlap`, and a loop take turns at the same few stacks until each
has done 20 (200 with --full); all of them call the same functions, and each result must have the loop's
pixels. Peak memory is that of the processes that do the work, all together; a device is idle where its core
is. Then the same once more where each worker process may have half of the memory that the chain takes by
hand beyond an idle process. Writes end_to_end.json with the machine.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

# ruff: noqa: E402  a file beside this one is named like the package `pools`
ROOT = Path(__file__).resolve().parents[1]
if __name__ in ("__main__", "__mp_main__"):
    sys.path[0] = str(ROOT)

import psutil

from benchmarks import chain_contenders as contenders
from benchmarks.chain_turns import Turns, targets
from benchmarks.measure import (
    PeakMemory,
    Ratio,
    Times,
    machine,
    one_thread_each,
    processor_s,
    take_turns,
    why_absent,
)
from benchmarks.rows import Row, as_json
from scheduler.execution.devices import usable_cores

MIB = 1 << 20
Maker = Callable[[int | None], contextlib.AbstractContextManager[contenders.Contender]]


@dataclass(frozen=True, slots=True)
class Scale:
    """Stacks a turn, turns, their shape, and the stacks of the part with half the memory."""

    stacks: int
    turns: int
    shape: tuple[int, int, int]
    limited: int


SCALES = {
    "quick": Scale(2, 1, (8, 256, 256), 0),
    "default": Scale(4, 5, (32, 1024, 1024), 4),
    "full": Scale(4, 50, (32, 1024, 1024), 20),
}


@dataclass(slots=True)
class Use:
    """What one contender's processes used in its turns: bytes at most, and the share of the cores' time."""

    peaks: list[int] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def watched(self, contender: contenders.Contender, turn: Callable[[], None]) -> Callable[[], None]:
        """The turn, with its use noted."""

        def watch() -> None:
            processes = [psutil.Process(pid) for pid in contender.pids()]
            used, began = processor_s(processes), perf_counter()
            with PeakMemory(contender.pids) as peak:
                turn()
            took = (perf_counter() - began) * usable_cores()
            self.peaks.append(peak.nbytes)
            self.busy.append((processor_s(processes) - used) / took)

        return watch

    def idle(self) -> float:
        """The median share of the cores' time in which they did none of it."""
        return max(0.0, 1 - Ratio.around(self.busy).median)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and few, to see that it runs")
    parser.add_argument("--full", action="store_true", help="200 stacks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    size = "quick" if options.quick else "full" if options.full else "default"
    host = machine("distributed", "dask", "dask-image", "numpy", "scipy", "tifffile")
    with one_thread_each(), tempfile.TemporaryDirectory(prefix="stackyard-benchmark-") as folder:
        rows = compare(SCALES[size], Path(folder))
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"machine": host, "size": size, "rows": as_json(rows)}
    (options.out / "end_to_end.json").write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(f"{row.what}, beside {row.peer}: {row.ours} and {row.theirs}; {row.note}")


def compare(scale: Scale, folder: Path) -> list[Row]:
    """All four with enough memory, then under half of it."""
    sources = contenders.make_inputs(folder / "in", scale.stacks, scale.shape)
    reference = targets(folder / "reference", sources)
    contenders.loop(list(zip(sources, reference, strict=True)))
    turns = Turns(folder, sources, reference)
    uses: dict[str, Use] = {}
    with contextlib.ExitStack() as stack:
        ways = {each.name: each for each in (stack.enter_context(make(None)) for make in makers())}
        runs: dict[str, Callable[[], object]] = {}
        for name, way in ways.items():
            uses[name] = Use()
            contenders.warm(way, folder)
            runs[name] = uses[name].watched(way, turns.of(way))
        times = take_turns(runs, scale.turns, warm_up=False, after=turns.clear)
    planes, height, width = scale.shape
    form = f"stacks of {planes}x{height}x{width}, background, deconvolution, rescaled"
    rows = list(_rows(f"{scale.stacks * scale.turns} {form}", scale.stacks, times, uses))
    if why := why_absent("dask-image"):
        rows.append(Row("end_to_end", form, "map_overlap", note=why))
    if scale.limited:
        idle, peak = contenders.footprint(sources[0], folder)
        rows += under_a_limit(form, turns, scale, (idle + peak) // 2, peak)
    return rows


def makers() -> Iterator[Maker]:
    """What starts each contender, as far as it is installed."""
    yield from (contenders.ours, contenders.dask_script)
    if not why_absent("dask-image"):
        yield contenders.map_overlap
    yield contenders.serial


def _rows(what: str, stacks: int, times: dict[str, Times], uses: dict[str, Use]) -> list[Row]:
    def told(name: str) -> str:
        return f"{stacks / times[name].median:.3g} stacks/s"

    def used(name: str) -> str:
        return f"{max(uses[name].peaks) // MIB} MiB, {uses[name].idle():.0%} idle"

    return [
        Row.compared(
            "end_to_end",
            what,
            peer,
            Ratio.of(times["ours"].wall, times[peer].wall),
            ours=f"{told('ours')}, {used('ours')}",
            theirs=f"{told(peer)}, {used(peer)}",
            target="<= 1.0" if peer != "serial loop" else "",
            note="same pixels",
            headline=True,
        )
        for peer in times
        if peer != "ours"
    ]


def under_a_limit(form: str, turns: Turns, scale: Scale, limit: int, whole: int) -> list[Row]:
    """Each way once, with worker processes that may have `limit` bytes."""
    ends: dict[str, tuple[float | None, str]] = {}
    for make in makers():
        with make(limit) as way:
            ends[way.name] = turns.to_the_end(way)
    ours_s, ours_end = ends.pop("ours")
    return [
        Row(
            "end_to_end",
            f"{scale.stacks} {form}, {limit // MIB} MiB a process (by hand one takes {whole // MIB} MiB)",
            peer,
            ours_end,
            end,
            ours_s / took if ours_s is not None and took is not None else None,
            note="one turn" if took is not None else f"{peer} did not finish",
            headline=True,
        )
        for peer, (took, end) in ends.items()
    ]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
