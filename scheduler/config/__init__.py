"""The config of a run: a YAML file, checked as a whole before anything starts."""

from scheduler.config.errors import ConfigError, ConfigProblem
from scheduler.config.load import config_error, load_config
from scheduler.config.model import RunConfig

__all__ = ["ConfigError", "ConfigProblem", "RunConfig", "config_error", "load_config"]
