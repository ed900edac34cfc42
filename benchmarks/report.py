"""The common table of all benchmarks, and the short one in the README."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, as_json, rows_of, targets_of

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
ORDER = ("execution", "end_to_end", "scaling", "memcore_conversion", "pools", "policy", "reservations")


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The results that are there, by benchmark, in the order of the table."""
    paths = {name: folder / f"{name}.json" for name in ORDER}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def all_rows(found: dict[str, dict[str, Any]]) -> list[Row]:
    """Every row of every benchmark."""
    return [row for name, results in found.items() for row in rows_of(name, results)]


def table(rows: Iterable[Row]) -> list[str]:
    """Lines of Markdown; a missed target is bold, a peer without figures has its reason."""
    lines = ["| what | ours | peer | its | ours / its (quartiles) | target |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row.what, row.ours, row.peer, row.theirs, ratio_text(row), _target_text(row))
        lines.append("| " + " | ".join(cell.replace("|", "/") or "–" for cell in cells) + " |")
    return lines


def ratio_text(row: Row) -> str:
    """The ratio with its quartiles, or why there is none."""
    if row.ratio is None:
        return row.note or "–"
    text = f"{row.ratio:.3g}"
    if row.low is not None and row.high is not None and row.low != row.high:
        text += f" ({row.low:.3g}–{row.high:.3g})"
    return text


def _target_text(row: Row) -> str:
    if not row.target:
        return "–"
    sign, _, limit = row.target.partition(" ")
    shown = f"{'≤' if sign == '<=' else '≥'} {float(limit):.3g}"
    if row.met is None:
        return f"{shown}: not measured"
    return f"{shown}: met" if row.met else f"**{shown}: missed**"


def machine_text(about: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}; "
        f"Python {about['python']}, {versions}; load {about['load_at_start']} at the start."
    )


def write(folder: Path, about: dict[str, Any], absent: Sequence[Row] = ()) -> list[Row]:
    """Write bench.json, README.md and bench.svg of a results folder; returns the table's rows."""
    found = load(folder)
    rows = [*all_rows(found), *absent]
    if about["size"] == "quick":
        # Start-up would be most of what they measure.
        rows = [replace(row, target="") for row in rows]
        targets, missed, told = (
            [],
            [],
            "Sizes too small for the targets: this only shows that all of it runs.",
        )
    else:
        targets = [(name, *each) for name, results in found.items() for each in targets_of(name, results)]
        missed = [f"{name}: {what}" for name, what, met in targets if not met]
        told = f"{len(targets) - len(missed)} of {len(targets)} targets are met"
        told += f"; missed: {'; '.join(missed)}." if missed else "."
    head = [
        "# Results",
        "",
        f"`{about['command']}`: {machine_text(about)}",
        "",
        "Contenders took turns in one run; a ratio is the median over the rounds, below 1 where ours is the "
        "quicker. Every row has a peer; what has none is in the files named after each benchmark. "
        "[What each measures](../README.md).",
        "",
        told,
        "",
        *table(rows),
        "",
        "![all ratios](bench.svg)",
        "",
        "![how it scales](scaling.svg)",
    ]
    (folder / "README.md").write_text("\n".join(head) + "\n")
    short = [row for row in rows if row.headline]
    text = "\n".join([*table(short), "", f"{told} {machine_text(about)}"])
    kept = {
        "machine": about,
        "targets": len(targets),
        "missed": missed,
        "absent": as_json(absent),
        "short": text,
    }
    (folder / "bench.json").write_text(json.dumps(kept, indent=1) + "\n")
    from benchmarks.plots import plot_ratios

    plot_ratios(rows, folder / "bench.svg")
    return rows


def write_again(folder: Path) -> list[Row]:
    """Write the tables anew from the results that are there."""
    kept = json.loads((folder / "bench.json").read_text())
    return write(folder, kept["machine"], [Row(**row) for row in kept["absent"]])


def fill(readme: Path, folder: Path) -> None:
    """Put the short table of the results into a README, between its two marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{readme} has no {BEGIN} … {END}")
    short = json.loads((folder / "bench.json").read_text())["short"]
    readme.write_text(f"{before}{BEGIN}\n{short}\n{END}{after}")
