"""One call of a step: the stacks that it is given, and what becomes of what it gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from memcore import ContractError, FunctionStep, backend_of
from scheduler.execution.chain import ChainStep, StepFailedError, run_chain, run_named_chain
from scheduler.execution.step_call import StepTable, call_step
from scheduler.images.arrays import ArrayFile
from scheduler.images.errors import ImageError
from scheduler.steps.context import StepContext
from scheduler.steps.resolve import ResolvedStep, StepSpec

IMAGE = np.full((2, 3, 5), 4, np.uint16)
NUCLEI = np.full((1, 3, 5), 7, np.uint8)


def context(step: ChainStep, z_start: int = 0) -> StepContext:
    return StepContext(step.memory_type, step.gpu_id, None, "job", z_start)


def step(function: Callable[..., Any], memory_type: str = "numpy", **rest: Any) -> ChainStep:
    """A step by its function, with what the config says of its stacks."""
    declared = FunctionStep(function, input=memory_type, name="seg")
    return ChainStep(ResolvedStep("seg", "seg", declared, {}, **rest), memory_type, "cpu")


def called(one: ChainStep, **stacks: NDArray[Any]) -> tuple[dict[str, Any], list[StepTable]]:
    carried: dict[str, Any] = dict(stacks)
    tables = call_step(one, carried, make_context=context, read_array=ArrayFile.read)
    return carried, tables


def need(name: str) -> None:
    if not backend_of(name).installed():
        pytest.skip(f"needs {name}")


@pytest.mark.parametrize("memory_type", ["numpy", "torch"])
def test_named_stacks_arrive_as_arguments_of_their_own(memory_type: str) -> None:
    need(memory_type)

    def segment(nuclei: Any, image: Any) -> Any:
        assert [type(each).__module__ for each in (nuclei, image)] == [memory_type] * 2
        assert (tuple(nuclei.shape), tuple(image.shape)) == ((1, 3, 5), (2, 3, 5))
        return nuclei + 1

    inputs = {"image": "raw", "nuclei": "nuclei"}
    carried, tables = called(
        step(segment, memory_type, inputs=inputs, first="nuclei"), raw=IMAGE, nuclei=NUCLEI, third=IMAGE
    )
    assert (list(carried), tables) == (["stack"], [])
    np.testing.assert_array_equal(np.asarray(carried["stack"]), NUCLEI + 1)


def test_without_inputs_each_stack_is_taken_by_itself() -> None:
    def doubled(stack: Any) -> Any:
        return stack * 2, {"planes": [len(stack)]}

    carried, tables = called(step(doubled), image=IMAGE, nuclei=NUCLEI)
    np.testing.assert_array_equal(carried["image"], IMAGE * 2)
    np.testing.assert_array_equal(carried["nuclei"], NUCLEI * 2)
    assert tables == [StepTable("image_seg", {"planes": [2]}), StepTable("nuclei_seg", {"planes": [1]})]


def test_several_results_come_in_the_order_of_outputs_with_one_table() -> None:
    def split(image: Any, nuclei: Any) -> Any:
        return {"b": image, "a": nuclei}, {"n": np.arange(2), "mean": (0.5, 1.5)}

    inputs = {"image": "image", "nuclei": "nuclei"}
    one = step(split, inputs=inputs, first="image", outputs=("a", "b"))
    carried, tables = called(one, image=IMAGE, nuclei=NUCLEI)
    assert list(carried) == ["a", "b"]
    assert carried["b"] is IMAGE
    assert tables == [StepTable("seg", {"n": [0, 1], "mean": [0.5, 1.5]})]


class Frame:
    """What pandas' data frame has of a table, by duck typing."""

    columns = ("area", 3)

    def to_dict(self) -> dict[str, Any]:
        raise AssertionError("column by column")

    def __getitem__(self, name: Any) -> Any:
        return {"area": np.array([1.5, 2.5]), 3: ["x", "y"]}[name]


def test_a_data_frame_is_a_table() -> None:
    _, (table,) = called(step(lambda stack: (stack, Frame())), stack=IMAGE)
    assert table.columns == {"area": [1.5, 2.5], "3": ["x", "y"]}


@pytest.mark.parametrize(
    ("result", "outputs", "match"),
    [
        (lambda s: {"a": s}, (), r"list their names, as in outputs: \[a\]"),
        (lambda s: {"a": s, "c": s}, ("a", "b"), "gave the stacks a, c; its outputs are a, b"),
        (lambda s: s, ("a", "b"), "gave one stack; its outputs are a, b"),
        (lambda s: {"a": s, "b": 3}, ("a", "b"), "gave as 'b' is a int, no array"),
        (lambda s: {"a": s, "b": s[0]}, ("a", "b"), r"shape \(3, 5\), where \[Z, Y, X\]"),
        (lambda s: ({"a": s, "b": s[0]}, {}), ("a", "b"), r"shape \(3, 5\), where \[Z, Y, X\]"),
        (lambda s: (s, s), (), r"a tuple that isn't \(stack, table\)"),
        (lambda s: (s, [1, 2]), (), "beside the stack is a list"),
        (lambda s: (s, {"a": [1], "b": [1, 2]}), (), "different lengths: a has 1, b has 2"),
        (lambda s: (s, {"a": s[0]}), (), r"column 'a' of its table has the shape \(3, 5\)"),
        (lambda s: (s, {"a": "text"}), (), "column 'a' of its table is a str"),
        (lambda s: {"area": np.arange(3)}, (), "table alone; a table goes with a stack"),
        (lambda s: Frame(), (), "table alone; a table goes with a stack"),
    ],
)
def test_what_has_no_place_is_refused_with_what_to_do(
    result: Callable[[Any], Any], outputs: tuple[str, ...], match: str
) -> None:
    with pytest.raises(StepFailedError, match=match) as raised:
        called(step(lambda stack: result(stack), outputs=outputs), stack=IMAGE)
    assert str(raised.value).startswith("step seg failed on numpy uint16 (2, 3, 5)")


def test_a_failure_names_each_stack_that_was_given() -> None:
    def add(image: Any, nuclei: Any) -> Any:
        return image[:, :2] + nuclei

    one = step(add, inputs={"image": "image", "nuclei": "nuclei"}, first="image")
    with pytest.raises(
        StepFailedError, match=r"image: numpy uint16 \(2, 3, 5\).*nuclei: numpy uint8 \(1, 3, 5\)"
    ):
        called(one, image=IMAGE, nuclei=NUCLEI)


# arrays from files


@pytest.fixture
def flat(tmp_path: Path) -> ArrayFile:
    np.save(tmp_path / "flat.npy", np.full((3, 5), 2, np.float32))
    return ArrayFile.of(tmp_path / "flat.npy")


@pytest.mark.parametrize("memory_type", ["numpy", "torch"])
def test_an_array_from_a_file_is_a_keyword_that_no_step_spoils(flat: ArrayFile, memory_type: str) -> None:
    need(memory_type)
    given: list[Any] = []
    array = flat.read()

    def divided(stack: Any, *, flat: Any) -> Any:
        given.append(flat)
        if memory_type == "torch":
            flat *= 2
        return stack

    one = step(divided, memory_type, arrays={"flat": flat})
    for _ in range(2):
        call_step(one, {"stack": IMAGE}, make_context=context, read_array=lambda _: array)
    assert [type(each).__module__ for each in given] == [memory_type] * 2
    np.testing.assert_array_equal(array, np.full((3, 5), 2, np.float32))
    if memory_type == "numpy":
        assert given[0] is array  # read once, for all attempts of the process
        with pytest.raises(ValueError, match="WRITEABLE"):
            given[0].flags.writeable = True


def test_other_values_in_the_file_are_noticed(flat: ArrayFile) -> None:
    np.save(flat.path, np.full((3, 5), 3, np.float32))
    with pytest.raises(ImageError, match=r"flat.npy has changed since the run began"):
        flat.read()
    assert ArrayFile.of(flat.path).digest != flat.digest


# chains


def test_a_chain_of_named_stacks_ends_in_host_memory() -> None:
    need("torch")

    def plus(stack: Any) -> Any:
        return stack + 1

    def both(image: Any, nuclei: Any) -> Any:
        return {"sum": image + nuclei, "image": image}

    steps = [
        step(plus, "torch"),
        step(both, inputs={"image": "image", "nuclei": "nuclei"}, first="image", outputs=("sum", "image")),
        step(plus, "torch"),
    ]
    stacks: dict[str, Any] = {"image": IMAGE.astype(np.float32), "nuclei": NUCLEI.astype(np.float32)}
    assert run_named_chain(stacks, steps, make_context=context) == []
    assert {name: (type(array), array.max()) for name, array in stacks.items()} == {
        "sum": (np.ndarray, 4 + 1 + 7 + 1 + 1),
        "image": (np.ndarray, 4 + 1 + 1),
    }


def test_each_of_two_equal_steps_has_its_table() -> None:
    def measure(stack: NDArray[Any]) -> Any:
        return stack + 1, {"mean": [float(stack.mean())]}

    tables = run_named_chain({"stack": IMAGE}, [step(measure), step(measure)], make_context=context)
    assert [(table.label, table.columns) for table in tables] == [
        ("seg", {"mean": [4.0]}),
        ("seg_2", {"mean": [5.0]}),
    ]


def test_a_block_has_no_table() -> None:
    with pytest.raises(ContractError, match=r"the chain gave stack, a table by seg: .*isn't splittable"):
        run_chain(IMAGE, [step(lambda stack: (stack, {"a": [1]}))], make_context=context)


def test_a_step_class_takes_named_stacks_and_arrays_in_its_call(tmp_path: Path, flat: ArrayFile) -> None:
    (tmp_path / "stackyard_named_class.py").write_text(
        "class Scale:\n"
        "    declare = {'input': 'numpy'}\n"
        "    def __init__(self, by):\n"
        "        self.by = by\n"
        "    def __call__(self, image, nuclei, *, flat, context):\n"
        "        assert context.job_id == 'job'\n"
        "        return self.by * (image[:1] / flat + nuclei)\n"
    )
    resolved = StepSpec(
        "stackyard_named_class:Scale",
        {"by": 3},
        search_path=(str(tmp_path),),
        inputs={"image": "image", "nuclei": "nuclei"},
        arrays={"flat": flat},
    ).resolve()
    carried, _ = called(ChainStep(resolved, "numpy", "cpu"), image=IMAGE, nuclei=NUCLEI)
    np.testing.assert_array_equal(carried["stack"], 3 * (IMAGE[:1] / 2 + NUCLEI))
    resolved.close()
