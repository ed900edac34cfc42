"""`stackyard init`: a commented config for a folder of images, which runs as it is."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from memcore.info import bytes_text
from scheduler.images.errors import InputError
from scheduler.images.patterns import parse_pattern
from scheduler.images.sources import StackSource, find_stacks
from scheduler.screens.exits import errors_as_messages, print_json
from scheduler.screens.proposal import Proposal, count_images, output_name, propose_pattern
from scheduler.screens.words import count_text, path_text, printable

TEMPLATE = """\
# {stacks} of {shape} {dtype}, {size}. Run them with: stackyard run {name}
# Paths count from the folder of this file.

input:
  path: {path}
  pattern: {pattern}
  stack_along: z
  # select: {{{example}}}

steps:                           # one after the other; {{use: package.module:function}} takes your own
  - use: gaussian
    with: {{sigma: 1.0}}           # pixels, a number or [z, y, x]
  # - use: subtract_background
  #   with: {{radius: 50}}         # pixels; wider than what is to stay
  # - use: max_projection

output:
  path: out
  format: ome-tiff
  name: {output_name}

devices:
  gpus: auto                     # all that are there; none is fine
  cpu: true

memory:
  on_pressure: earliest-finish   # where a GPU is full: wait or use the CPU; or cpu, wait, fail
  host_limit: 75%                # of this computer's memory
"""


@dataclass(frozen=True, slots=True)
class _Found:
    folder: Path
    proposal: Proposal
    stacks: list[StackSource]
    left_out: int  # images of other names, and in other folders


def init_command(folder: Path, config: Path, *, overwrite: bool, as_json: bool, debug: bool) -> None:
    """Look at the images in or below `folder` and write a config for them to `config`."""
    with errors_as_messages(debug=debug, unusable=(InputError,)):
        found = _look(folder)
        text = _config_text(found, config)
        if config.exists() and not overwrite:
            raise InputError(f"{config} exists; --overwrite replaces it, --config writes another file")
        config.write_text(text, encoding="utf-8")
    pattern = found.proposal.pattern
    if as_json:
        record = {"config": str(config), "folder": str(found.folder), "pattern": pattern}
        figures = {"stacks": len(found.stacks), "unreadable": _unreadable(found), "left_out": found.left_out}
        print_json({**record, **figures})
    else:
        shown = printable(f"{_stacks_text(found)} in {found.folder}, pattern {pattern}")
        print(f"{path_text(config)}: {shown}")
        if found.left_out:
            left = count_text(found.left_out, "image")
            print(f"left out: {left} of other names or in other folders; init on a folder takes its own")


def _look(folder: Path) -> _Found:
    """The folder with the most images of one form at or below `folder`, and the stacks in it."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder")
    best: tuple[Path, Proposal, list[str]] | None = None
    images = 0
    for path, below, names in os.walk(folder):
        # Results of earlier runs and hidden folders are no input.
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "out")
        images += count_images(names)
        proposal = propose_pattern(sorted(names))
        if proposal and (best is None or proposal.follow > best[1].follow):
            best = Path(path), proposal, sorted(names)
    if best is None:
        raise InputError(f"there is no TIFF file in {folder} or below")
    where, proposal, names = best
    whole = propose_pattern(names, whole_stacks=True)
    if whole is not None and "z" not in parse_pattern(whole.pattern).fields:
        # Nothing in the names says that they count planes: the files themselves know.
        stacks = find_stacks(where, whole.pattern)
        if sum(len(stack.planes) for stack in stacks) > whole.follow or whole == proposal:
            return _Found(where, whole, stacks, images - whole.follow)
    return _Found(where, proposal, find_stacks(where, proposal.pattern), images - proposal.follow)


def _config_text(found: _Found, config: Path) -> str:
    pattern = found.proposal.pattern
    stacks = found.stacks
    good = next(stack for stack in stacks if not stack.problem)
    first = good.fields[0] if good.fields else ("channel", "0")
    base = config.resolve().parent
    return TEMPLATE.format(
        stacks=count_text(len(stacks), "stack"),
        shape=" × ".join(map(str, good.shape)),
        dtype=good.dtype,
        size=bytes_text(sum(stack.nbytes for stack in stacks if not stack.problem)) + " in all",
        name=config.name,
        path=_scalar(os.path.relpath(found.folder.resolve(), base)),
        pattern=_scalar(pattern),
        example=f"{first[0]}: [{_scalar(first[1])}]",
        output_name=_scalar(output_name(pattern, [name for name, _ in good.fields])),
    )


def _stacks_text(found: _Found) -> str:
    text = count_text(len(found.stacks), "stack")
    broken = _unreadable(found)
    return f"{text} ({broken} can't be read)" if broken else text


def _unreadable(found: _Found) -> int:
    return sum(bool(stack.problem) for stack in found.stacks)


def _scalar(text: str) -> str:
    """`text` as a quoted YAML scalar on one line."""
    return yaml.safe_dump(text, default_style='"', width=sys.maxsize, allow_unicode=True).strip()
