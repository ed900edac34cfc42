"""SIGTERM and SIGINT give a worker process of somebody else's cluster time to end what it has begun."""

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import dask
import psutil
from distributed import Worker

from scheduler.core.model import gib

SIGNALS = (signal.SIGTERM, signal.SIGINT)
Drain = Callable[[str, bool], Awaitable[None]]
# What a nanny saw was a moment ago.
NEARLY = 0.9

_drains: dict[tuple[str, str], tuple[Worker, Drain]] = {}
_before: dict[int, Any] = {}
_loops: list[asyncio.AbstractEventLoop] = []
_departing: list[asyncio.Task[None]] = []


def drain_on_signals(worker: Worker, topic: str, drain: Drain) -> None:
    """On the first signal have `drain` awaited, and then close the worker.

    `drain` is told the reason in words, and whether it is that the process has outgrown its memory limit: its
    nanny soon sends SIGKILL then.
    A second signal does what it would have done without this. Nothing happens in a process that is more than
    a worker, such as a notebook with a `LocalCluster`: its signals are its own.
    """
    if not _is_worker_program(worker):
        return
    _drains[worker.id, topic] = worker, drain
    _loops[:] = [asyncio.get_running_loop()]
    for number in SIGNALS:
        if number not in _before:
            _before[number] = signal.getsignal(number)
            signal.signal(number, _handle)


def ignore_signals(worker: Worker, topic: str) -> None:
    """Undo it for one run; with the last one the process's own handlers are back."""
    _drains.pop((worker.id, topic), None)
    if not _drains:
        _restore()


def _is_worker_program(worker: Worker) -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False
    # A nanny's process; or `dask worker --no-nanny`, which waits for signals by this module of Dask's.
    handled_by = getattr(signal.getsignal(signal.SIGTERM), "__module__", "")
    return worker.nanny is not None or bool(_before) or handled_by == "distributed._signals"


def _restore() -> None:
    for number, handler in _before.items():
        if signal.getsignal(number) is _handle:
            signal.signal(number, handler)
    _before.clear()


def _handle(number: int, _frame: FrameType | None) -> None:
    if _departing:
        _restore()
        os.kill(os.getpid(), number)
        return
    # In a signal handler nothing may be done that takes a lock.
    _loops[0].call_soon_threadsafe(_depart, signal.Signals(number))


def _depart(number: signal.Signals) -> None:
    if not _departing and _drains:
        _departing.append(asyncio.get_running_loop().create_task(_drain_and_close(number)))


def _outgrown(worker: Worker) -> str:
    """How much memory the process has of how much, where that is why its nanny has it end; else ""."""
    limit = worker.memory_manager.memory_limit
    share = dask.config.get("distributed.worker.memory.terminate")
    resident = psutil.Process().memory_info().rss
    if worker.nanny is None or not limit or not share or resident < NEARLY * share * limit:
        return ""
    return f"its nanny ends it, for it had {gib(resident)}, and its memory limit is {gib(limit)}"


async def _drain_and_close(number: signal.Signals) -> None:
    workers = {worker.id: worker for worker, _ in _drains.values()}.values()
    outgrown = next(map(_outgrown, workers)) if number is signal.SIGTERM else ""
    reason = outgrown or f"it was asked to end by {number.name}"
    try:
        await asyncio.gather(*(drain(reason, bool(outgrown)) for _, drain in _drains.values()))
    finally:
        # The nanny, if it isn't being closed too, brings a fresh process, as it would without us.
        await asyncio.gather(*(worker.close(nanny=False, reason=reason) for worker in workers))
