"""A config's steps, checked before Dask is imported, with the place of what is wrong in the file."""

from scheduler.config import RunConfig, config_error
from scheduler.config.model import StepConfig
from scheduler.execution.prepare import config_folder, step_spec
from scheduler.steps.errors import StepError


def check_steps(config: RunConfig) -> None:
    """Resolve every step; ConfigError names all that can't be, each with its line and column."""
    problems: dict[tuple[str | int, ...], str] = {}
    for index, step in enumerate(config.steps):
        try:
            step_spec(step, config_folder(config)).resolve().close()
        except StepError as error:
            at = _place(step, str(error))
            problems["steps", index, *at] = str(error)
    if problems:
        raise config_error(config, problems)


def _place(step: StepConfig, error: str) -> tuple[str, ...]:
    """The key of the step that an error speaks of."""
    for section, keys in (("arrays", step.arrays), ("inputs", step.inputs), ("with", step.with_)):
        for key in keys:
            if f"arrays.{key}:" in error or (section != "arrays" and repr(key) in error):
                return section, key
    return ("use",)
