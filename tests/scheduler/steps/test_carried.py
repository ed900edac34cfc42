"""Which named stacks a chain carries: what steps may ask for, and what is there at the end."""

from typing import Any, NamedTuple

import pytest

from scheduler.steps.carried import FlowError, carried_through, table_labels


class Step(NamedTuple):
    """A step by its stacks alone."""

    inputs: dict[str, str] = {}  # noqa: RUF012  a NamedTuple's default, never written
    outputs: tuple[str, ...] = ()


PLAIN = Step()
SEGMENT = Step({"image": "image", "nuclei": "nuclei"})
SEVERAL = Step({"image": "image"}, ("labels", "distance"))


@pytest.mark.parametrize(
    ("steps", "given", "carried"),
    [
        ([PLAIN], ["stack"], ("stack",)),
        ([PLAIN, PLAIN], ["image", "nuclei"], ("image", "nuclei")),
        ([PLAIN, SEGMENT, PLAIN], ["image", "nuclei"], ("stack",)),
        ([SEVERAL, PLAIN], ["image", "nuclei"], ("labels", "distance")),
        ([Step(outputs=("low", "high")), Step({"a": "high"})], ["stack"], ("stack",)),
        ([Step(outputs=("labels",))], ["stack"], ("labels",)),
    ],
)
def test_what_comes_out(steps: list[Step], given: list[str], carried: tuple[str, ...]) -> None:
    assert carried_through(steps, given) == carried


@pytest.mark.parametrize(
    ("steps", "given", "at", "match"),
    [
        ([PLAIN, Step({"image": "image"})], ["stack"], (1, "inputs.image"), "there is only 'stack'"),
        ([SEVERAL, SEGMENT], ["image"], (1, "inputs.image"), "there are labels, distance"),
        ([Step(outputs=("a", "b"))], ["image", "nuclei"], (0, "outputs"), "each of image, nuclei"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    steps: list[Step], given: list[str], at: tuple[int, str], match: str
) -> None:
    with pytest.raises(FlowError, match=match) as raised:
        carried_through(steps, given)
    assert (raised.value.step, raised.value.at) == at


@pytest.mark.parametrize(
    ("steps", "given", "labels"),
    [
        ([PLAIN], ["stack"], ("s0",)),
        ([PLAIN, SEGMENT, PLAIN], ["image", "nuclei"], ("image_s0", "nuclei_s0", "s1", "s2")),
        ([SEVERAL, PLAIN], ["image"], ("s0", "labels_s1", "distance_s1")),
    ],
)
def test_tables_are_called_by_their_step_and_where_need_be_their_stack(
    steps: list[Any], given: list[str], labels: tuple[str, ...]
) -> None:
    names = [f"s{number}" for number in range(len(steps))]
    assert table_labels(steps, names, given) == labels


def test_tables_of_steps_with_one_name_are_numbered() -> None:
    steps = [PLAIN, PLAIN, PLAIN]
    assert table_labels(steps, ["n", "n", "n"], ["stack"]) == ("n", "n_2", "n_3")
    assert table_labels(steps, ["n", "n", "n_2"], ["stack"]) == ("n", "n_3", "n_2")
    assert table_labels(steps[:2], ["n", "n"], ["a", "b"]) == ("a_n", "b_n", "a_n_2", "b_n_2")
