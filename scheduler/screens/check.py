"""A config's steps, checked before Dask is imported, with the place of what is wrong in the file."""

from scheduler.config import RunConfig, config_error
from scheduler.execution.prepare import config_folder, step_spec
from scheduler.steps.errors import StepError


def check_steps(config: RunConfig) -> None:
    """Resolve every step; ConfigError names all that can't be, each with its line and column."""
    problems: dict[tuple[str | int, ...], str] = {}
    for index, step in enumerate(config.steps):
        try:
            step_spec(step, config_folder(config)).resolve().close()
        except StepError as error:
            keyword = next((key for key in step.with_ if repr(key) in str(error)), None)
            at = ("use",) if keyword is None else ("with", keyword)
            problems["steps", index, *at] = str(error)
    if problems:
        raise config_error(config, problems)
