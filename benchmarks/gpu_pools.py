"""Device and pinned memory from pools, beside the libraries' own allocators, and what running out costs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from benchmarks.gpu_clock import MIB, Bench, rows_of
from memcore.registry import backend_of
from pools import PoolSet
from pools.oom import is_oom

Rows = list[dict[str, Any]]
FAILURES = 5


def pools(bench: Bench) -> Rows:
    """Taking an array of the device and giving it back: our pool, the library's, the driver's, RMM's."""
    rows: Rows = []
    libraries = bench.libraries(("torch", "cupy"))
    for library in libraries:
        for mib in (0.25, 64, 1024):
            nbytes = bench.size(int(mib * MIB))
            with contextlib.ExitStack() as stack:
                candidates = dict(_allocators(bench, library, nbytes, stack))
                timings = bench.compare(candidates, [library], 1 / (3 * len(libraries)))
            rows += [
                {key: row[key] for key in ("library", "MiB", "what", "ms", "times ours", "rounds")}
                for row in rows_of(timings, "ours", nbytes, library=library, MiB=nbytes / MIB)
            ]
    return rows


def _allocators(
    bench: Bench, library: str, nbytes: int, stack: contextlib.ExitStack
) -> Iterator[tuple[str, Callable[[], object]]]:
    pools = stack.enter_context(PoolSet("1GiB", {0: 4 * nbytes + MIB} if bench.gpu else {}))
    pool = pools.pool(library, bench.place)

    def ours() -> None:
        with pool.acquire((nbytes,), "uint8"):
            pass

    yield "ours", ours
    device = {"device": "cuda" if bench.gpu else "cpu"}
    if library == "torch":
        import torch

        yield "torch.empty, cached", lambda: torch.empty(nbytes, dtype=torch.uint8, **device)
        if bench.gpu:

            def fresh() -> None:
                torch.cuda.empty_cache()
                torch.empty(nbytes, dtype=torch.uint8, **device)

            yield "torch.empty, from the driver", fresh
        return
    import cupy

    yield "cupy.empty, pooled", lambda: cupy.empty(nbytes, cupy.uint8)

    def unpooled() -> None:
        with cupy.cuda.using_allocator(None):
            cupy.empty(nbytes, cupy.uint8)

    yield "cupy.empty, from the driver", unpooled
    try:
        import rmm
    except ImportError:
        bench.notes.append("rmm isn't here to compare with")
        return
    resource = rmm.mr.PoolMemoryResource(rmm.mr.CudaMemoryResource(), 2 * nbytes + 256 * MIB)
    yield "rmm.DeviceBuffer, pooled", lambda: rmm.DeviceBuffer(size=nbytes, mr=resource)


def pinned(bench: Bench) -> Rows:
    """Taking 150 MiB of pinned host memory and giving it back, and how many bytes that locks."""
    nbytes = bench.size(150 * MIB)
    rows: Rows = []
    for library in bench.libraries(("torch", "cupy")):
        with PoolSet("2GiB") as pools:
            pool = pools.pinned(library, 0) if bench.gpu else pools.pool("numpy", "cpu")

            def pooled(pool: Any = pool) -> None:
                with pool.acquire((nbytes,), "uint8"):
                    pass

            def fresh(pool: Any = pool) -> None:
                pooled()
                pool.trim()

            candidates = {"ours": pooled, "ours, locked anew": fresh, **_pinning(bench, library, nbytes)}
            timings = bench.compare(candidates, [library], 0.5)
            locked = pool.lease((nbytes,), "uint8").nbytes
        for row in rows_of(timings, "ours", nbytes, library=library):
            # torch and CuPy round up to powers of two (torch#95823, cupy#7742): ours takes whole pages.
            rows.append({**row, "MiB asked": nbytes / MIB, "MiB locked by ours": locked / MIB})
    return rows


def _pinning(bench: Bench, library: str, nbytes: int) -> dict[str, Callable[[], object]]:
    if library == "torch":
        import torch

        return {
            "torch.empty(pin_memory=True)": lambda: torch.empty(
                nbytes, dtype=torch.uint8, pin_memory=bench.gpu
            )
        }
    import cupyx

    return {"cupyx.empty_pinned": lambda: cupyx.empty_pinned((nbytes,), "uint8")}


def out_of_memory(bench: Bench) -> Rows:
    """What an attempt that runs out of device memory costs beside one that doesn't.

    A third of what is free lies idle in the library's cache and another in our pool; then an array is asked
    for that needs both. Timed are the failure, the draining of every library, and the second try.
    """
    rows: Rows = []
    for library in bench.libraries(("torch", "cupy")):
        backend = backend_of(library)
        free = _free_bytes(bench)
        wanted = max(4096, int(0.8 * free))
        failed: list[float] = []
        drained: list[float] = []
        again: list[float] = []
        for _ in range(FAILURES):
            with PoolSet("1GiB", {0: free}) as pools:
                _fill_caches(bench, backend, pools, library, int(0.3 * free))
                began = time.perf_counter()
                try:
                    _take(bench, backend, wanted, fails=True)
                except Exception as error:
                    if not is_oom(error):
                        raise
                failed.append(time.perf_counter() - began)
                began = time.perf_counter()
                pools.reclaim(bench.place, wanted)
                drained.append(time.perf_counter() - began)
                began = time.perf_counter()
                _take(bench, backend, wanted, fails=False)
                backend.synchronize(bench.place)
                again.append(time.perf_counter() - began)
            backend.drain(bench.place)
        for what, seconds in (("the failure", failed), ("the drain", drained), ("the second try", again)):
            rows.append(
                {
                    "library": library,
                    "what": what,
                    "ms": 1e3 * median(seconds),
                    "GiB asked": wanted / (1 << 30),
                }
            )
    return rows


def _take(bench: Bench, backend: Any, nbytes: int, *, fails: bool) -> None:
    if not bench.gpu and fails:  # a host that runs out would take this process with it
        raise MemoryError("a rehearsal")
    backend.empty((nbytes,), "uint8", bench.place)


def _fill_caches(bench: Bench, backend: Any, pools: PoolSet, library: str, nbytes: int) -> None:
    # Alive until the pool has taken its own: else the pool would take these bytes from the cache.
    kept = backend.empty((nbytes,), "uint8", bench.place)
    with pools.pool(library, bench.place).acquire((nbytes,), "uint8"):
        pass
    del kept


def _free_bytes(bench: Bench) -> int:
    if not bench.gpu:
        return bench.size(1 << 30)
    from scheduler.host.nvml import NvmlProbe

    probe = NvmlProbe()
    try:
        reading = probe.read(probe.devices()[0].uuid)
    finally:
        probe.close()
    if reading.used_bytes is None:
        raise RuntimeError(f"NVML doesn't tell what is free: {reading.problem}")
    return reading.total_bytes - reading.used_bytes
