"""Stand-ins for what isn't on this machine: a driver that pins pages, and streams of work."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

DEVICE = 1


class Stream:
    """Work that is submitted now and done when the test says so."""

    def __init__(self) -> None:
        self.submitted = 0
        self.done = 0

    def submit(self) -> None:
        self.submitted += 1

    def finish(self) -> None:
        self.done = self.submitted


class PinningBackend:
    """The part of a CUDA backend that pinned pools use; refuses what the driver would refuse."""

    memory_type = "double"

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.pinned: dict[int, int] = {}
        self.capacity = capacity
        self.stream = Stream()
        self.pins = 0
        self.current = 0  # as CUDA begins

    @contextmanager
    def entered(self, device: int) -> Iterator[None]:
        before, self.current = self.current, device
        yield
        self.current = before

    def validate_gpu_id(self, gpu_id: int) -> int:
        return gpu_id

    def pin(self, address: int, nbytes: int) -> None:
        assert self.current == DEVICE, "a context is made on a device that nobody asked for"
        if sum(self.pinned.values()) + nbytes > self.capacity:
            raise MemoryError(f"no {nbytes} bytes to pin")
        pages = range(address // 4096, (address + nbytes - 1) // 4096 + 1)
        for other, size in self.pinned.items():
            assert pages[-1] < other // 4096 or pages[0] > (other + size - 1) // 4096, (
                "a page is pinned twice"
            )
        self.pinned[address] = nbytes
        self.pins += 1

    def unpin(self, address: int) -> None:
        assert self.current == DEVICE
        del self.pinned[address]

    def current_stream(self, _: int) -> Stream:
        return self.stream

    def work_mark(self, streams: Sequence[Stream], _: int) -> Callable[[], bool]:
        marks = [(stream, stream.submitted) for stream in streams]
        return lambda: all(stream.done >= submitted for stream, submitted in marks)

    def synchronize(self, _: int) -> None:
        self.stream.finish()

    def is_oom(self, error: BaseException) -> bool:
        return type(error) is MemoryError

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"pinned pools should not need Backend.{name}")
