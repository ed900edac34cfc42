"""Chains in one process: conversions where the plan changes, and blocks that equal the whole."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcore import ContractError, FunctionStep, backend_of, memory_types
from scheduler.core.model import DeviceKind, Split
from scheduler.execution.chain import (
    ChainStep,
    StepFailedError,
    chain_halo,
    run_chain,
    run_chain_in_blocks,
)
from scheduler.execution.plans import BASE_BYTES, job_plans
from scheduler.images.arrays import ArrayFile
from scheduler.steps.context import StepContext
from scheduler.steps.errors import StepError
from scheduler.steps.resolve import ResolvedStep, resolve_step

NUMPY_ONLY = {DeviceKind.CPU: ("numpy",)}


def step(use: str, memory_type: str = "numpy", **keywords: Any) -> ChainStep:
    return ChainStep(resolve_step(use, with_=keywords), memory_type, "cpu")


def context(step: ChainStep, z_start: int = 0) -> StepContext:
    return StepContext(step.memory_type, step.gpu_id, None, "job", z_start)


def need(name: str) -> None:
    if not backend_of(name).installed():
        pytest.skip(f"needs {name}")


@pytest.fixture
def stack() -> np.ndarray:
    return np.random.default_rng(3).integers(90, 4000, (11, 37, 41), dtype=np.uint16)


@pytest.mark.parametrize("memory_type", ["numpy", "torch"])
@pytest.mark.parametrize("split", [Split("z", 3), Split("zyx", 8), Split("zyx", 30)], ids=str)
def test_blocks_give_the_whole_bit_for_bit(stack: np.ndarray, memory_type: str, split: Split) -> None:
    need(memory_type)
    steps = [
        step("subtract_background", memory_type, radius=4),
        step("richardson_lucy", memory_type, sigma=[0.8, 1.0, 1.0], iterations=2),
        step("gaussian", memory_type, sigma=[0.5, 1.0, 0.7]),
    ]
    whole = run_chain(stack, steps, make_context=context)
    in_blocks = run_chain_in_blocks(stack, steps, split, make_context=context, make_output=np.empty)
    np.testing.assert_array_equal(in_blocks, whole, strict=True)


def test_a_halo_that_is_too_small_would_show(stack: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step("gaussian", sigma=1.0)]
    whole = run_chain(stack, steps, make_context=context)
    monkeypatch.setattr("scheduler.execution.chain.chain_halo", lambda _steps: ("zyx", (1, 1, 1)))
    cut_short = run_chain_in_blocks(stack, steps, Split("zyx", 4), make_context=context, make_output=np.empty)
    assert not np.array_equal(cut_short, whole)


def test_halos_of_a_chain_add_up() -> None:
    steps = [(resolve_step("gaussian", with_={"sigma": [1, 2, 0]}), "numpy")] * 2
    assert chain_halo(steps) == ("zyx", (8, 16, 0))


def test_a_chain_with_a_step_over_the_whole_stack_cannot_be_cut(stack: np.ndarray) -> None:
    steps = [step("gaussian", sigma=1.0), step("max_projection")]
    assert chain_halo([(each.resolved, each.memory_type) for each in steps]) is None
    with pytest.raises(ContractError, match="can't be cut along z"):
        run_chain_in_blocks(stack, steps, Split("z", 2), make_context=context, make_output=np.empty)


@pytest.mark.parametrize("memory_type", ["numpy", "torch", "jax"])
def test_a_psf_from_a_file_is_as_good_as_one_in_the_config(
    stack: np.ndarray, tmp_path: Path, memory_type: str
) -> None:
    need(memory_type)
    psf = np.array([[[1, 2, 1], [2, 8, 2], [1, 2, 1]]], np.float32)
    np.save(tmp_path / "psf.npy", psf)
    arrays = {"psf": ArrayFile.of(tmp_path / "psf.npy")}
    from_file = resolve_step("richardson_lucy", with_={"iterations": 2}, arrays=arrays)
    given = resolve_step("richardson_lucy", with_={"iterations": 2, "psf": psf.tolist()})
    results = [
        run_chain(stack, [ChainStep(resolved, memory_type, "cpu")], make_context=context)
        for resolved in (from_file, given)
    ]
    np.testing.assert_array_equal(*results)
    usable = {DeviceKind.CPU: (memory_type,)}
    plans = [job_plans([resolved], stack.shape, "uint16", usable) for resolved in (from_file, given)]
    (with_file,), (without,) = plans
    assert with_file.footprint.host_bytes - without.footprint.host_bytes >= psf.nbytes


def test_a_psf_from_a_file_is_described_before_it_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "psf.npy", np.ones((3, 4), np.float32))
    with pytest.raises(StepError, match=r"\[Z, Y, X\] array; got shape \(3, 4\)"):
        resolve_step("richardson_lucy", arrays={"psf": ArrayFile.of(tmp_path / "psf.npy")})


@memory_types("numpy", splittable="zyx")
def less(stack: np.ndarray, *, dark: np.ndarray) -> np.ndarray:
    """Takes off a dark frame, or one for each plane."""
    return stack - dark


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((11, 37, 41), None), ((37, 41), "z"), ((1, 37, 41), "z"), ((1, 1), "zyx"), ((11, 1, 1), None)],
    ids=str,
)
def test_arrays_from_files_say_along_which_axes_a_chain_may_be_cut(
    stack: np.ndarray, tmp_path: Path, shape: tuple[int, ...], axes: str | None
) -> None:
    dark = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    np.save(tmp_path / "dark.npy", dark)
    files = {"dark": ArrayFile.of(tmp_path / "dark.npy")}
    resolved = ResolvedStep("less", "less", FunctionStep(less), {}, arrays=files)
    reach = chain_halo([(resolved, "numpy")])
    assert (reach and reach[0]) == axes
    for each in ("z", "zyx"):
        run = partial(
            run_chain_in_blocks,
            stack,
            [ChainStep(resolved, "numpy", "cpu")],
            Split(each, 4),
            make_context=context,
            make_output=np.empty,
        )
        if axes is not None and set(each) <= set(axes):
            np.testing.assert_array_equal(run(), stack - dark)
        else:
            with pytest.raises(ContractError, match="can't be cut"):
                run()


@memory_types("numpy", splittable="z")
def spoil(stack: np.ndarray, *, context: StepContext) -> np.ndarray:
    """Doubles its input in place, and adds the index of each plane in the whole."""
    stack *= 2
    stack += np.arange(context.z_start, context.z_start + len(stack), dtype=stack.dtype)[:, None, None]
    return stack


def test_a_step_may_write_to_its_block_and_knows_where_it_is(stack: np.ndarray) -> None:
    resolved = ResolvedStep("spoil", "spoil", FunctionStep(spoil), {})
    before = stack.copy()
    found = run_chain_in_blocks(
        stack,
        [ChainStep(resolved, "numpy", "cpu")],
        Split("z", 4),
        make_context=context,
        make_output=np.empty,
    )
    np.testing.assert_array_equal(stack, before)
    planes = np.arange(len(stack), dtype=np.uint16)[:, None, None]
    np.testing.assert_array_equal(found, before * 2 + planes)


def test_memory_types_change_where_the_plan_says(stack: np.ndarray) -> None:
    need("torch")
    mixed = [step("gaussian", "numpy", sigma=1.0), step("gaussian", "torch", sigma=1.0)]
    result = run_chain(stack, mixed, make_context=context)
    assert isinstance(result, np.ndarray)
    twice = run_chain(stack, [step("gaussian", "numpy", sigma=1.0)] * 2, make_context=context)
    np.testing.assert_allclose(result, twice, rtol=0, atol=1e-6 * float(twice.max()))


def test_a_step_that_raises_is_named_with_its_stack(stack: np.ndarray) -> None:
    with pytest.raises(StepFailedError, match=r"step gaussian failed on numpy complex64 .*DtypeError"):
        run_chain(stack.astype(np.complex64), [step("gaussian", sigma=1.0)], make_context=context)


def test_out_of_memory_passes_through_as_it_is(stack: np.ndarray) -> None:
    def greedy(stack: np.ndarray) -> np.ndarray:
        raise MemoryError("no more")

    resolved = ResolvedStep("greedy", "greedy", FunctionStep(greedy, input="numpy"), {})
    with pytest.raises(MemoryError, match="no more"):
        run_chain(stack, [ChainStep(resolved, "numpy", "cpu")], make_context=context)


def test_the_footprint_counts_stack_result_and_workspace_in_primes() -> None:
    def fake(stack: np.ndarray) -> np.ndarray:
        return stack

    contract: dict[str, Any] = {"workspace": 17, "output_like": lambda shape, dtype: (shape, "float32")}
    resolved = ResolvedStep("fake", "fake", FunctionStep(fake, input="numpy", **contract), {})
    (plan,) = job_plans([resolved, resolved], (3, 5, 7), "uint16", NUMPY_ONLY)
    voxels = 3 * 5 * 7
    # the stack that was read; and while the second step runs: its input, its result, its workspace
    assert plan.footprint.host_bytes == BASE_BYTES + voxels * 2 + voxels * 4 + voxels * 4 + 17
    assert plan.footprint.device_bytes == 0


def test_plans_in_blocks_need_less_and_less() -> None:
    steps = [resolve_step("gaussian", with_={"sigma": 1.0})]
    usable = {DeviceKind.VIRTUAL: ("torch",), **NUMPY_ONLY}
    plans = [plan for plan in job_plans(steps, (64, 256, 256), "uint16", usable) if not plan.on_cpu]
    assert [plan.split.blocks if plan.split else 1 for plan in plans] == [1, 2, 4, 8, 16, 32]
    needs = [plan.footprint.device_bytes for plan in plans]
    assert needs == sorted(needs, reverse=True)
    assert needs[-1] < needs[0] / 8


def test_a_chain_that_nothing_here_can_run_names_the_step() -> None:
    steps = [resolve_step("gaussian", with_={"sigma": 1.0}, memory=["cupy"])]
    with pytest.raises(StepError, match="gaussian"):
        job_plans(steps, (3, 5, 7), "uint16", NUMPY_ONLY)


def test_a_chain_that_refuses_the_dtype_cannot_run_and_says_what_to_do() -> None:
    steps = [resolve_step("gaussian", with_={"sigma": 1.0})]
    with pytest.raises(StepError, match=r"on bool .*gaussian takes uint8.*convert_dtype"):
        job_plans(steps, (3, 5, 7), "bool", NUMPY_ONLY)
