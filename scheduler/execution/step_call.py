"""One step of a chain called on the stacks that the chain carries, and what it gives sorted out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from numpy.typing import NDArray

from memcore import backend_of, convert_memory, memory_type_of
from memcore.memory_type import GpuId
from memcore.registry import resembles_array
from pools.holder import current_holder, held_by
from pools.oom import is_oom
from scheduler.execution.errors import shortened
from scheduler.images.arrays import ArrayFile
from scheduler.images.errors import said
from scheduler.steps.carried import STACK, table_label
from scheduler.steps.context import StepContext
from scheduler.steps.resolve import ResolvedStep

Columns = Mapping[str, Sequence[object]]
ReadArray = Callable[[ArrayFile], NDArray[Any]]


class MakeContext(Protocol):
    """Makes the context of a step's call; `z_start` is the first plane's index in the whole stack."""

    def __call__(self, step: "ChainStep", z_start: int = 0) -> StepContext: ...


class StepFailedError(RuntimeError):
    """A step raised; the message names the step, the arrays it was given, and what it said."""

    def __init__(self, step: str, stack: str, error: str) -> None:
        super().__init__(step, stack, error)

    def __str__(self) -> str:
        step, stack, error = self.args
        return f"step {step} failed on {stack}: {error}"


class StepResultError(ValueError):
    """What a step gave isn't what its place in the chain needs."""


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One step of a chain with the memory type that a plan gives it and where its arrays live."""

    resolved: ResolvedStep
    memory_type: str
    gpu_id: GpuId
    on_host: bool = False
    """A step for NumPy in a GPU's chain: it doesn't need the GPU."""


@dataclass(frozen=True, slots=True)
class StepTable:
    """A table that a step gave beside its stacks; `label` names it among the job's tables."""

    label: str
    columns: Columns


def call_step(
    step: ChainStep,
    stacks: dict[str, Any],
    *,
    make_context: MakeContext | partial[StepContext],
    read_array: ReadArray,
    called: str = "",
) -> list[StepTable]:
    """Call `step` on what `stacks` holds, and put what it gives in its place; returns its tables.

    They are named after `called`, where the chain has other steps of the step's own.

    `stacks` are the `[Z, Y, X]` arrays that the chain carries, of any memory types, by name: they are
    converted as the step needs them. See `scheduler.steps.carried` for which of them it is given, and what
    there is afterwards.

    Raises
    ------
    StepFailedError
        The step raised, or gave what its place in the chain has no use for. Out of memory passes through.
    """
    resolved = step.resolved
    called = called or resolved.name
    if resolved.inputs:
        given = {parameter: stacks[name] for parameter, name in resolved.inputs.items()}
        stacks.clear()
        found, columns = _call(step, resolved.first, given, make_context, read_array)
        stacks.update(found)
        return [] if columns is None else [StepTable(called, columns)]
    tables, carried = [], tuple(stacks)
    for name in carried:
        given = {STACK: stacks[name]}
        stacks[name] = None  # its place among the others
        found, columns = _call(step, STACK, given, make_context, read_array)
        if resolved.outputs:
            del stacks[name]
            stacks.update(found)
        else:
            stacks[name] = found[STACK]
        if columns is not None:
            tables.append(StepTable(table_label(called, name, carried, resolved), columns))
    return tables


def _call(
    step: ChainStep,
    first: str,
    stacks: dict[str, Any],
    make_context: MakeContext | partial[StepContext],
    read_array: ReadArray,
) -> tuple[dict[str, Any], Columns | None]:
    """What the step gives for `stacks`, which it empties; the one called `first` is the first argument."""
    resolved = step.resolved
    # One after another: what is converted goes before the next one comes.
    given = {name: _at(step, stacks.pop(name)) for name in tuple(stacks)}
    implementation = resolved.step.implementation_for(step.memory_type)
    keywords = dict(resolved.parameters)
    keywords |= {name: array for name, array in given.items() if name != first}
    if implementation.takes_context:
        keywords["context"] = make_context(step)
    try:
        # New ones for each call: what a step does to its array on a device stays its own affair.
        keywords |= {name: _at(step, read_array(file)) for name, file in resolved.arrays.items()}
        with held_by(current_holder()[0], resolved.name):
            return _sorted_out(resolved, implementation(given[first], **keywords))
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        # A step that calls sys.exit would end the worker process, and nobody could say why. A Ctrl-C of the
        # terminal reaches main threads alone: one that comes from a step is the step's.
        if is_oom(error):
            raise
        backend = backend_of(step.memory_type)
        described = ", ".join(
            f"{name}: {backend.describe(array)}" if resolved.inputs else str(backend.describe(array))
            for name, array in given.items()
        )
        text = str(error) if isinstance(error, StepResultError) else said(error)
        raise StepFailedError(resolved.name, described, shortened(text)) from error


def _at(step: ChainStep, array: Any) -> Any:
    return convert_memory(array, memory_type_of(array), step.memory_type, step.gpu_id)


def _sorted_out(resolved: ResolvedStep, result: Any) -> tuple[dict[str, Any], Columns | None]:
    columns = None
    if isinstance(result, tuple):
        if len(result) != 2 or resembles_array(result[1]):
            raise StepResultError(
                "it gave a tuple that isn't (stack, table); several stacks are a dict of them, whose names "
                "the step's outputs list"
            )
        result, table = result
        columns = table_columns(table)
    names = resolved.outputs or (STACK,)
    if not isinstance(result, Mapping):
        if len(names) > 1:
            raise StepResultError(
                f"it gave one stack; its outputs are {', '.join(names)}: give a dict of them"
            )
        return {names[0]: result}, columns
    if not resolved.outputs:
        given = ", ".join(map(str, result))
        raise StepResultError(f"it gave a dict of stacks; list their names, as in outputs: [{given}]")
    if set(result) != set(names):
        raise StepResultError(
            f"it gave the stacks {', '.join(map(str, result)) or 'none'}; its outputs are {', '.join(names)}"
        )
    strange = [name for name in names if not resembles_array(result[name])]
    if strange:
        raise StepResultError(
            f"what it gave as {strange[0]!r} is a {type(result[strange[0]]).__name__}, no array"
        )
    return {name: result[name] for name in names}, columns


def table_columns(table: Any) -> dict[str, list[object]]:
    """The columns, as lists of plain values, of a mapping of sequences or a data frame, as pandas has them.

    Raises
    ------
    StepResultError
        It is neither, a column isn't one-dimensional, or they have different lengths.
    """
    framed = hasattr(table, "columns") and hasattr(table, "to_dict")
    if not framed and not isinstance(table, Mapping):
        raise StepResultError(
            f"what it gave beside the stack is a {type(table).__name__}; a table is a mapping of columns, "
            "or a data frame"
        )
    columns = {str(name): _column(str(name), table[name]) for name in (table.columns if framed else table)}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise StepResultError(f"the columns of its table have different lengths: {told}")
    return columns


def _column(name: str, values: Any) -> list[object]:
    # NumPy's arrays, tensors and series give plain numbers so; device arrays come to the host.
    plain = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, str | bytes | Mapping) or not isinstance(plain, Sequence):
        raise StepResultError(f"the column {name!r} of its table is a {type(values).__name__}, no sequence")
    if any(isinstance(value, list) for value in plain) and hasattr(values, "shape"):
        raise StepResultError(
            f"the column {name!r} of its table has the shape {tuple(values.shape)}; it is 1-D"
        )
    return list(plain)
