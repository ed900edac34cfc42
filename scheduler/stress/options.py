"""What a stress test is asked to do: options of the command line over those of a YAML file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from pools.sizes import parse_size
from scheduler.config.document import Document
from scheduler.config.errors import ConfigError
from scheduler.images.patterns import nearest
from scheduler.stress.modes import HogMode

LEAST_DEVICE = 256 << 20
MOST_DEVICES = 16


class StressError(ValueError):
    """What was asked for can't be done here; nothing was started."""


def _virtual(value: Any) -> Any:
    """ "2x8GiB" or "2x8GiB,1x4GiB" as the bytes of each device."""
    if not isinstance(value, str):
        return value
    sizes: list[int] = []
    for part in value.split(","):
        match = re.fullmatch(r"\s*(\d{1,3})\s*x\s*(\d+(?:\.\d+)?\s*[KMGT]i?B)\s*", part, re.IGNORECASE)
        if match is None:
            raise ValueError(f"expected a number of devices and their size, such as 2x8GiB, not {part!r}")
        sizes += int(match[1]) * [parse_size(match[2])]
    if not 1 <= len(sizes) <= MOST_DEVICES:
        raise ValueError(f"expected 1 to {MOST_DEVICES} devices, not {len(sizes)}")
    if min(sizes) < LEAST_DEVICE:
        raise ValueError("a device of less than 256 MiB is too small for the jobs")
    return tuple(sizes)


def _per_cent(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", value)
        if match is None:
            raise ValueError(f"expected per cent of the jobs, such as 20%, not {value!r}")
        return float(match[1])
    return value


class StressOptions(BaseModel):
    """A stress test.

    Attributes
    ----------
    virtual
        Bytes of each virtual device; None for the GPUs that are there.
    jobs
        How many jobs.
    hog
        What other programs do on the devices meanwhile.
    kill_workers
        How many worker processes are killed (SIGKILL) in the middle of their work.
    under_estimate
        Per cent of the jobs that need more of the device than they declare.
    faults
        Probes fail and answer late for a while, and some results go to a slow disk.
    seed
        The same seed makes the same jobs, and hogs, kills and faults as alike as real time allows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    virtual: Annotated[tuple[int, ...] | None, BeforeValidator(_virtual)] = None
    jobs: Annotated[int, Strict(), Field(ge=1, le=1_000_000)] = 200
    hog: HogMode = HogMode.NONE
    kill_workers: Annotated[int, Strict(), Field(ge=0)] = 0
    under_estimate: Annotated[float, BeforeValidator(_per_cent), Field(ge=0, le=100)] = 0.0
    faults: bool = True
    seed: Annotated[int, Strict(), Field(ge=0)] = 0


def load_options(path: Path | None, given: Mapping[str, Any]) -> StressOptions:
    """Options from a YAML file, if there is one, with those that were `given` (not None) in place of its own.

    Raises
    ------
    ConfigError
        Everything that is wrong in the file, each with its line.
    StressError
        An option of the command line has no such value.
    """
    asked = {key: value for key, value in given.items() if value is not None}
    data = {}
    if path is not None:
        document = Document(path)
        data = dict(document.data)
        try:
            StressOptions.model_validate(data)
        except ValidationError as error:
            raise ConfigError(*(_in_file(document, detail) for detail in error.errors())) from error
    try:
        return StressOptions.model_validate({**data, **asked})
    except ValidationError as error:
        told = [f"--{str(each['loc'][0]).replace('_', '-')}: {_said(each)}" for each in error.errors()]
        raise StressError("; ".join(told)) from error


def _in_file(document: Document, detail: Any) -> Any:
    path = detail["loc"][:1]
    name = ".".join(map(str, path)) or "config"
    if detail["type"] == "extra_forbidden":
        known = list(StressOptions.model_fields)
        return document.problem(f"unknown key {name!r}{nearest(name, known)}", path, of_key=True)
    return document.problem(f"{name}: {_said(detail)}", path)


def _said(detail: Any) -> str:
    what: str = detail["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
    return what[:1].lower() + what[1:]
