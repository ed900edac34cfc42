"""The page: what happened in words and tables, between the figures."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from bokeh.embed import components
from bokeh.resources import Resources

from memcore.info import bytes_text
from scheduler.screens.report import figures
from scheduler.screens.report.records import RunRows
from scheduler.screens.report.thumbnails import Pair
from scheduler.screens.words import count_text, duration_text

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1060px; margin: 2em auto;
padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; margin: .5em 0 } td, th { padding: .15em .9em .15em 0; text-align: left;
vertical-align: top } th { color: #666; font-weight: 500 } td.n, th.n { text-align: right }
td.reason { white-space: pre-wrap } .quiet { color: #666 } .bad { color: #b3261e } .note { color: #8a5a00 }
figure { display: inline-block; margin: 0 1em 1em 0 } figcaption { color: #666; font-size: .9em }
img { width: 320px; image-rendering: pixelated; background: #000 }
"""
LONGEST_WAITS = 10


def html_page(run: RunRows, run_dir: Path, pictures: Iterable[Pair]) -> str:
    """One page without any other file, and without the network."""
    plots = [figures.timeline(run)] if run.attempts else []
    plots += [plot for device in run.devices if (plot := figures.memory(run, device)) is not None]
    if (peaks := figures.peaks(run)) is not None:
        plots.append(peaks)
    script, divs = components(tuple(plots)) if plots else ("", ())
    title = f"Stackyard run {run_dir.name}"
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style>",
        Resources(mode="inline", components=["bokeh"]).render() if plots else "",
        "</head><body>",
        _head(run, run_dir, title),
        _devices(run),
        *divs,
        _failures(run),
        _waits(run),
        _decisions(run),
        _conversions(run),
        _pools(run),
        _pictures(pictures),
        _config(run),
        script,
        "</body></html>",
    ]
    return "\n".join(filter(None, parts))


def _head(run: RunRows, run_dir: Path, title: str) -> str:
    states = Counter(job.state for job in run.jobs)
    counts = ", ".join(f"{number:,} {state.replace('_', ' ')}" for state, number in states.most_common())
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.started_at))
    oom = sum(attempt.outcome == "out_of_memory" for attempt in run.attempts)
    facts = [
        f"{count_text(len(run.jobs), 'job')}: {counts or 'none'}",
        f"{escape(run.state)} after {duration_text(run.wall_s)}",
        f"{count_text(len(run.attempts), 'attempt')}, {oom} out of memory",
    ]
    where = f"{when} on {escape(run.host)}, Stackyard {escape(run.version)}<br>{escape(str(run_dir))}"
    return f"<h1>{escape(title)}</h1><p class=quiet>{where}</p><p>{'<br>'.join(facts)}</p>"


def _devices(run: RunRows) -> str:
    done = Counter(attempt.device for attempt in run.attempts if attempt.outcome == "done")
    busy_s: dict[str, float] = defaultdict(float)
    for attempt in run.attempts:
        start_s, end_s = attempt.work(run.wall_s)
        busy_s[attempt.device] += end_s - start_s
    rows = []
    for device in run.devices:
        most_s = max(run.wall_s, 1e-9) * max(device.slots, 1)
        busy = f"{100 * busy_s[device.uuid] / most_s:.0f} %"
        memory = bytes_text(device.total_bytes)
        rows.append([device.name, device.kind, memory, str(device.slots), f"{done[device.uuid]:,}", busy])
    text = _table(["device", "kind", "memory", "at once", "jobs done", "busy"], rows, numbers={2, 3, 4, 5})
    virtual = [device.name for device in run.devices if device.virtual]
    if virtual:
        names = escape(", ".join(virtual))
        text += (
            f"<p class=note>{names}: virtual, an account of bytes and no hardware. The CPU did the work.</p>"
        )
    return text


def _failures(run: RunRows) -> str:
    rows = [
        [job.job, job.state.replace("_", " "), job.reason]
        for job in run.jobs
        if job.state not in ("done", "waiting", "running")
    ]
    return f"<h2 class=bad>Failures</h2>{_table(['job', '', 'reason'], rows)}" if rows else ""


def _waits(run: RunRows) -> str:
    started: dict[str, float] = {}
    for attempt in run.attempts:
        started.setdefault(attempt.job, attempt.start_s)
    first: dict[str, str] = {}
    for decision in run.decisions:
        first.setdefault(decision.job, decision.reason)
    waits = sorted(
        ((started[job.job] - job.added_s, job.job) for job in run.jobs if job.job in started), reverse=True
    )
    rows = [[job, duration_text(waited), first.get(job, "")] for waited, job in waits[:LONGEST_WAITS]]
    return f"<h2>Longest waits</h2>{_table(['job', 'waited', 'and then'], rows, numbers={1})}" if rows else ""


def _decisions(run: RunRows) -> str:
    examples: dict[str, str] = {}
    for decision in run.decisions:
        examples.setdefault(decision.verdict, decision.reason)
    counts = Counter(decision.verdict for decision in run.decisions)
    rows = [
        [verdict.replace("_", " "), f"{number:,}", examples[verdict]]
        for verdict, number in counts.most_common()
    ]
    return f"<h2>Decisions</h2>{_table(['', 'times', 'for example'], rows, numbers={1})}" if rows else ""


def _conversions(run: RunRows) -> str:
    found = Counter((attempt.plan, attempt.conversions) for attempt in run.attempts)
    rows = [
        [plan, f"{number:,}", "\n".join(conversions) or "none"]
        for (plan, conversions), number in found.items()
    ]
    return (
        f"<h2>Plans and conversions</h2>{_table(['plan', 'attempts', 'converts'], rows, numbers={1})}"
        if rows
        else ""
    )


def _pools(run: RunRows) -> str:
    rows = [
        [
            run.device(uuid).name,
            name,
            f"{stats.hits + stats.misses:,}",
            f"{100 * stats.hit_rate:.0f} %",
            bytes_text(stats.bytes_peak),
            bytes_text(stats.bytes_trimmed),
            f"{stats.refused:,}",
        ]
        for (uuid, name), stats in run.pools().items()
    ]
    head = ["device", "pool", "requests", "reused", "most in use", "given back", "refused"]
    return f"<h2>Pools</h2>{_table(head, rows, numbers={2, 3, 4, 5, 6})}" if rows else ""


def _pictures(pairs: Iterable[Pair]) -> str:
    shown = []
    for pair in pairs:
        if pair.problem:
            shown.append(f"<p class=quiet>{escape(pair.job)}: {escape(pair.problem)}</p>")
            continue
        job = escape(pair.job)
        shown.append(
            f'<div><figure><img src="{pair.before}" alt="{job} before">'
            f"<figcaption>{job}, before</figcaption></figure>"
            f'<figure><img src="{pair.after}" alt="{job} after"><figcaption>after</figcaption></figure></div>'
        )
    return (
        f"<h2>Before and after</h2><p class=quiet>Brightest voxel along z.</p>{''.join(shown)}"
        if shown
        else ""
    )


def _config(run: RunRows) -> str:
    steps = [
        " ".join(
            [str(step.get("use")), *(str(step[key]) for key in ("with", "inputs", "arrays") if step.get(key))]
        )
        for step in run.config.get("steps", ())
    ]
    return f"<h2>Steps</h2><p>{'<br>'.join(map(escape, steps))}</p>" if steps else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[int] | None = None) -> str:
    def cell(tag: str, index: int, text: str) -> str:
        kind = ' class="n"' if index in (numbers or ()) else ' class="reason"' if tag == "td" else ""
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    lines = [("th", head), *(("td", row) for row in rows)]
    body = "".join(
        f"<tr>{''.join(cell(tag, index, text) for index, text in enumerate(row))}</tr>" for tag, row in lines
    )
    return f"<table>{body}</table>"
