"""Moving stacks to a device, from it, and between libraries on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_clock import MIB, Bench, rows_of
from memcore import convert_memory, device_of, plan_conversion, stack_slices
from memcore.host import aligned_empty

Rows = list[dict[str, Any]]
LIMIT = "limit: one copy of pinned memory into an array that is there"


def transfers(bench: Bench) -> Rows:
    """Host to device and back: `convert_memory`, the library's own call, and the limit of the bus.

    The limit is an asynchronous copy between pinned memory and an array that exists. A conversion also
    allocates the array, and reads pageable memory unless the source is pinned.
    """
    rows: Rows = []
    libraries = bench.libraries(("torch", "cupy"))
    for number, library in enumerate(libraries):
        for mib in (4, 64, 512):
            share = 1 / (3 * (len(libraries) - number))
            rows += _transfers(bench, library, bench.size(mib * MIB), share)
    return rows


def _transfers(bench: Bench, library: str, nbytes: int, share: float) -> Rows:
    host = aligned_empty((nbytes,), "uint8")
    host[...] = 7
    up: dict[str, Callable[[], object]] = {
        "ours": lambda: convert_memory(host, "numpy", library, bench.place, copy=True)
    }
    there = up["ours"]()
    down: dict[str, Callable[[], object]] = {
        "ours": lambda: convert_memory(there, library, "numpy", "cpu", copy=True)
    }
    if library == "torch":
        import torch

        device = "cuda" if bench.gpu else "cpu"
        # Locked pages exist only where CUDA does.
        pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=bench.gpu)
        own = torch.empty(nbytes, dtype=torch.uint8, device=device)
        up["torch.from_numpy(x).to(device)"] = lambda: torch.from_numpy(host).to(device, copy=True)
        up[LIMIT] = lambda: own.copy_(pinned, non_blocking=True)
        up["ours, of pinned memory"] = lambda: convert_memory(
            pinned.numpy(), "numpy", "torch", bench.place, copy=True
        )
        down["tensor.cpu()"] = lambda: own.to("cpu", copy=True)
        down[LIMIT] = lambda: pinned.copy_(own, non_blocking=True)
    else:
        import cupy
        import cupyx

        locked = cupyx.empty_pinned((nbytes,), np.uint8)
        mine = cupy.empty(nbytes, np.uint8)
        up["cupy.asarray(x)"] = lambda: cupy.asarray(host)
        up[LIMIT] = lambda: mine.set(locked)
        up["ours, of pinned memory"] = lambda: convert_memory(locked, "numpy", "cupy", bench.place, copy=True)
        down["array.get()"] = lambda: mine.get()
        down[LIMIT] = lambda: mine.get(out=locked, blocking=False)
    rows: Rows = []
    for direction, candidates in (("to the device", up), ("to the host", down)):
        timings = bench.compare(candidates, [library], share / 2)
        rows += rows_of(timings, "ours", nbytes, library=library, direction=direction, MiB=nbytes / MIB)
    return rows


def stacking(bench: Bench) -> Rows:
    """64 planes of 1024 × 1024 uint16 in host memory to one stack on the device."""
    side = max(16, 1024 // (16 if bench.shrink > 1 else 1))
    planes = [np.full((side, side), z, np.uint16) for z in range(64)]
    nbytes = sum(plane.nbytes for plane in planes)
    rows: Rows = []
    libraries = bench.libraries()
    for number, library in enumerate(libraries):
        candidates = {
            "ours": lambda library=library: stack_slices(planes, library, bench.place),
            **_other_stackers(bench, library, planes),
        }
        timings = bench.compare(candidates, [library], 1 / (len(libraries) - number))
        rows += rows_of(timings, "ours", nbytes, library=library, MiB=nbytes / MIB)
    return rows


def _other_stackers(bench: Bench, library: str, planes: list[Any]) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    if library == "torch":
        import torch

        device = "cuda" if bench.gpu else "cpu"
        found["torch.from_numpy(np.stack(x)).to(device)"] = lambda: torch.from_numpy(np.stack(planes)).to(
            device
        )
        found["torch.stack of planes on the device"] = lambda: torch.stack(
            [torch.from_numpy(plane).to(device) for plane in planes]
        )
    elif library == "cupy":
        import cupy

        found["cupy.asarray(np.stack(x))"] = lambda: cupy.asarray(np.stack(planes))
        found["cupy.stack of planes on the device"] = lambda: cupy.stack(
            [cupy.asarray(plane) for plane in planes]
        )
    elif library == "jax":
        import jax

        place = jax.devices("gpu" if bench.gpu else "cpu")[0]
        found["jax.device_put(np.stack(x))"] = lambda: jax.device_put(np.stack(planes), place)
    elif library == "tensorflow":
        import tensorflow

        def put() -> Any:
            with tensorflow.device("GPU:0" if bench.gpu else "CPU:0"):
                return tensorflow.identity(tensorflow.convert_to_tensor(np.stack(planes)))

        found["tf.convert_to_tensor(np.stack(x))"] = put
    try:
        import arraybridge
    except ImportError:
        bench.notes.append("arraybridge isn't here to compare with")
    else:
        where = arraybridge.AcceleratorDevice(0) if bench.gpu else arraybridge.HOST
        found["arraybridge.stack_slices"] = lambda: arraybridge.stack_slices(planes, library, where)
    return found


def conversions(bench: Bench) -> Rows:
    """From each library to each other on the device: 64 MiB, and 4 KiB for what a call costs."""
    rows: Rows = []
    libraries = bench.libraries()
    pairs = [(source, target) for source in libraries for target in libraries if source != target]
    for nbytes in (bench.size(64 * MIB), 4096):
        values = np.zeros(nbytes // 4, np.float32)
        for number, (source, target) in enumerate(pairs):
            given = convert_memory(values, "numpy", source, bench.place, copy=True)
            assert device_of(given) == bench.place
            plan = plan_conversion(given, target, bench.place)
            candidates: dict[str, Callable[[], object]] = {
                "ours": lambda given=given, source=source, target=target: convert_memory(
                    given, source, target, bench.place
                ),
                "through the host": lambda given=given, source=source, target=target: convert_memory(
                    convert_memory(given, source, "numpy", "cpu", copy=True),
                    "numpy",
                    target,
                    bench.place,
                    copy=True,
                ),
                **_plain_import(given, source, target),
            }
            timings = bench.compare(candidates, (source, target), 1 / (2 * (len(pairs) - number)))
            also = {"from": source, "to": target, "route": str(plan.route), "KiB": nbytes / 1024}
            rows += [
                {**timing.row(**also, what=name), "times ours": timing.median / timings["ours"].median}
                for name, timing in timings.items()
            ]
    return rows


def _plain_import(given: Any, source: str, target: str) -> dict[str, Callable[[], object]]:
    """The target library's own zero-copy import, which keeps no rule on who may write."""
    if target == "torch" and source != "tensorflow":
        import torch

        return {"torch.from_dlpack": lambda: torch.from_dlpack(given)}
    if target == "cupy" and source != "tensorflow":
        import cupy

        return {"cupy.from_dlpack": lambda: cupy.from_dlpack(given)}
    if target == "jax" and source != "tensorflow":
        import jax

        return {"jax.numpy.from_dlpack": lambda: jax.numpy.from_dlpack(given)}
    return {}
