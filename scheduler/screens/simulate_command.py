"""`stackyard simulate`: a workload on a described cluster, in virtual time."""

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scheduler.core.baselines import BASELINES
from scheduler.core.engine import Span, concurrency
from scheduler.core.model import Device, DeviceKind
from scheduler.core.policy import OnPressure, Policy
from scheduler.core.simulate import Simulation, simulate
from scheduler.core.trace import Trace
from scheduler.screens.consoles import output_console
from scheduler.screens.exits import errors_as_messages, print_json
from scheduler.screens.replay import JOURNAL, read_journal
from scheduler.screens.run_folder import find_run
from scheduler.screens.words import count_text, duration_text, printable
from scheduler.screens.workload import Mix, make_trace

SHADES = " ░▒▓█"
PICTURE_WIDTH = 64
PICTURE_DEVICES = 16


class TraceError(ValueError):
    """A file that holds neither a trace nor a mix."""


def simulate_command(
    path: Path,
    *,
    seed: int,
    jobs: int | None,
    hogs: bool,
    exact: bool,
    on_pressure: OnPressure,
    baselines: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Simulate the trace or the mix at `path` and print how it fares beside simple schedulers."""
    with errors_as_messages(debug=debug, unusable=(TraceError,)):
        trace = read_trace(path, seed=seed, jobs=jobs, hogs=hogs, exact=exact)
        found = simulate(
            trace,
            Policy(on_pressure=on_pressure),
            clock=time.perf_counter,
            baselines=BASELINES if baselines else (),
            keep_spans=True,
        )
    if as_json:
        print_json(found.to_json())
    else:
        output_console().print(draw_simulation(found))


def read_trace(path: Path, *, seed: int, jobs: int | None, hogs: bool, exact: bool) -> Trace:
    """A trace as it stands in a .json file, one drawn from the mix in a .yaml file, or a run that has been.

    Of a folder that holds runs the newest is taken.

    Raises
    ------
    TraceError
        It can't be read as any of these.
    """
    try:
        if path.suffix == ".sqlite" or path.is_dir():
            return read_journal(find_run(path) / JOURNAL if path.is_dir() else path)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return Trace.from_json(json.loads(text))
        record = yaml.safe_load(text)
        if not isinstance(record, dict):
            raise TraceError(f"{path} holds no mapping of keys; a mix is as those in configs/simulation")
        return make_trace(Mix.from_mapping(record), seed, exact=exact, hogs=hogs, jobs=jobs)
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        if isinstance(error, TraceError):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise TraceError(f"{path} is no trace (.json), no mix (.yaml) and no run: {reason}") from error


def draw_simulation(found: Simulation) -> RenderableType:
    """A table of makespans beside the bound, and a picture of each device's memory over time."""
    trace, outcome = found.trace, found.outcome
    what = f"{count_text(len(trace.jobs), 'job')} on {count_text(len(trace.devices), 'device')}"
    head = Text.assemble(
        (printable(trace.name), "bold"),
        f": {what}; no scheduler can need less than {duration_text(found.bound_s)};"
        f" {found.decisions_per_s:,.0f} placements/s",
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("scheduler")
    for name in ("makespan", "of the bound", "out of memory", "failed", "lost"):
        table.add_column(name, justify="right")
    for name, each in {"Stackyard": outcome, **found.baselines}.items():
        table.add_row(
            Text(name, style="bold" if each is outcome else ""),
            duration_text(each.makespan_s),
            f"{each.makespan_s / found.bound_s:.2f}" if found.bound_s else "–",
            f"{each.oom_attempts:,}",
            f"{each.failed:,}",
            f"{each.lost:,}",
        )
    return Group(head, table, Text(), *_picture(trace.devices, outcome.spans or (), outcome.makespan_s))


def _picture(devices: Sequence[Device], spans: Sequence[Span], end_s: float) -> list[RenderableType]:
    if not spans or end_s <= 0:
        return []
    levels = concurrency(list(spans))
    shown = [device for device in devices if device.kind is not DeviceKind.CPU] or list(devices)
    table = Table.grid(padding=(0, 2, 0, 0))
    for device in shown[:PICTURE_DEVICES]:
        shares = average_levels(levels.get(device.uuid, []), end_s, PICTURE_WIDTH)
        cells = "".join(_shade(level / max(device.total_bytes, 1)) for level in shares)
        table.add_row(Text(printable(device.name)), Text(f"│{cells}│"))
    more = f"; {len(shown) - PICTURE_DEVICES} more devices" if len(shown) > PICTURE_DEVICES else ""
    said = f"memory in use by jobs, from the start to {duration_text(end_s)}{more}"
    return [table, Text(said, style="dim")]


def average_levels(steps: Sequence[tuple[float, int]], end_s: float, cells: int) -> list[float]:
    """Averages over `cells` equal parts of the time to `end_s`; `steps` are (from this second, level)."""
    width = end_s / cells
    areas = [0.0] * cells
    for (start, level), (until, _) in pairwise((*steps, (end_s, 0))):
        first, last = min(int(start / width), cells - 1), min(int(until / width), cells - 1)
        for cell in range(first, last + 1):
            inside = min(until, (cell + 1) * width) - max(start, cell * width)
            areas[cell] += level * max(inside, 0.0)
    return [area / width for area in areas]


def _shade(share: float) -> str:
    return SHADES[min(len(SHADES) - 1, round(max(share, 0.0) * (len(SHADES) - 1)))]
