"""The named stacks of a config's jobs: who chooses them, and whether every step gets what it takes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from scheduler.config.fields import problem
from scheduler.images.patterns import nearest
from scheduler.steps.carried import STACK, FlowError, carried_through

Fields = dict[str, tuple[int | str, ...]]


class StepSection(Protocol):
    """What a config says of a step's stacks."""

    @property
    def inputs(self) -> Mapping[str, Any]: ...
    @property
    def outputs(self) -> Sequence[str]: ...


class NamedFlow(NamedTuple):
    """A step's stacks by name alone."""

    inputs: Mapping[str, str]
    outputs: Sequence[str]


def chosen_inputs(steps: Sequence[StepSection]) -> dict[str, Fields]:
    """The fields that choose each named stack of a job, from the first step that has inputs; else empty."""
    _, first = _choosing(steps)
    return {name: choice for name, choice in first.items() if isinstance(choice, dict)}


def fields_chosen_by(steps: Sequence[StepSection]) -> dict[str, str]:
    """The fields in which the stacks of a job differ, each with its place: `1.inputs.nuclei.channel`."""
    number, _ = _choosing(steps)
    chosen = chosen_inputs(steps)
    return {field: f"{number}.inputs.{name}.{field}" for name, choice in chosen.items() for field in choice}


def step_inputs(inputs: Mapping[str, Any]) -> dict[str, str]:
    """The carried stack that each parameter gets: one that fields choose is called like its parameter."""
    return {name: choice if isinstance(choice, str) else name for name, choice in inputs.items()}


def check_flow(steps: Sequence[StepSection]) -> tuple[str, ...]:
    """The names of the stacks that a job gives; a config's problem where a step can't have what it takes."""
    chosen = chosen_inputs(steps)
    number, first = _choosing(steps)
    mixed = [name for name in first if chosen and name not in chosen]
    if mixed:
        what = "a step's inputs are chosen by fields, as {channel: 1}, all of them or none"
        raise problem(what, at=f"steps.{number}.inputs.{mixed[0]}")
    for later, step in enumerate(steps):
        for name, choice in step.inputs.items():
            if isinstance(choice, dict) and later != number:
                what = (
                    f"step {number + 1}, the first one with inputs or outputs, chooses the stacks of a job; "
                    "name one that the step before gives"
                )
                raise problem(what, at=f"steps.{later}.inputs.{name}")
    given = tuple(chosen) or (STACK,)
    flows = [NamedFlow(step_inputs(step.inputs), step.outputs) for step in steps]
    try:
        return carried_through(flows, given)
    except FlowError as error:
        hint = ""
        if error.at != "outputs":
            parameter = error.at.partition(".")[2]
            name = flows[error.step].inputs[parameter]
            there = carried_through(flows[: error.step], given)
            hint = nearest(name, there) if len(there) > 1 else ""
            hint = hint if hint.startswith("; did") else ""
            if there == (STACK,) and not chosen:
                hint = f"; choose it among the input's by fields, as in {{{parameter}: {{channel: 1}}}}"
        raise problem(f"{error.what}{hint}", at=f"steps.{error.step}.{error.at}") from error


def _choosing(steps: Sequence[StepSection]) -> tuple[int, Mapping[str, Any]]:
    """The number and the inputs of the first step that has inputs or outputs."""
    for number, step in enumerate(steps):
        if step.inputs or step.outputs:
            return number, step.inputs
    return 0, {}
