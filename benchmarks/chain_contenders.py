"""One real chain by four ways: our scheduler, a Dask script written by hand, map_overlap, a loop.

All call the same step functions on the same files, so that what differs is how the work is organised, and the
pixels must be equal. Clusters have a worker process of one thread for each core.
"""

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import tifffile
from distributed import Client, LocalCluster
from numpy.typing import NDArray

from scheduler import StackJob
from scheduler.execution.devices import usable_cores
from scheduler.execution.stack_scheduler import StackScheduler
from scheduler.images.sample import sample_stack
from scheduler.steps.change_dtype import convert_dtype
from scheduler.steps.rescale_intensity import rescale_intensity
from scheduler.steps.richardson_lucy import richardson_lucy
from scheduler.steps.subtract_background import subtract_background

RADIUS, SIGMA, ITERATIONS = 25, (1.5, 1.2, 1.2), 3
IN_RANGE, OUT_RANGE = (0.0, 4000.0), (0.0, 65535.0)
STEPS: list[dict[str, Any]] = [
    {"use": "subtract_background", "with": {"radius": RADIUS}},
    {"use": "richardson_lucy", "with": {"sigma": list(SIGMA), "iterations": ITERATIONS}},
    {"use": "rescale_intensity", "with": {"in_range": list(IN_RANGE), "out_range": list(OUT_RANGE)}},
    {"use": "convert_dtype", "with": {"dtype": "uint16", "rule": "saturate"}},
]
# What the chain sees beyond a block in y and x: the opening 2 x 25, five blurs of radius 5 each.
HALO = 75
BLOCK = 512
Pairs = Sequence[tuple[Path, Path]]


def chain(stack: NDArray[Any]) -> NDArray[Any]:
    """The chain's steps as plain function calls."""
    stack = subtract_background(stack, radius=RADIUS)
    stack = richardson_lucy(stack, sigma=SIGMA, iterations=ITERATIONS)
    stack = rescale_intensity(stack, in_range=IN_RANGE, out_range=OUT_RANGE)
    result: NDArray[Any] = convert_dtype(stack, dtype="uint16", rule="saturate")
    return result


def by_hand(source: Path, target: Path) -> None:
    """One stack, as a user's function does it."""
    write(chain(tifffile.imread(source)), target)


def write(stack: NDArray[Any], target: Path) -> None:
    """Write an OME-TIFF."""
    tifffile.imwrite(target, stack, ome=True, photometric="minisblack", metadata={"axes": "ZYX"})


def loop(pairs: Pairs) -> None:
    """One stack after another."""
    for source, target in pairs:
        by_hand(source, target)


def overlapped(source: Path, target: Path) -> Any:
    """One stack as a lazy array in blocks with a halo, written when it is computed."""
    from dask_image.imread import imread

    lazy = imread(str(source)).rechunk({0: -1, 1: BLOCK, 2: BLOCK})
    result = lazy.map_overlap(chain, depth=(0, HALO, HALO), boundary="none", dtype=np.uint16)
    return dask.delayed(write)(result, target)


def make_inputs(folder: Path, count: int, shape: tuple[int, int, int]) -> list[Path]:
    """Stacks as from a microscope, one multi-page TIFF each."""
    folder.mkdir(parents=True)
    found = []
    for number in range(count):
        stack = np.stack(list(sample_stack(shape, well="A01", site=number + 1, channel=1, seed=0)))
        path = folder / f"stack{number:03}.tif"
        tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"})
        found.append(path)
    return found


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to run the chain; `run` raises what a user would see, `pids` are its working processes."""

    name: str
    run: Callable[[Pairs], None]
    pids: Callable[[], list[int]]


def warm(way: Contender, folder: Path) -> None:
    """One small stack for each core, so that libraries are loaded."""
    inside = folder / f"warm {way.name}"
    sources = make_inputs(inside, usable_cores(), (4, 128, 128))
    way.run([(source, inside / f"{source.stem}.ome.tif") for source in sources])


@contextlib.contextmanager
def cluster(memory_limit: int | None = None) -> Iterator[tuple[LocalCluster, Client]]:
    """A worker process for each core, each killed by its nanny when it outgrows `memory_limit` bytes."""
    quiet = {"distributed.worker.memory.spill": False, "distributed.worker.memory.target": False}
    with (
        dask.config.set(quiet),
        LocalCluster(
            n_workers=usable_cores(),
            threads_per_worker=1,
            memory_limit=memory_limit or 0,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as made,
        Client(made, set_as_default=False) as client,
    ):
        yield made, client


def _workers(made: LocalCluster) -> Callable[[], list[int]]:
    return lambda: [nanny.pid for nanny in made.workers.values() if nanny.pid]


@contextlib.contextmanager
def ours(memory_limit: int | None = None) -> Iterator[Contender]:
    """Our scheduler."""
    with cluster(memory_limit) as (made, client), StackScheduler(client) as scheduler:

        def run(pairs: Pairs) -> None:
            jobs = [StackJob(source, STEPS, output=target) for source, target in pairs]
            for future in scheduler.map(jobs):
                future.result().check()

        yield Contender("ours", run, _workers(made))


@contextlib.contextmanager
def dask_script(memory_limit: int | None = None) -> Iterator[Contender]:
    """`client.map` over a function, and `gather`."""
    with cluster(memory_limit) as (made, client):

        def run(pairs: Pairs) -> None:
            client.gather(client.map(by_hand, *zip(*pairs, strict=True), pure=False))

        yield Contender("Dask script", run, _workers(made))


@contextlib.contextmanager
def map_overlap(memory_limit: int | None = None) -> Iterator[Contender]:
    """dask-image reads, `map_overlap` computes in blocks."""
    with cluster(memory_limit) as (made, client):

        def run(pairs: Pairs) -> None:
            client.gather(client.compute([overlapped(source, target) for source, target in pairs]))

        yield Contender("map_overlap", run, _workers(made))


@contextlib.contextmanager
def serial(memory_limit: int | None = None) -> Iterator[Contender]:
    """A loop in one process, which may have `memory_limit` bytes of data."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _bounded, (memory_limit,)) as pool:
        pid = pool.submit(os.getpid).result()

        def run(pairs: Pairs) -> None:
            pool.submit(loop, pairs).result()

        yield Contender("serial loop", run, lambda: [pid])


def _bounded(memory_limit: int | None) -> None:
    if memory_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))


def footprint(source: Path, scratch: Path) -> tuple[int, int]:
    """Bytes that a process has when it is ready for `by_hand`, and at most when it has done it twice."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_high_water, source, scratch).result()


def _high_water(source: Path, scratch: Path) -> tuple[int, int]:
    small = scratch / "small.tif"
    write(np.zeros((2, 16, 16), np.uint16), small)
    by_hand(small, scratch / "small.ome.tif")
    before = _status("VmRSS")
    for number in range(2):
        by_hand(source, scratch / f"{number}.ome.tif")
    return before, _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def different(pairs: Pairs, reference: Sequence[Path]) -> list[str]:
    """The names of results that don't have the very pixels of the reference, or aren't there."""
    return [
        target.name
        for (_, target), expected in zip(pairs, reference, strict=True)
        if not target.exists() or not np.array_equal(tifffile.imread(target), tifffile.imread(expected))
    ]
