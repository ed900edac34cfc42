"""A config's steps, checked before Dask is imported, with the place of what is wrong in the file."""

import re
from collections.abc import Iterable
from contextlib import suppress

from scheduler.config import RunConfig, config_error
from scheduler.config.model import StepConfig
from scheduler.execution.prepare import config_folder, step_spec
from scheduler.screens.printed import prints_told
from scheduler.steps.errors import StepError


def check_steps(config: RunConfig, *, log_json: bool = False, quiet: bool = False) -> None:
    """Resolve every step; ConfigError names all that can't be, each with its line and column.

    What its module prints is told as `prints_told` does.
    """
    problems: dict[tuple[str | int, ...], str] = {}
    with prints_told(log_json=log_json, quiet=quiet):
        for index, step in enumerate(config.steps):
            try:
                step_spec(step, config_folder(config)).resolve().close()
            except StepError as error:
                at = _place(step, str(error))
                problems["steps", index, *at] = str(error)
    if problems:
        raise config_error(config, problems)


def import_steps(config: RunConfig, *, log_json: bool, quiet: bool) -> None:
    """Import the steps of a run that is resumed, which itself tells those that can't be."""
    with prints_told(log_json=log_json, quiet=quiet):
        for step in config.steps:
            with suppress(StepError):
                step_spec(step, config_folder(config)).resolve().close()


def _place(step: StepConfig, error: str) -> tuple[str, ...]:
    """The key of the step that an error speaks of."""
    for key in step.arrays:
        if f"arrays.{key}:" in error:
            return "arrays", key
    for section, keys in (("inputs", step.inputs), ("with", step.with_)):
        keyword = _keyword(keys, error)
        if keyword is not None:
            return section, keyword
    return ("use",)


def _keyword(given: Iterable[str], said: str) -> str | None:
    """Which of the keywords that a step was given an error is about, if it names one."""
    given = tuple(given)
    quoted = (key for key in given if repr(key) in said)
    named = (key for key in given if re.search(rf"\b{re.escape(key)}\b", said))
    return next(quoted, next(named, None))
