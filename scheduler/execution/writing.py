"""Writing what an attempt has made: its stacks, and the tables that its steps gave beside them."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from scheduler.execution.step_call import StepTable
from scheduler.execution.task import AttemptTask, OutputRecord, OutputTarget, Stack, StepRecord, named_stacks
from scheduler.images.errors import OutputError
from scheduler.images.naming import table_path
from scheduler.images.outputs import write_stack
from scheduler.images.plates import Destination
from scheduler.images.stack import StackSource
from scheduler.images.tables import table_digest, write_table
from scheduler.steps.carried import STACK


def write_results(
    task: AttemptTask,
    results: Mapping[str, NDArray[Any]],
    tables: Sequence[StepTable],
    steps: Sequence[StepRecord],
) -> tuple[OutputRecord, ...]:
    """Write every stack to its place, then the tables; nothing where the task has no output.

    If one can't be written those before it are removed again, so that the next attempt finds their places
    free; not where they may be overwritten anyway, nor a channel of a shared image.

    Raises
    ------
    OutputError, FileExistsError, OSError
        As `write_stack` and `write_table`; and two tables with one place.
    """
    target = task.output
    if target is None:
        return ()
    given = named_stacks(task.source)
    provenance = {
        **target.provenance,
        "job": task.job_id,
        "steps": [asdict(record) for record in steps],
        "blocks": task.split.blocks if task.split else 1,
    }
    if len(given) > 1:
        provenance["inputs"] = {name: _named(stack) for name, stack in given.items()}
    written: list[OutputRecord] = []
    with contextlib.ExitStack() as undo:
        for name, array in results.items():
            written.append(_write_stack(target, name, array, given, provenance))
            if not target.overwrite and written[-1].channel is None:
                undo.callback(_remove, Path(written[-1].path))
        for table in tables:
            path = _table_path(target, table.label)
            if str(path) in {record.path for record in written}:
                raise OutputError(
                    f"two steps give a table for {path}; put {{stack}} into the output's name, which "
                    "stands for the step in a table's"
                )
            write_table(path, table.columns, fields=dict(target.fields), overwrite=target.overwrite)
            rows = len(next(iter(table.columns.values()), ()))
            if not target.overwrite:
                undo.callback(_remove, path)
            form = rows, len(table.columns)
            written.append(OutputRecord(table.label, str(path), form, digest=table_digest(path)))
        undo.pop_all()
    return tuple(written)


def _write_stack(
    target: OutputTarget,
    name: str,
    array: NDArray[Any],
    given: Mapping[str, Stack],
    provenance: Mapping[str, Any],
) -> OutputRecord:
    place = target.stacks.get(name) or Destination(Path(target.path))
    first = next(iter(given.values()))
    size = first.physical_size_um if isinstance(first, StackSource) else None
    source = given.get(name)
    channel_name = None if name == STACK else name
    if isinstance(source, StackSource):
        size, channel_name = source.physical_size_um, source.channel_name or channel_name
    write_stack(
        place.path,
        array,
        format=target.format,
        physical_size_um=size,
        channel_name=channel_name,
        provenance=provenance,
        overwrite=target.overwrite,
        options=target.options,
        channel=place.channel,
        channels=place.channels,
    )
    z, y, x = array.shape
    return OutputRecord(name, str(place.path), (z, y, x), array.dtype.name, place.channel)


def _table_path(target: OutputTarget, label: str) -> Path:
    if label in target.tables:
        return Path(target.tables[label])
    return table_path(Path(target.path), target.format)


def _named(stack: Stack) -> str:
    return stack.name if isinstance(stack, StackSource) else f"an array {stack.dtype} {stack.shape}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
