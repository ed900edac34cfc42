"""What steps declare about memory bounds what they take; they neither write nor keep what they get."""

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import memcore
from scheduler.steps.kernels import gaussian_kernels, gaussian_radius
from scheduler.steps.resolve import resolve_step

Run = Callable[..., NDArray[Any]]
# Distinct primes: a term that is missing or taken for another axis shows.
SHAPE = (29, 211, 307)
PSF = np.random.default_rng(1).random((3, 7, 5)).tolist()

STEPS: list[tuple[str, dict[str, Any]]] = [
    ("gaussian", {"sigma": 2.0}),
    ("gaussian", {"sigma": [0, 9.0, 1.0]}),
    ("gaussian", {"sigma": 0.0}),
    ("subtract_background", {"radius": 20}),
    ("rescale_intensity", {}),
    ("rescale_intensity", {"percentiles": [5, 99]}),
    ("rescale_intensity", {"in_range": [5, 99]}),
    ("max_projection", {}),
    ("richardson_lucy", {"sigma": 1.0, "iterations": 3}),
    ("richardson_lucy", {"psf": PSF, "iterations": 3}),
    ("convert_dtype", {"dtype": "uint8", "rule": "saturate"}),
    ("convert_dtype", {"dtype": "float64", "rule": "rescale"}),
]
IDS = [f"{use}{number}" for number, (use, _) in enumerate(STEPS)]


def declared_bytes(memory_type: str, use: str, keywords: dict[str, Any], dtype: str) -> tuple[int, int]:
    """Bytes of the result and of the workspace, as the contract says."""
    contract = resolve_step(use, with_=keywords).step.implementation_for(memory_type).contract
    shape, out_dtype = contract.output_for(SHAPE, dtype, **keywords)
    workspace = contract.workspace_for(SHAPE, dtype, **keywords)
    assert workspace is not None
    return int(np.prod(shape)) * np.dtype(out_dtype).itemsize, workspace


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize(("use", "keywords"), STEPS, ids=IDS)
def test_numpy_takes_no_more_than_declared(
    make_stack: Run, use: str, keywords: dict[str, Any], dtype: str
) -> None:
    stack = make_stack(SHAPE, "uint8").astype(dtype)
    if keywords.get("rule") == "rescale" and dtype == "float32":
        stack /= 255
    step = resolve_step(use, with_=keywords).step.implementation_for("numpy")
    step(stack[:2, :9, :9].copy(), **keywords)  # imports and caches aren't the step's work
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = step(stack, **keywords)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    out, workspace = declared_bytes("numpy", use, keywords, dtype)
    assert peak <= out + workspace, f"{peak / 2**20:.1f} MiB of {(out + workspace) / 2**20:.1f} MiB declared"
    # An estimate that is far too large keeps jobs waiting: within a factor of 3, small allowances aside.
    assert out + workspace <= 3 * max(peak, result.nbytes) + (8 << 20), (
        f"{peak}, declared {out} + {workspace}"
    )


def torch_peak(call: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes of torch's host allocator that lived at once during `call`, and the result."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]")
    assert changes
    live = peak = 0
    for _, nbytes in changes:
        live += nbytes
        peak = max(peak, live)
    return peak, result


# convert_dtype works on torch tensors in host memory with NumPy's arithmetic, which torch doesn't see.
@pytest.mark.parametrize(("use", "keywords"), [step for step in STEPS[::2] if step[0] != "convert_dtype"])
def test_torch_takes_no_more_than_declared(make_stack: Run, use: str, keywords: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    stack = torch.from_numpy(make_stack(SHAPE, "uint8").astype("float32"))
    step = resolve_step(use, with_=keywords).step.implementation_for("torch")
    peak, result = torch_peak(lambda: step(stack, **keywords))
    out, workspace = declared_bytes("torch", use, keywords, "float32")
    assert result.untyped_storage().nbytes() == out
    assert peak <= out + workspace, f"{peak / 2**20:.1f} MiB of {(out + workspace) / 2**20:.1f} MiB declared"


@pytest.mark.parametrize("sigma", [1.0, 9.0])
def test_a_jax_pass_takes_no_more_than_declared(sigma: float) -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    from scheduler.steps.separable import _jax_pass, jax_pass_bytes

    stack = jax.numpy.zeros(SHAPE, "float32")
    for axis, weights in enumerate(gaussian_kernels(sigma)):
        compiled = _jax_pass().lower(stack, weights.astype("float32"), axis).compile()
        # What XLA says it needs beside argument and result; the argument is the stack before the pass.
        temporary = compiled.memory_analysis().temp_size_in_bytes
        assert stack.nbytes + temporary <= jax_pass_bytes(SHAPE, "float32", gaussian_radius(sigma))


@pytest.mark.parametrize("memory_type", ["numpy", "torch", "jax", "tensorflow", "pyclesperanto"])
@pytest.mark.parametrize(("use", "keywords"), STEPS[:-1], ids=IDS[:-1])
def test_the_stack_is_neither_written_nor_kept(
    make_stack: Run, memory_type: str, use: str, keywords: dict[str, Any]
) -> None:
    if memory_type != "numpy":
        pytest.importorskip(memory_type, reason=f"needs {memory_type}", exc_type=ImportError)
    step = resolve_step(use, with_=keywords).step
    if memory_type not in step.memory_types:
        pytest.skip(f"{use} isn't offered for {memory_type}")
    values = make_stack((7, 37, 53), "uint16")
    gpu_id = 0 if memory_type == "pyclesperanto" else "cpu"
    stack = memcore.convert_memory(values, "numpy", memory_type, gpu_id, copy=True)
    if memory_type == "numpy":
        stack.flags.writeable = False
    result = step.implementation_for(memory_type)(stack, **keywords)
    after = memcore.convert_memory(stack, memory_type, "numpy", "cpu", copy=True)
    np.testing.assert_array_equal(after, values)
    assert result is not stack
    if memory_type in ("numpy", "torch"):
        watched = weakref.ref(stack)
        del stack, after
        gc.collect()
        assert watched() is None, "the result, or the step, keeps what it was given"
        assert result.shape[1:] == values.shape[1:]


@pytest.mark.parametrize(("use", "keywords"), STEPS[:-2], ids=IDS[:-2])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_the_result_shares_no_memory_with_the_stack(
    make_stack: Run, use: str, keywords: dict[str, Any], dtype: str
) -> None:
    # A plane and a projection of one plane would be the easiest to give back as they are.
    stack = make_stack((1, 23, 31), dtype)
    for layout in (stack, np.asfortranarray(stack), stack[:, ::-1, ::2]):
        result = resolve_step(use, with_=keywords).step(layout, **keywords)
        assert not np.shares_memory(result, stack)
        assert result.flags.c_contiguous
        np.testing.assert_array_equal(
            result, resolve_step(use, with_=keywords).step(layout.copy(), **keywords)
        )
