"""A block with its halo gives, bit for bit, what the whole gives there."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from memcore import ContractError, FunctionStep, memory_types
from scheduler.steps.resolve import resolve_step

Run = Callable[..., NDArray[Any]]
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("gaussian", {"sigma": [1.0, 1.5, 0.7]}),
    ("subtract_background", {"radius": 5}),
    ("rescale_intensity", {"in_range": [20, 900], "out_range": [-3, 7]}),
    ("richardson_lucy", {"sigma": [0.3, 0.8, 0.5], "iterations": 3}),
    ("convert_dtype", {"dtype": "uint8", "rule": "saturate"}),
]
SHAPE = (7, 37, 53)


def offered() -> list[Any]:
    return [
        pytest.param(str(memory_type), use, keywords, id=f"{use}-{memory_type}")
        for use, keywords in STEPS
        for memory_type in resolve_step(use, with_=keywords).step.memory_types
        if memory_type != "cupy"
    ]


def by_blocks(
    stack: NDArray[Any],
    block: tuple[int, ...],
    halo: tuple[int, ...],
    step: Callable[[NDArray[Any]], NDArray[Any]],
) -> NDArray[Any]:
    """The whole, put together from the middles of blocks that were processed with `halo` around them."""
    pieces = []
    for start in itertools.product(
        *(range(0, side, size) for side, size in zip(stack.shape, block, strict=True))
    ):
        stop = [min(s + size, side) for s, size, side in zip(start, block, stack.shape, strict=True)]
        low = [max(0, s - reach) for s, reach in zip(start, halo, strict=True)]
        high = [min(side, e + reach) for e, reach, side in zip(stop, halo, stack.shape, strict=True)]
        result = step(stack[tuple(map(slice, low, high))].copy())
        middle = tuple(slice(s - a, e - a) for s, e, a in zip(start, stop, low, strict=True))
        pieces.append((tuple(map(slice, start, stop)), result[middle]))
    whole = np.empty(stack.shape, pieces[0][1].dtype)
    for place, piece in pieces:
        whole[place] = piece
    return whole


@pytest.mark.parametrize(("memory_type", "use", "keywords"), offered())
def test_a_block_equals_its_part_of_the_whole(
    run: Run, make_stack: Run, memory_type: str, use: str, keywords: dict[str, Any]
) -> None:
    stack = make_stack(SHAPE, "uint16")
    contract = resolve_step(use, with_=keywords).step.implementation_for(memory_type).contract
    assert contract.splittable_for(**keywords) == "zyx"
    planes, rows, columns = contract.halo_for(**keywords)
    # One block only: OpenCL and XLA compile anew for each shape. 27 puts the cut inside a vector register.
    block = stack[: 3 + planes, : 19 + rows, : 27 + columns].copy()
    part = run(memory_type, use, block, **keywords)[:3, :19, :27]
    np.testing.assert_array_equal(part, run(memory_type, use, stack, **keywords)[:3, :19, :27])


@pytest.mark.parametrize("memory_type", ["numpy", "torch"])
@pytest.mark.parametrize("block", [(1, 37, 53), (7, 11, 53), (7, 37, 17), (4, 13, 27)])
@pytest.mark.parametrize(("use", "keywords"), STEPS)
def test_blocks_of_any_form_make_the_whole(
    run: Run,
    make_stack: Run,
    memory_type: str,
    use: str,
    keywords: dict[str, Any],
    block: tuple[int, int, int],
) -> None:
    stack = make_stack(SHAPE, "float32")
    halo = (
        resolve_step(use, with_=keywords).step.implementation_for(memory_type).contract.halo_for(**keywords)
    )
    blocks = by_blocks(stack, block, halo, lambda part: run(memory_type, use, part, **keywords))
    np.testing.assert_array_equal(blocks, run(memory_type, use, stack, **keywords))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("use", "keywords"), [step for step in STEPS if step[0] in ("gaussian", "richardson_lucy")]
)
def test_a_smaller_halo_would_show(
    run: Run, make_stack: Run, use: str, keywords: dict[str, Any], axis: int
) -> None:
    stack = make_stack((23, 37, 53), "float64")
    halo = list(
        resolve_step(use, with_=keywords).step.implementation_for("numpy").contract.halo_for(**keywords)
    )
    halo[axis] -= 1
    block = (11, 19, 27)
    blocks = by_blocks(stack, block, tuple(halo), lambda part: run("numpy", use, part, **keywords))
    assert (blocks != run("numpy", use, stack, **keywords)).any()


@pytest.mark.parametrize(
    ("use", "keywords"),
    [
        ("max_projection", {}),
        ("rescale_intensity", {"percentiles": [1, 99]}),
        ("richardson_lucy", {"psf": [[[1.0, 2.0, 1.0]]]}),
    ],
)
def test_what_belongs_to_the_whole_is_not_split(use: str, keywords: dict[str, Any]) -> None:
    for implementation in resolve_step(use, with_=keywords).step.implementations:
        assert implementation.contract.splittable_for(**keywords) is None


def test_a_contract_refuses_other_axes() -> None:
    @memory_types("numpy", splittable=lambda cut=None: cut)
    def step(stack: Any, *, cut: str | None = None) -> Any:
        return stack

    contract = FunctionStep(step).implementations[0].contract
    assert contract.splittable_for() is None
    assert contract.splittable_for(cut="z") == "z"
    with pytest.raises(ContractError, match="not 'y'"):
        contract.splittable_for(cut="y")
