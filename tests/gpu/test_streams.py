"""Work in flight: what is converted, uploaded or lent again is what its stream will have written."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from memcore import convert_memory
from memcore.registry import backend_of
from pools import PoolSet
from tests.cuda import on_cuda

pytestmark = pytest.mark.gpu

SIZE = 1 << 22
TURNS = 10
# Long enough that whoever doesn't wait is certain to come too early: some 10 ms of a GPU.
SPIN_CYCLES = 20_000_000


def spin(name: str, cycles: int) -> None:
    """Keep the library's current stream busy for so many cycles of the GPU's clock."""
    if name == "torch":
        import torch

        torch.cuda._sleep(cycles)
        return
    import cupy

    kernel = cupy.RawKernel(
        'extern "C" __global__ void spin(long long cycles)'
        "{ long long start = clock64(); while (clock64() - start < cycles) {} }",
        "spin",
    )
    kernel((1,), (1,), (cycles,))


def new_stream(name: str) -> tuple[Any, contextlib.AbstractContextManager[Any]]:
    """A stream that the default one doesn't wait for, and the context in which it is current."""
    if name == "torch":
        import torch

        stream = torch.cuda.Stream()
        return stream, torch.cuda.stream(stream)
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    return stream, stream


@contextlib.contextmanager
def busy_stream(name: str) -> Iterator[Any]:
    """A stream of the library, current, on which nothing else happens for a while."""
    stream, current = new_stream(name)
    with current:
        spin(name, SPIN_CYCLES)
        yield stream
    stream.synchronize()


def filled(name: str, value: float) -> Any:
    """An array that the current stream fills, after what it has to do."""
    library = on_cuda(name)
    if name == "torch":
        return library.full((SIZE,), value, dtype=library.float32, device="cuda")
    return library.full((SIZE,), value, dtype=library.float32)


@pytest.mark.parametrize("copy", [None, True])
@pytest.mark.parametrize("source", ["torch", "cupy"])
@pytest.mark.parametrize("target", ["torch", "cupy", "jax", "tensorflow", "numpy"])
def test_a_conversion_waits_for_what_its_source_has_still_to_write(
    source: str, target: str, copy: bool | None
) -> None:
    on_cuda(source)
    if target != "numpy":
        on_cuda(target)
    if source == target:
        pytest.skip("the same array")
    for turn in range(TURNS):
        with busy_stream(source):
            given = filled(source, turn)
            result = convert_memory(given, source, target, "cpu" if target == "numpy" else 0, copy=copy)
            # What the target's own stream makes of it now: afterwards all work is done in any case.
            result = result + 0
        values = convert_memory(result, target, "numpy", "cpu", copy=True)
        assert (values == turn).all(), f"turn {turn}: {np.unique(values)[:4]}"


@pytest.mark.parametrize("target", ["torch", "cupy", "jax", "tensorflow"])
def test_a_host_buffer_may_be_overwritten_as_soon_as_it_is_uploaded(target: str) -> None:
    on_cuda(target)
    host = np.empty(SIZE, np.float32)
    results = []
    for turn in range(TURNS):
        host[...] = turn
        results.append(convert_memory(host, "numpy", target, 0))
        host[...] = -1
    for turn, result in enumerate(results):
        assert (convert_memory(result, target, "numpy", "cpu", copy=True) == turn).all()


@pytest.mark.parametrize("target", ["torch", "cupy"])
def test_a_pinned_buffer_may_be_overwritten_as_soon_as_it_is_uploaded(target: str) -> None:
    # From pinned memory copies are asynchronous, where nobody waits.
    on_cuda(target)
    pool = PoolSet("256MiB").pinned(target, 0)
    results = []
    with pool.acquire((SIZE,), "float32") as host:
        for turn in range(TURNS):
            host[...] = turn
            with busy_stream(target):
                results.append(convert_memory(host, "numpy", target, 0))
                host[...] = -1
    for turn, result in enumerate(results):
        assert (convert_memory(result, target, "numpy", "cpu", copy=True) == turn).all()


@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_a_pooled_buffer_is_lent_to_another_stream_after_the_work_of_the_first(name: str) -> None:
    on_cuda(name)
    pool = PoolSet("1MiB", {0: "1GiB"}).pool(name, 0)
    for turn in range(TURNS):
        with busy_stream(name):
            lease = pool.lease((SIZE,), "float32")
            lease.array[...] = 1.0
            # Read by the busy stream, when the next one may already have the buffer.
            kept = lease.array * 2
            lease.end()
            _, elsewhere = new_stream(name)
            with elsewhere:
                again = pool.lease((SIZE,), "float32")
                again.array[...] = -1.0
                again.end()
        backend_of(name).synchronize(0)
        assert (convert_memory(kept, name, "numpy", "cpu", copy=True) == 2.0).all(), f"turn {turn}"
    assert pool.stats().hits >= TURNS


@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_work_on_a_stream_that_was_told_is_waited_for(name: str) -> None:
    library = on_cuda(name)
    pool = PoolSet("256MiB").pinned(name, 0)
    side, beside = new_stream(name)
    lease = pool.lease((SIZE,), "float32")
    lease.array[...] = 5.0
    address = lease.array.ctypes.data
    device = filled(name, 0.0)
    backend_of(name).synchronize(0)
    with beside:
        spin(name, 10 * SPIN_CYCLES)
        if name == "torch":
            device.copy_(library.from_numpy(lease.array), non_blocking=True)
        else:
            device.set(lease.array)
    lease.used_on(side)
    lease.end()
    other = pool.lease((SIZE,), "float32")
    assert other.array.ctypes.data != address
    side.synchronize()
    assert (convert_memory(device, name, "numpy", "cpu", copy=True) == 5.0).all()
