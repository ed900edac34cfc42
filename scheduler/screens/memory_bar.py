"""A device's memory as one bar: reserved, idle, taken by other programs, free."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

from scheduler.execution.status import DeviceStatus

PARTS = ("reserved", "idle", "others", "free")
_GLYPHS = {"reserved": "█", "idle": "▒", "others": "▓", "free": "·"}
_ASCII = {"reserved": "#", "idle": "o", "others": "x", "free": "."}
_STYLES = {"reserved": "cyan", "idle": "blue", "others": "magenta", "free": "bright_black"}


def memory_parts(device: DeviceStatus) -> tuple[int, int, int, int]:
    """Bytes reserved by us, idle, taken by other programs, and free; they add up to the total.

    What is reserved comes first where the figures, which are read one after the other, exceed the total.
    A device whose probe has no answer counts as taken: unknown isn't free.
    """
    left = device.total_bytes
    reserved = min(device.reserved_bytes, left)
    left -= reserved
    others = left if device.free_bytes is None else min(device.external_bytes, left)
    left -= others
    idle = min(device.idle_bytes, left)
    return reserved, idle, others, left - idle


def shares(parts: Sequence[int], width: int) -> list[int]:
    """Cells of a bar of `width` for each part, by largest remainder; they add up to `width`."""
    total = sum(parts)
    if not total:
        return [0] * (len(parts) - 1) + [width]
    cells = [part * width // total for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda index: -(parts[index] * width % total))
    for index in by_remainder[: width - sum(cells)]:
        cells[index] += 1
    return cells


class MemoryBar:
    """A Rich renderable of one device's memory, as wide as its cell in a table, 40 cells at most."""

    def __init__(self, device: DeviceStatus) -> None:
        self.device = device

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = _ASCII if options.ascii_only else _GLYPHS
        cells = shares(memory_parts(self.device), min(options.max_width, 40))
        for name, width in zip(PARTS, cells, strict=True):
            yield Segment(glyphs[name] * width, Style.parse(_STYLES[name]))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(8, min(40, options.max_width))


def legend(*, ascii_only: bool) -> str:
    """What the marks of a bar mean."""
    glyphs = _ASCII if ascii_only else _GLYPHS
    return "  ".join(f"{glyphs[name]} {name}" for name in PARTS)
