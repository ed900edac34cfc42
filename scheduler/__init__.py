"""Image-stack jobs scheduled over GPUs and CPUs by the memory that they need and that is free.

Public names load on first use, so that `import scheduler` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scheduler.config.errors import ConfigError as ConfigError
    from scheduler.config.load import load_config as load_config
    from scheduler.config.model import RunConfig as RunConfig
    from scheduler.execution.errors import ClusterError as ClusterError
    from scheduler.execution.results import JobFailedError as JobFailedError
    from scheduler.execution.results import JobResult as JobResult
    from scheduler.execution.resume import resume as resume
    from scheduler.execution.run import run as run
    from scheduler.execution.session import StackFuture as StackFuture
    from scheduler.execution.stack_scheduler import StackJob as StackJob
    from scheduler.execution.stack_scheduler import StackScheduler as StackScheduler
    from scheduler.execution.status import RunStatus as RunStatus
    from scheduler.execution.status import RunSummary as RunSummary
    from scheduler.screens.progress import show_progress as show_progress

_HOME = {
    "ClusterError": "scheduler.execution.errors",
    "ConfigError": "scheduler.config.errors",
    "JobFailedError": "scheduler.execution.results",
    "JobResult": "scheduler.execution.results",
    "RunConfig": "scheduler.config.model",
    "RunStatus": "scheduler.execution.status",
    "RunSummary": "scheduler.execution.status",
    "StackFuture": "scheduler.execution.session",
    "StackJob": "scheduler.execution.stack_scheduler",
    "StackScheduler": "scheduler.execution.stack_scheduler",
    "load_config": "scheduler.config.load",
    "resume": "scheduler.execution.resume",
    "run": "scheduler.execution.run",
    "show_progress": "scheduler.screens.progress",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'scheduler' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
