"""A step's table, as CSV with the fields of its job in every row."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from scheduler.images.atomic import atomic_file
from scheduler.images.errors import OutputError


def write_table(
    path: str | Path,
    columns: Mapping[str, Sequence[object]],
    *,
    fields: Mapping[str, str],
    overwrite: bool = False,
) -> Path:
    """Write `columns`, a sequence for each name as skimage's regionprops_table gives, whole or not at all.

    The job's `fields` come first, the same in each row. A table without rows is written with its header. The
    text is UTF-8, quoted as RFC 4180 says.

    Raises
    ------
    OutputError
        Columns of different lengths, or a column named like a field.
    FileExistsError
        `path` is there and `overwrite` is False.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise OutputError(f"a table's columns have the same length, but these have {lengths}")
    both = [name for name in columns if name in fields]
    if both:
        raise OutputError(f"a table's columns {both} are named like fields of its job; rename them")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*fields, *columns])
    writer.writerows([*fields.values(), *row] for row in zip(*columns.values(), strict=True))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(text.getvalue().encode())
    return path


def table_digest(path: str | Path) -> str:
    """The SHA-256 of what is in a table's file. OSError if it can't be read."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
