"""What an attempt has reserved in its worker, or why it hasn't."""

from collections.abc import Callable

from scheduler.host.reservations import Denial


class RefusedError(Exception):
    """The reservation found less memory than the dispatcher had believed."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.reason)
        self.denial = denial


class Holding:
    """The bytes that an attempt holds; the device's can be given back before the host's."""

    def __init__(self, give_back_device: Callable[[], None]) -> None:
        self._give_back_device = give_back_device

    def release_device(self) -> None:
        """The attempt has left the device: what was reserved there is free."""
        self._give_back_device()
