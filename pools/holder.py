"""Who holds the leases made here: named once around a job or step, noted on each lease."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Holder = tuple[str | None, str | None]
"""The job and the step."""

_HOLDER: ContextVar[Holder] = ContextVar("holder", default=(None, None))

current_holder = _HOLDER.get


@contextmanager
def held_by(job: str | None, step: str | None = None) -> Iterator[None]:
    """Leases made inside the block (on this thread or task) name this job and step as their holder."""
    token = _HOLDER.set((job, step))
    try:
        yield
    finally:
        _HOLDER.reset(token)
