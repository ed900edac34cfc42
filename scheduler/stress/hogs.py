"""Programs of others on the devices: processes that take memory and give it back without asking anybody."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol

from memcore.errors import OutOfDeviceMemoryError
from scheduler.core.model import Device, DeviceKind
from scheduler.stress.modes import HogMode
from scheduler.stress.options import StressError

OWNER = "hog"
STEADY_SHARE = 0.25
LEAST_SHARE, MOST_SHARE = 0.1, 0.5
STEP_SHARE = (0.1, 0.4)
# A hog never changes what it holds twice within this time: who looks more often sees every change.
LEAST_PAUSE_S = 0.08
GROWING_S, STAYING_S, AWAY_S = (LEAST_PAUSE_S, 0.3), (0.2, 2.0), (0.2, 2.0)
START_S = 120.0


class Taken(Protocol):
    """Bytes that are held until `release`."""

    def release(self) -> None:
        """Give them back."""


Take = Callable[[int], Taken | None]
"""Takes so many bytes of the hog's device; None where they aren't there."""


@dataclass(frozen=True, slots=True)
class HogPlan:
    """One hog: on which device, how it behaves, and its share of the seed. `total_bytes` of the device."""

    uuid: str
    kind: DeviceKind
    total_bytes: int
    mode: HogMode
    seed: tuple[int, int]


class Hogs:
    """Hog processes, one for each device, from when they are there until `close`.

    `held_bytes()` gives what each holds at least: a hog says so after it has taken bytes, and before it gives
    them back.
    """

    def __init__(self, devices: Sequence[Device], mode: HogMode, seed: int) -> None:
        context = get_context("spawn")
        chosen = [] if mode is HogMode.NONE else [each for each in devices if each.kind is not DeviceKind.CPU]
        self.uuids = tuple(device.uuid for device in chosen)
        # No lock: one writer each, and eight aligned bytes are written at once.
        self.held: Any = context.RawArray("q", max(1, len(chosen)))
        self._ends: list[Connection] = []
        self._processes = []
        try:
            for number, device in enumerate(chosen):
                ours, theirs = context.Pipe()
                plan = HogPlan(device.uuid, device.kind, device.total_bytes, mode, (seed, number))
                process = context.Process(
                    target=_hog, args=(plan, theirs, self.held, number), name=f"stackyard-hog-{number}"
                )
                process.start()
                theirs.close()
                self._ends.append(ours)
                self._processes.append(process)
            for end in self._ends:
                self._wait_until_ready(end)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The processes of the hogs."""
        return [process.pid for process in self._processes if process.pid is not None]

    def close(self) -> None:
        """End them; their memory comes back with that."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join()
        self._ends.clear()

    def __enter__(self) -> "Hogs":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _wait_until_ready(end: Connection) -> None:
        if not end.poll(START_S):
            raise StressError(f"a hog process wasn't there after {START_S:g} s")
        try:
            problem = end.recv()
        except EOFError as error:
            raise StressError("a hog process died as it started") from error
        if problem:
            raise StressError(problem)


def steps_of(plan: HogPlan) -> Iterator[tuple[int, float]]:
    """What the hog does, without end: (bytes to take more, seconds until the next step).

    A negative number gives everything back.
    """
    import numpy as np

    random = np.random.default_rng(plan.seed)
    if plan.mode is HogMode.STEADY:
        yield int(STEADY_SHARE * plan.total_bytes), LEAST_PAUSE_S
        while True:
            yield 0, 1.0
    while True:
        yield 0, random.uniform(*AWAY_S)
        wanted = int(random.uniform(LEAST_SHARE, MOST_SHARE) * plan.total_bytes)
        while wanted > 0:
            step = min(wanted, max(1 << 20, int(random.uniform(*STEP_SHARE) * wanted)))
            wanted -= step
            yield step, random.uniform(*GROWING_S)
        yield 0, random.uniform(*STAYING_S)
        yield -1, LEAST_PAUSE_S


def _hog(plan: HogPlan, end: Connection, held: Any, number: int) -> None:
    """The process: it ends when the other end of its pipe is closed, by the death of its parent too."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        take = taker(plan)
    except Exception as error:  # noqa: BLE001  told to the parent, which names it
        end.send(f"no hog can run on {plan.uuid}: {type(error).__name__}: {error}")
        return
    ready = False

    def say(nbytes: int) -> None:
        held[number] = nbytes

    for seconds in behave(steps_of(plan), take, say):
        try:
            if not ready:
                end.send("")
                ready = True
            if end.poll(seconds):
                end.recv()
        except (EOFError, OSError):
            break


def behave(steps: Iterable[tuple[int, float]], take: Take, say: Callable[[int], None]) -> Iterator[float]:
    """Carry out a hog's steps, saying what it holds at least; yields the seconds until the next one."""
    taken: list[tuple[int, Taken]] = []
    for nbytes, seconds in steps:
        if nbytes < 0:
            say(0)
            while taken:
                taken.pop()[1].release()
        elif nbytes:
            more = take(nbytes)
            if more is not None:
                taken.append((nbytes, more))
                say(sum(each for each, _ in taken))
        yield seconds


def taker(plan: HogPlan) -> Take:
    if plan.kind is DeviceKind.VIRTUAL:
        return _charger(plan.uuid)
    # Bound to its device before a framework is imported.
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": plan.uuid}
    if find_spec("torch") is not None:
        return _torch_taker()
    if find_spec("cupy") is not None:
        return _cupy_taker()
    raise StressError("neither torch nor cupy is installed")


def _charger(uuid: str) -> Take:
    from pools.virtual import VirtualDeviceMemory

    memory = VirtualDeviceMemory(uuid)

    def take(nbytes: int) -> Taken | None:
        try:
            return memory.charge(nbytes, OWNER)
        except OutOfDeviceMemoryError:
            return None

    return take


@dataclass(slots=True)
class _Array:
    """A framework's array, whose memory goes back to the device at once."""

    array: Any
    give_back: Callable[[], object]

    def release(self) -> None:
        self.array = None
        self.give_back()


def _torch_taker() -> Take:
    import torch

    torch.zeros(1, device="cuda")  # the context, before anybody counts on this hog

    def take(nbytes: int) -> Taken | None:
        with contextlib.suppress(torch.OutOfMemoryError):
            array = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
            return _Array(array, torch.cuda.empty_cache)
        return None

    return take


def _cupy_taker() -> Take:
    import cupy

    cupy.zeros(1)

    def take(nbytes: int) -> Taken | None:
        with contextlib.suppress(cupy.cuda.memory.OutOfMemoryError):
            array = cupy.empty(nbytes, dtype="uint8")
            return _Array(array, cupy.get_default_memory_pool().free_all_blocks)
        return None

    return take
