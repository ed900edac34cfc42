"""What goes into a job that is submitted from Python, and where what comes out of it goes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcore import StackError
from scheduler.execution.jobs import Chain
from scheduler.execution.task import OutputTarget, Source, Stack, named_stacks
from scheduler.images.errors import InputError, OutputError
from scheduler.images.naming import format_of, table_path
from scheduler.images.plates import Destination
from scheduler.images.sources import StackSource, stack_of_files
from scheduler.steps.carried import FlowError, carried_through, table_labels
from scheduler.steps.errors import StepError


def job_source(inputs: Any) -> Source:
    """The stack or the named stacks that `StackJob.inputs` stands for.

    Raises
    ------
    InputError
        It is of no such type, or a file can't be read.
    StackError
        An array that isn't a stack of plain numbers.
    """
    if not isinstance(inputs, Mapping):
        return _stack("inputs", inputs)
    if not inputs or not all(isinstance(name, str) and name.isidentifier() for name in inputs):
        raise InputError(
            f"the names of inputs are words, as in {{'image': …, 'nuclei': …}}, not {list(inputs)}"
        )
    return {name: _stack(f"inputs[{name!r}]", each) for name, each in inputs.items()}


def results_of(chain: Chain, source: Source) -> tuple[str, ...]:
    """The names of the stacks that a job gives. StepError if a step names one that doesn't come to it."""
    try:
        return carried_through(chain.steps, tuple(named_stacks(source)))
    except FlowError as error:
        raise StepError(f"{chain.steps[error.step].use}: {error.at}: {error.what}") from error


def tables_of(chain: Chain, source: Source) -> tuple[str, ...]:
    """The labels of the tables that a job's steps may give."""
    return table_labels(chain.steps, [step.name for step in chain.steps], tuple(named_stacks(source)))


def job_target(
    output: str | Path | Mapping[str, str | Path] | None,
    run_id: str,
    results: Sequence[str],
    tables: Sequence[str],
) -> OutputTarget | None:
    """Where a job's `results` go, and the `tables` that its steps may give, by their labels.

    Raises
    ------
    OutputError
        A path can't be written to, or there isn't one for each result; or a file is where a table would go.
    """
    if output is None:
        return None
    if not isinstance(output, Mapping):
        if len(results) > 1:
            names = ", ".join(f"{name!r}: …" for name in results)
            raise OutputError(
                f"the job gives {', '.join(results)}: output is a path for each, as {{{names}}}"
            )
        output = {results[0]: output}
    if set(output) != set(results):
        raise OutputError(f"output has paths for {', '.join(output)}, and the job gives {', '.join(results)}")
    paths = {name: _free(output[name]) for name in results}
    formats = {format_of(path) for path in paths.values()}
    if len(formats) > 1 or len(set(paths.values())) < len(paths):
        raise OutputError(f"the outputs of a job have one format and different paths, not {_listed(paths)}")
    places = {name: Destination(path) for name, path in paths.items()}
    first, format = next(iter(paths.values())), formats.pop()
    table = table_path(first, format)
    if tables and table.exists():
        raise OutputError(
            f"{table} exists already, and a table that {' or '.join(tables)} may give goes there; give the "
            "output another name, or move that file away"
        )
    return OutputTarget(
        str(first),
        format,
        False,
        {"run": run_id},
        stacks=places,
        tables=dict.fromkeys(tables, str(table)),
    )


def _listed(paths: Mapping[str, Path]) -> str:
    return ", ".join(map(str, paths.values()))


def _free(output: str | Path) -> Path:
    path = Path(output).absolute()
    if not path.parent.is_dir():
        raise OutputError(f"the folder of output {path} doesn't exist")
    if path.exists():
        raise OutputError(f"output {path} exists already")
    return path


def _stack(what: str, inputs: Any) -> Stack:
    if isinstance(inputs, StackSource):
        return inputs
    if isinstance(inputs, np.ndarray):
        return _checked(what, inputs)
    if isinstance(inputs, str | Path):
        return stack_of_files(inputs)
    if isinstance(inputs, Sequence) and inputs and all(isinstance(each, str | Path) for each in inputs):
        return stack_of_files(*inputs)
    raise InputError(
        f"{what} is of type {type(inputs).__name__}; it may be a NumPy array [Z, Y, X], a file, a sequence "
        "of files with a plane each, or a StackSource"
    )


def _checked(what: str, array: NDArray[Any]) -> NDArray[Any]:
    if type(array) is not np.ndarray:
        raise StackError(f"{what} is a {type(array).__name__}; take a plain NumPy array of its values")
    if array.ndim != 3 or array.size == 0:
        raise StackError(f"{what} has the shape {array.shape}; a stack is [Z, Y, X], none of them 0")
    if not array.dtype.isnative or array.dtype.kind not in "buifc":
        raise StackError(
            f"{what} has the dtype {array.dtype.str}; take one of numbers, in this machine's byte order"
        )
    return array
