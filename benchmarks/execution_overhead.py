"""What a job costs beyond its own work: no-ops beside bare Dask submits, and how near to ideal runs come."""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster, as_completed, default_client, wait

from benchmarks import execution_work as work
from benchmarks.measure import Ratio, Times, processor_s, take_turns, why_absent
from benchmarks.rows import Row, seconds
from scheduler import StackJob
from scheduler.config.model import DevicesConfig
from scheduler.execution.devices import usable_cores
from scheduler.execution.fleet import READY
from scheduler.execution.local import local_scheduler
from scheduler.execution.stack_scheduler import StackScheduler

JOB_S = 0.1
NO_OP_TARGET = "<= 1.3"
IDEAL_TARGET = f"<= {1 / 0.97:.4f}"
ON_CPU = DevicesConfig.model_validate({"gpus": [], "cpu": True})
TINY = np.zeros((1, 4, 4), np.uint16)
_numbers = itertools.count()


@contextlib.contextmanager
def embedded() -> Iterator[tuple[StackScheduler, Client]]:
    """Our scheduler on its own cluster of CPU workers, and a plain client of the same cluster."""
    with (
        tempfile.TemporaryDirectory(prefix="stackyard-benchmark-") as folder,
        local_scheduler(run_dir=Path(folder, "run"), devices=ON_CPU) as scheduler,
    ):
        yield scheduler, default_client()


def run_jobs(scheduler: StackScheduler, jobs: list[StackJob], **returns: Any) -> None:
    """Run jobs to their end."""
    for future in scheduler.map(jobs, **returns):
        future.result().check()


def keep_in_flight(
    client: Client,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    window: int,
    *,
    with_results: bool = True,
) -> None:
    """Submit one call after another so that never more than `window` are in flight."""
    left = iter(arguments)
    first = [client.submit(function, *each, pure=False) for each in itertools.islice(left, window)]
    coming = as_completed(first, with_results=with_results)
    for done in coming:
        future = done[0] if with_results else done
        if future.status != "finished":
            raise RuntimeError(f"a bare task ended as {future.status}")
        future.release()
        for each in itertools.islice(left, 1):
            coming.add(client.submit(function, *each, pure=False))


def mapped(client: Client, function: Callable[..., Any], count: int) -> None:
    """All at once, and wait."""
    futures = client.map(function, range(count), pure=False)
    wait(futures)
    if any(future.status != "finished" for future in futures):
        raise RuntimeError("a mapped task failed")


def no_ops(rounds: int, count: int) -> list[Row]:
    """A job that does nothing, ours and bare, in turn on the same processes.

    Both keep as many in flight as our window is for very short jobs: a running one and several ready ones for
    each process.
    """
    rows: list[Row] = []
    with embedded() as (scheduler, client), tempfile.TemporaryDirectory() as folder:
        window = (1 + READY) * len(client.scheduler_info(n_workers=-1)["workers"])

        def path() -> str:
            return str(Path(folder, f"{next(_numbers)}.ome.tif"))

        def ours(output: bool = False, **returns: Any) -> None:
            jobs = [StackJob(TINY, [work.identity], output=path() if output else None) for _ in range(count)]
            run_jobs(scheduler, jobs, **returns)

        def bare(function: Callable[..., Any], written: bool = False, with_results: bool = True) -> None:
            arguments = [(TINY, path()) if written else (TINY,) for _ in range(count)]
            keep_in_flight(client, function, arguments, window, with_results=with_results)

        variants: dict[str, tuple[Callable[[], None], dict[str, Callable[[], None]]]] = {
            "nothing comes back": (
                ours,
                {
                    "Dask submit, result fetched": partial(bare, work.nothing),
                    "Dask submit, waited for": partial(bare, work.nothing, with_results=False),
                    "client.map": partial(mapped, client, partial(work.with_number, work.nothing), count),
                },
            ),
            "an array of 32 bytes comes back": (
                partial(ours, returns="array"),
                {"Dask submit, result fetched": partial(bare, work.same)},
            ),
            "a file is written": (
                partial(ours, output=True),
                {
                    "Dask submit, file renamed into place and flushed": partial(
                        bare, work.write_safely, written=True, with_results=False
                    ),
                    "Dask submit, file just written": partial(
                        bare, work.write, written=True, with_results=False
                    ),
                },
            ),
        }
        for name, (mine, theirs) in variants.items():
            times = take_turns({"ours": mine, **theirs}, rounds, processor_s=processor_s)
            for peer in theirs:
                held = peer.startswith("Dask submit") and "just" not in peer
                rows.append(_no_op_row(name, peer, times, count, NO_OP_TARGET if held else ""))
    return rows


def _no_op_row(name: str, peer: str, times: dict[str, Times], count: int, target: str) -> Row:
    used = [sum(times[who].cpu) / len(times[who].cpu) / count for who in ("ours", peer)]
    return Row.compared(
        "execution",
        f"no-op job, {name}",
        peer,
        Ratio.of(times["ours"].wall, times[peer].wall),
        ours=f"{seconds(times['ours'].median / count)} a job",
        theirs=f"{seconds(times[peer].median / count)} a job",
        target=target,
        note=f"processor time {seconds(used[0])} and {seconds(used[1])} a job",
        headline=bool(target),
    )


def efficiency(rounds: int, count: int) -> list[Row]:
    """How near sleeping and computing jobs of 100 ms come to the ideal, beside what else could run them.

    Ideal is count * 100 ms, shared evenly by the processes.
    """
    cores = usable_cores()
    rounds_of_work = work.rounds_for(JOB_S)
    kinds: dict[str, tuple[dict[str, Any], Callable[..., None]]] = {
        "sleeping": (_step("sleeping", seconds=JOB_S), partial(work.sleep, JOB_S)),
        "computing": (_step("computing", rounds=rounds_of_work), partial(work.work, rounds_of_work)),
    }
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        scheduler, client = stack.enter_context(embedded())
        labelled = LocalCluster(
            n_workers=cores, threads_per_worker=1, resources={"GPU": 1}, dashboard_address="127.0.0.1:0"
        )
        stack.enter_context(labelled)
        other = stack.enter_context(Client(labelled, set_as_default=False))
        no_joblib = why_absent("joblib")
        if not no_joblib:
            import joblib

            pool = stack.enter_context(joblib.Parallel(n_jobs=cores))

        def ours(step: dict[str, Any]) -> None:
            run_jobs(scheduler, [StackJob(TINY, [step]) for _ in range(count)])

        def by_resources(function: Callable[..., None]) -> None:
            wait(other.map(function, range(count), pure=False, resources={"GPU": 1}))

        def by_joblib(function: Callable[..., None]) -> None:
            pool(joblib.delayed(function)(number) for number in range(count))

        for kind, (step, function) in kinds.items():
            peers = {
                "client.map": partial(mapped, client, function, count),
                'resources={"GPU": 1}': partial(by_resources, function),
            }
            if no_joblib:
                rows.append(Row("execution", f"{count} {kind} jobs of 100 ms", "joblib", note=no_joblib))
            else:
                peers["joblib"] = partial(by_joblib, function)
            times = take_turns({"ours": partial(ours, step), **peers}, rounds)
            rows += _efficiency_rows(kind, list(peers), times, count, count * JOB_S / cores)
    return rows


def _efficiency_rows(
    kind: str, peers: list[str], times: dict[str, Times], count: int, ideal: float
) -> Iterator[Row]:
    what = f"{count} {kind} jobs of 100 ms"
    mine = times["ours"]
    shown = f"{seconds(mine.median)} ({ideal / mine.median:.1%} of ideal)"
    if kind == "sleeping":
        yield Row.compared(
            "execution",
            what,
            "the ideal",
            Ratio.around(each / ideal for each in mine.wall),
            ours=shown,
            theirs=seconds(ideal),
            target=IDEAL_TARGET,
            headline=True,
        )
    for peer in peers:
        median = times[peer].median
        yield Row.compared(
            "execution",
            what,
            peer,
            Ratio.of(mine.wall, times[peer].wall),
            ours=shown,
            theirs=f"{seconds(median)} ({ideal / median:.1%} of ideal)",
            target="<= 1.0" if (kind, peer) == ("computing", "client.map") else "",
            headline=kind == "computing",
        )


def _step(name: str, **keywords: Any) -> dict[str, Any]:
    return {"use": f"benchmarks.execution_work:{name}", "with": keywords}
