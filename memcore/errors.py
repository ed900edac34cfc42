"""Errors that say the fact, the numbers and the way out, and survive pickling.

Each error keeps one message in `args` and its figures as attributes, so that it crosses a process pool
or a Dask worker unchanged: equal type, text and attributes make equal errors.
"""

from __future__ import annotations

from typing import Any


class MemcoreError(Exception):
    """Base of every error that memcore raises on purpose."""

    # Tracebacks then name the public place, `memcore.StackError`, and pickles find it there.
    __module__ = "memcore"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self.args == other.args and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), self.args))


class UnknownMemoryTypeError(MemcoreError, TypeError):
    """The object isn't a plain array of a known library; the text says what to do with it."""

    __module__ = "memcore"


class BackendUnavailableError(MemcoreError, ImportError):
    """The library behind a memory type can't be used here; the text says how to install it."""

    __module__ = "memcore"


class DeviceError(MemcoreError, ValueError):
    """A `gpu_id` that this memory type doesn't have on this machine."""

    __module__ = "memcore"


class StackError(MemcoreError, ValueError):
    """Slices that don't make one `[Z, Y, X]` stack, or a stack that isn't one."""

    __module__ = "memcore"


class ContractError(MemcoreError, TypeError):
    """A step was given, or gave back, what its declaration excludes."""

    __module__ = "memcore"


class DtypeError(MemcoreError, TypeError):
    """A dtype that the target can't hold exactly, or values that a dtype rule can't keep."""

    __module__ = "memcore"


class MemoryConversionError(MemcoreError, ValueError):
    """A conversion that can't be done as asked.

    Prints four lines: what failed, the reason with the remedy, the source and the target.
    """

    __module__ = "memcore"

    def __init__(self, headline: str, reason: str, source: str, target: str) -> None:
        super().__init__(headline, reason, source, target)

    @property
    def reason(self) -> str:
        """Why, and what to do about it."""
        return str(self.args[1])

    @property
    def source(self) -> str:
        """The array that was given."""
        return str(self.args[2])

    @property
    def target(self) -> str:
        """The array that was asked for."""
        return str(self.args[3])

    def __str__(self) -> str:
        headline, reason, source, target = self.args
        return f"{headline}\nReason: {reason}\nSource: {source}\nTarget: {target}"


class ConversionDeviceError(MemoryConversionError, DeviceError):
    """A conversion to a device that isn't there."""

    __module__ = "memcore"


class ConversionDtypeError(MemoryConversionError, DtypeError):
    """A conversion to a library that can't hold the dtype exactly."""

    __module__ = "memcore"


class OutOfDeviceMemoryError(MemcoreError, MemoryError):
    """A device, or a limit that stands for one, has no room for the bytes asked.

    Attributes
    ----------
    device : what is full, in words
    requested, free, capacity : bytes, or None where unknown
    """

    __module__ = "memcore"

    def __init__(
        self,
        message: str,
        *,
        device: str | None = None,
        requested: int | None = None,
        free: int | None = None,
        capacity: int | None = None,
    ) -> None:
        super().__init__(message)
        self.device = device
        self.requested = requested
        self.free = free
        self.capacity = capacity

    # MemoryError's own reduce would drop the attributes on interpreters that recycle its instances.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, dict(self.__dict__)
