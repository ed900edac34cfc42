"""How contenders are compared: in turn, in one run, with what their processes used; and on what machine."""

import contextlib
import importlib.metadata
import os
import platform
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

Run = Callable[[], object]
SAMPLE_S = 0.05
PAUSE_S = 0.05


@dataclass(slots=True)
class Times:
    """Seconds of one contender's rounds: on the clock, and of processor time where that was asked for."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the seconds on the clock."""
        return statistics.median(self.wall)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours by theirs, round by round: the median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Iterable[float], theirs: Iterable[float]) -> "Ratio":
        """Of two contenders that took turns: each round has a ratio of its own, so that a busy moment counts
        against both."""
        return cls.around([a / b for a, b in zip(ours, theirs, strict=True)])

    @classmethod
    def around(cls, values: Iterable[float]) -> "Ratio":
        """The median and the quartiles of some values."""
        found = sorted(values)
        if len(found) == 1:
            return cls(found[0], found[0], found[0])
        low, median, high = statistics.quantiles(found, n=4, method="inclusive")
        return cls(median, low, high)


def take_turns(
    contenders: Mapping[str, Run],
    rounds: int,
    *,
    warm_up: bool = True,
    processor_s: Callable[[], float] | None = None,
    after: Run = lambda: None,
) -> dict[str, Times]:
    """Let each contender run once without measuring, then all in turn, each round beginning with another.

    `processor_s` gives the seconds of processor time that everything concerned has used so far; `after` is
    called after each turn, in nobody's time.
    """
    pause = threading.Event()
    if warm_up:
        for run in contenders.values():
            run()
            after()
    times = {name: Times() for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            pause.wait(PAUSE_S)  # what the one before has left to do, such as forgetting its keys
            used = processor_s() if processor_s else 0.0
            began = perf_counter()
            contenders[name]()
            times[name].wall.append(perf_counter() - began)
            if processor_s:
                times[name].cpu.append(processor_s() - used)
            after()
    return times


def family(pid: int | None = None) -> list[psutil.Process]:
    """A process and all that it has started, and they in turn."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def processor_s(processes: Iterable[psutil.Process] | None = None) -> float:
    """Seconds of processor time of some processes; of this one and its children if none are named."""
    seconds = 0.0
    for process in family() if processes is None else processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


class PeakMemory:
    """The most memory that some processes hold together in a `with` block, in bytes, looked at often.

    `pids` is asked again at each look: workers are restarted.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self.nbytes = 0
        self._pids = pids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            resident = 0
            for pid in self._pids():
                with contextlib.suppress(psutil.NoSuchProcess):
                    resident += psutil.Process(pid).memory_info().rss
            self.nbytes = max(self.nbytes, resident)
            if self._over.wait(SAMPLE_S):
                return


def machine(*distributions: str) -> dict[str, Any]:
    """What figures depend on, and the versions of what was compared; nothing that names the host."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        model = next(names, model)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30)),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: found for name in distributions if (found := version(name))},
        "load_at_start": round(os.getloadavg()[0], 1),
    }


def version(name: str) -> str | None:
    """Of an installed distribution; None if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def why_absent(distribution: str) -> str:
    """Why a peer can't take part; "" if it can."""
    return "" if version(distribution) else f"{distribution} isn't installed (it is in the group bench)"


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Every process started in the block computes with one thread, as our workers do on a core each."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
