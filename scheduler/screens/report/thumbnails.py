"""Some stacks before and after, as small pictures inside the page."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scheduler.config import RunConfig
from scheduler.execution.prepare import find_groups
from scheduler.images.errors import ImageError, InputError
from scheduler.images.sources import StackSource, read_stack, stacks_in_file
from scheduler.screens.report.records import JobRow, ResultRow

SIDE = 320
AT_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Pair:
    """A stack's brightest voxels along z before and after, as PNG data URLs; or why there is no picture."""

    job: str
    before: str
    after: str
    problem: str = ""


def before_and_after(config: RunConfig, jobs: Sequence[JobRow], count: int = 3) -> Iterator[Pair]:
    """Pictures of the first `count` jobs that are done, whose files are still there to be read.

    Of a job with several stacks a result is beside the input of its name, or else the first one.
    """
    done = [job for job in jobs if job.state == "done" and job.output][:count]
    if not done:
        return
    try:
        groups = {group.name: dict(group.stacks) for group in find_groups(config)}
    except InputError as error:
        yield Pair("", "", "", f"the input isn't as it was: {error}")
        return
    for job in done:
        results = job.stacks or (ResultRow("", job.output or "", None),)
        for result in results:
            name = f"{job.job}: {result.name}" if len(results) > 1 else job.job
            try:
                given = groups[job.job]
                before = given.get(result.name) or next(iter(given.values()))
                yield Pair(name, _picture(before), _picture(_result(result)))
            except KeyError:
                yield Pair(name, "", "", "its input isn't there any more")
            except (InputError, ImageError) as error:
                yield Pair(name, "", "", str(error))


def png(plane: NDArray[np.generic]) -> str:
    """A plane [Y, X] as a data URL: 8 bits between its 1st and 99.8th percentile, 320 pixels at most."""
    step = max(1, -(-max(plane.shape) // SIDE))
    small = np.nan_to_num(plane[::step, ::step].astype(np.float64))
    low, high = np.percentile(small, (1.0, 99.8))
    scaled = np.clip((small - low) / ((high - low) or 1.0), 0.0, 1.0) * 255
    buffer = io.BytesIO()
    Image.fromarray(scaled.astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _picture(source: StackSource) -> str:
    if source.nbytes > AT_MOST_BYTES:
        raise ImageError("too large for a picture")
    stack = np.empty(source.shape, source.dtype)
    read_stack(source, stack)
    return png(np.abs(stack).max(axis=0) if stack.dtype.kind == "c" else stack.max(axis=0))


def _result(result: ResultRow) -> StackSource:
    found = stacks_in_file(result.path)
    if result.channel is not None and result.channel < len(found):
        return found[result.channel]
    if len(found) > 1:
        raise ImageError(f"{result.path} holds {len(found)} stacks")
    return found[0]
