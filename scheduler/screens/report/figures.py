"""The report's figures: who ran what when, each device's memory, and peaks against what was reserved."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bokeh.models import HoverTool, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from memcore.info import bytes_text
from scheduler.screens.report.records import AttemptRow, DeviceRow, MemoryRow, RunRows

WIDTH = 1000
MIB = 1 << 20
LAG_S = 0.1
# Colours that stay apart for colour-blind readers (Okabe and Ito, "Color universal design", 2008).
OUTCOME_COLOURS = {
    "done": "#009e73",
    "out_of_memory": "#d55e00",
    "failed": "#cc79a7",
    "timed_out": "#e69f00",
    "worker_died": "#000000",
    "driver_died": "#666666",
    "refused": "#999999",
    "running": "#56b4e9",
}
MEMORY_COLOURS = {"ours": "#0072b2", "idle": "#9ecae1", "others": "#e69f00"}


def timeline(run: RunRows) -> Any:
    """A bar for each attempt on the device and slot where it ran."""
    placed = place_in_slots(run)
    lanes = sorted({lane for _, lane in placed}, key=lambda lane: (_order(run, lane[0]), lane[1]))
    names = {lane: f"{run.device(lane[0]).name} {lane[1] + 1}" for lane in lanes}
    plot = _figure("Where and when", [names[lane] for lane in reversed(lanes)], 120 + 26 * len(lanes))
    plot.x_range = _all_times(run)
    for outcome, colour in OUTCOME_COLOURS.items():
        rows = [(attempt, lane) for attempt, lane in placed if attempt.outcome == outcome]
        if not rows:
            continue
        ends = [run.wall_s if attempt.end_s is None else attempt.end_s for attempt, _ in rows]
        plot.hbar(
            y="lane",
            left="start",
            right="end",
            height=0.8,
            color=colour,
            line_color="white",
            legend_label=outcome.replace("_", " "),
            source={
                "lane": [names[lane] for _, lane in rows],
                "start": [attempt.start_s for attempt, _ in rows],
                "end": ends,
                "seconds": [end - attempt.start_s for (attempt, _), end in zip(rows, ends, strict=True)],
                "job": [attempt.job for attempt, _ in rows],
                "number": [attempt.number for attempt, _ in rows],
                "plan": [attempt.plan for attempt, _ in rows],
                "reserved": [bytes_text(attempt.reserved_bytes) for attempt, _ in rows],
            },
        )
    shown = [
        ("job", "@job, attempt @number"),
        ("plan", "@plan"),
        ("seconds", "@seconds{0.0}"),
        ("reserved", "@reserved"),
    ]
    plot.add_tools(HoverTool(tooltips=shown))
    _finish(plot)
    return plot


def memory(run: RunRows, device: DeviceRow) -> Any | None:
    """A device's memory over time: ours, idle, others', reserved and the limit; None without two readings."""
    rows = [row for row in run.memory if row.device == device.uuid and row.used_bytes is not None]
    if len(rows) < 2:
        return None
    virtual = ", virtual" if device.virtual else ""
    plot = _figure(f"Memory of {device.name} ({bytes_text(device.total_bytes)}{virtual})", None, 270)
    plot.x_range = _all_times(run)
    plot.yaxis.axis_label = "MiB"
    parts = [_parts(row) for row in rows]
    plot.varea_stack(
        ["others", "ours", "idle"],
        x="at",
        color=[MEMORY_COLOURS[name] for name in ("others", "ours", "idle")],
        legend_label=["other programs", "ours, in use", "ours, idle"],
        source={
            "at": [row.at_s for row in rows],
            "others": [others / MIB for others, _, _ in parts],
            "ours": [ours / MIB for _, ours, _ in parts],
            "idle": [idle / MIB for _, _, idle in parts],
        },
    )
    times, reserved = [row.at_s for row in rows], [row.reserved_bytes / MIB for row in rows]
    plot.step(times, reserved, mode="after", color="black", line_dash="dashed", legend_label="reserved")
    highest = max(*reserved, *(sum(each) / MIB for each in parts))
    total = device.total_bytes / MIB
    if highest > total / 3:
        plot.line(
            [times[0], times[-1]], [total, total], color="#d55e00", line_width=2, legend_label="all there is"
        )
        highest = max(highest, total)
    plot.y_range = Range1d(start=0, end=max(highest, 1) * 1.1)
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    _finish(plot)
    return plot


def peaks(run: RunRows) -> Any | None:
    """Measured peaks against what was reserved; None if nothing was measured."""
    rows = [attempt for attempt in run.attempts if attempt.peak_bytes]
    if not rows:
        return None
    plot = _figure("Reserved and measured peak", None, 320)
    plot.xaxis.axis_label, plot.yaxis.axis_label = "reserved, MiB", "measured peak, MiB"
    plot.scatter(
        "reserved",
        "peak",
        size=8,
        alpha=0.6,
        color="#0072b2",
        source={
            "reserved": [attempt.reserved_bytes / MIB for attempt in rows],
            "peak": [(attempt.peak_bytes or 0) / MIB for attempt in rows],
            "job": [attempt.job for attempt in rows],
            "plan": [attempt.plan for attempt in rows],
        },
    )
    end = max(max(attempt.reserved_bytes, attempt.peak_bytes or 0) for attempt in rows) / MIB * 1.1
    plot.line(
        [0, end], [0, end], color="#d55e00", line_dash="dashed", legend_label="more than reserved above"
    )
    plot.x_range, plot.y_range = Range1d(start=0, end=end), Range1d(start=0, end=end)
    plot.add_tools(
        HoverTool(
            tooltips=[
                ("job", "@job"),
                ("plan", "@plan"),
                ("reserved", "@reserved{0,0}"),
                ("peak", "@peak{0,0}"),
            ]
        )
    )
    _finish(plot)
    return plot


def place_in_slots(run: RunRows) -> list[tuple[AttemptRow, tuple[str, int]]]:
    """Each attempt, as long as it was at work, with its device and the first lane there that is free then."""
    free_at: dict[str, list[float]] = {}
    placed = []
    for attempt, (start_s, end_s) in sorted(
        ((attempt, attempt.work(run.wall_s)) for attempt in run.attempts), key=lambda pair: pair[1]
    ):
        lanes = free_at.setdefault(attempt.device, [])
        # The driver hears of ends at its own pace: what seems to overlap a little didn't.
        fits = (index for index, at in enumerate(lanes) if at <= start_s or at <= min(start_s + LAG_S, end_s))
        lane = next(fits, len(lanes))
        if lane == len(lanes):
            lanes.append(0.0)
        placed.append((replace(attempt, start_s=max(start_s, lanes[lane])), (attempt.device, lane)))
        lanes[lane] = end_s
    return placed


def _parts(row: MemoryRow) -> tuple[int, int, int]:
    """(others', ours in use, ours idle) bytes, which add up to what is used."""
    used = row.used_bytes or 0
    others = min(row.external_bytes, used)
    idle = min(row.idle_bytes, used - others)
    return others, used - others - idle, idle


def _order(run: RunRows, uuid: str) -> int:
    return [device.uuid for device in run.devices].index(uuid)


def _all_times(run: RunRows) -> Range1d:
    return Range1d(start=0, end=max(run.wall_s, 0.1) * 1.01)


def _figure(title: str, lanes: Sequence[str] | None, height: int) -> Any:
    lane_range: dict[str, Any] = {} if lanes is None else {"y_range": list(lanes)}
    plot = figure(
        title=title,
        width=WIDTH,
        height=height,
        tools="xpan,xwheel_zoom,box_zoom,reset,save",
        toolbar_location="above",
        sizing_mode="scale_width",
        # The same frame for every figure, so that times stand below each other.
        min_border_left=90,
        min_border_right=20,
        **lane_range,
    )
    plot.xaxis.axis_label = "seconds"
    plot.toolbar.logo = None
    return plot


def _finish(plot: Any) -> None:
    if plot.legend:
        plot.legend[0].orientation = "horizontal"
        plot.add_layout(plot.legend[0], "below")
