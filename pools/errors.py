"""What a pool refuses, and why. All of these survive pickling."""

from memcore.errors import OutOfDeviceMemoryError


class PoolExhaustedError(MemoryError):
    """The bytes asked for don't fit under the limit, even with every idle buffer given back."""


class DevicePoolExhaustedError(OutOfDeviceMemoryError, PoolExhaustedError):
    """The same of a device's limit: it is device memory that ran out, and not the host's."""


class LeaseEndedError(RuntimeError):
    """The lease was released, or its `with` block was left: its array must not be used any more."""


class LiveAliasError(RuntimeError):
    """Something still sees the array of a lease that was to be released or frozen; the lease stays valid."""


class ForkedPoolError(RuntimeError):
    """A pool was used in a process other than the one that made it.

    A forked child shares the parent's buffers page by page, but neither its locks nor its finalizers.
    """
