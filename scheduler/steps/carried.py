"""Which named stacks a chain carries from step to step.

A chain begins with the stacks of its job: one called "stack", or several with names of their own. A step
with `inputs` is called once, with those that it names, and what it gives takes the place of all that were
there: one stack called "stack", or those that its `outputs` name. A step without `inputs` is called for each
stack by itself, and what comes back keeps the name. What is there after the last step is written.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

STACK = "stack"
"""What the one stack of a chain is called where nobody has given it another name."""


class Flow(Protocol):
    """What a step takes and gives: the carried stack for each parameter, and the names of its results."""

    @property
    def inputs(self) -> Mapping[str, str]: ...
    @property
    def outputs(self) -> Sequence[str]: ...


class FlowError(ValueError):
    """A step can't have the stacks that it asks for; `step` counts from 0, `at` is the key that is wrong."""

    def __init__(self, step: int, at: str, what: str) -> None:
        super().__init__(step, at, what)
        self.step = step
        self.at = at
        self.what = what

    def __str__(self) -> str:
        return self.what


def carried_after(flow: Flow, carried: Sequence[str]) -> tuple[str, ...]:
    """The names of the stacks that there are after one step."""
    if flow.inputs or (flow.outputs and len(carried) == 1):
        return tuple(flow.outputs) or (STACK,)
    return tuple(carried)


def carried_through(steps: Sequence[Flow], given: Sequence[str]) -> tuple[str, ...]:
    """The names of the stacks that come out of a chain which the stacks `given` go into.

    Raises
    ------
    FlowError
        A step names a stack that isn't there, or gives several for each of several.
    """
    carried = tuple(given)
    for number, step in enumerate(steps):
        for parameter, name in step.inputs.items():
            if name not in carried:
                what = f"no stack {name!r} comes to this step; there {_are(carried)}"
                raise FlowError(number, f"inputs.{parameter}", what)
        if step.outputs and not step.inputs and len(carried) > 1:
            what = (
                f"the step is called for each of {', '.join(carried)}, and its outputs would get the same "
                "names; say by inputs which it takes"
            )
            raise FlowError(number, "outputs", what)
        carried = carried_after(step, carried)
    return carried


def table_labels(steps: Sequence[Flow], names: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """What the tables that steps of these `names` may give are called, each once, in the chain's order.

    That is the step's name, after the stack's where the step is called for each of several. Of steps with
    one name the second is called name_2.
    """
    carried, labels = tuple(given), []
    for step, name in zip(steps, told_apart(names), strict=True):
        labels += [table_label(name, stack, carried, step) for stack in carried]
        carried = carried_after(step, carried)
    return tuple(dict.fromkeys(labels))


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """The names of a chain's steps, with a number at those that an earlier step has already."""
    found: list[str] = []
    for name in names:
        # Another step may be called name_2 by itself.
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        free = (each for each in numbered if each not in names and each not in found)
        found.append(next(free) if name in found else name)
    return tuple(found)


def table_label(step_name: str, stack: str, carried: Sequence[str], flow: Flow) -> str:
    """What the table is called that a step gives with the stack `stack`."""
    return step_name if flow.inputs or len(carried) == 1 else f"{stack}_{step_name}"


def _are(names: Sequence[str]) -> str:
    return f"is only {names[0]!r}" if len(names) == 1 else f"are {', '.join(names)}"
