"""What a job costs beyond its own work: no-ops beside bare Dask submits, and how near to ideal runs come."""

import contextlib
import itertools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
# Of each process: two of a kind are measured, which are alone.
WARM_UP_JOBS = 8
# How often each contender of a cluster runs while that is up.
TURNS = 2
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


def mapped(client: Client, function: Callable[..., Any], count: int, **keywords: Any) -> None:
    """All at once, and wait; `keywords` are Dask's."""
    futures = client.map(function, range(count), pure=False, **keywords)
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


Contender = Callable[[str, int], None]
"""Runs so many jobs of a kind: sleeping or computing."""


@dataclass(frozen=True, slots=True)
class JobsOf100ms:
    """What a job does, as a step of ours and as a function for the others, by kind."""

    steps: Mapping[str, dict[str, Any]]
    functions: Mapping[str, Callable[..., None]]

    @classmethod
    def here(cls) -> "JobsOf100ms":
        """With as much to compute as takes so long on this machine."""
        rounds = work.rounds_for(JOB_S)
        return cls(
            {
                "sleeping": _step("sleeping", seconds=JOB_S),
                "computing": _step("computing", rounds=rounds),
            },
            {"sleeping": partial(work.sleep, JOB_S), "computing": partial(work.work, rounds)},
        )

    @contextlib.contextmanager
    def on_our_cluster(self) -> Iterator[dict[str, Contender]]:
        """We, and Dask on the same processes."""

        def ours(kind: str, count: int) -> None:
            run_jobs(scheduler, [StackJob(TINY, [self.steps[kind]]) for _ in range(count)])

        with embedded() as (scheduler, client):
            yield {"ours": ours, "client.map on our cluster": partial(self._map, client)}

    @contextlib.contextmanager
    def on_dasks(self) -> Iterator[dict[str, Contender]]:
        """A cluster as Dask makes it."""
        cluster = LocalCluster(
            n_workers=usable_cores(),
            threads_per_worker=1,
            resources={"GPU": 1},
            dashboard_address="127.0.0.1:0",
        )
        with cluster, Client(cluster) as client:
            yield {
                "client.map on Dask's own": partial(self._map, client),
                'resources={"GPU": 1} on Dask\'s own': partial(self._map, client, resources={"GPU": 1}),
            }

    def _map(self, client: Client, kind: str, count: int, **keywords: Any) -> None:
        mapped(client, self.functions[kind], count, **keywords)

    @contextlib.contextmanager
    def in_joblib(self) -> Iterator[dict[str, Contender]]:
        """Processes of joblib's."""
        import joblib
        from joblib.externals.loky import get_reusable_executor

        def by_joblib(kind: str, count: int) -> None:
            pool(joblib.delayed(self.functions[kind])(number) for number in range(count))

        with contextlib.ExitStack() as at_the_end:
            # It keeps its processes for others to use.
            at_the_end.callback(lambda: get_reusable_executor().shutdown(wait=True))
            pool = at_the_end.enter_context(joblib.Parallel(n_jobs=usable_cores()))
            yield {"joblib": by_joblib}


def efficiency(rounds: int, count: int) -> list[Row]:
    """How near sleeping and computing jobs of 100 ms come to the ideal, beside what else could run them.

    Ideal is count * 100 ms, shared evenly by the processes. Each cluster is up only in its own turns: one
    that waits takes a few per cent of a core. So a busy moment of the machine may count against one only.
    """
    jobs = JobsOf100ms.here()
    ideal = count * JOB_S / usable_cores()
    homes = [jobs.on_our_cluster, jobs.on_dasks]
    no_joblib = why_absent("joblib")
    if not no_joblib:
        homes.append(jobs.in_joblib)
    times: dict[str, dict[str, Times]] = {kind: defaultdict(Times) for kind in jobs.steps}
    for number in range(rounds):
        first = number % len(homes)
        for home in homes[first:] + homes[:first]:
            with home() as contenders:
                for kind, found in times.items():
                    for run in contenders.values():
                        run(kind, WARM_UP_JOBS * usable_cores())
                    runs = {name: partial(run, kind, count) for name, run in contenders.items()}
                    for name, taken in take_turns(runs, TURNS, warm_up=False).items():
                        found[name].wall += taken.wall
    rows: list[Row] = []
    for kind, found in times.items():
        if no_joblib:
            rows.append(Row("execution", f"{count} {kind} jobs of 100 ms", "joblib", note=no_joblib))
        rows += _efficiency_rows(kind, found, count, ideal)
    return rows


def _efficiency_rows(kind: str, times: Mapping[str, Times], count: int, ideal: float) -> Iterator[Row]:
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
    for peer in [name for name in times if name != "ours"]:
        median = times[peer].median
        yield Row.compared(
            "execution",
            what,
            peer,
            Ratio.of(mine.wall, times[peer].wall),
            ours=shown,
            theirs=f"{seconds(median)} ({ideal / median:.1%} of ideal)",
            target="<= 1.0" if kind == "computing" and peer.startswith("client.map") else "",
            headline=kind == "computing",
        )


def _step(name: str, **keywords: Any) -> dict[str, Any]:
    return {"use": f"benchmarks.execution_work:{name}", "with": keywords}
