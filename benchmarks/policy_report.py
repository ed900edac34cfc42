"""The table and the picture of the policy benchmark."""

import os
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy

COLOURS = {
    "ours": "#0b7285", "client.map": "#adb5bd", "GPU: 1": "#868e96", "NVML-greedy": "#f08c00", "ledger "
    "only": "#5f3dc4"
}  # fmt: skip
LEFT, BAR, GAP, SCALE = 190, 11, 10, 150


def machine() -> dict[str, Any]:
    """The machine in figures, without its name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def write_report(found: dict[str, Any], folder: Path) -> None:
    """Write policy.md and policy.svg."""
    (folder / "policy.md").write_text("\n".join(_lines(found)) + "\n")
    (folder / "policy.svg").write_text(_picture(found["mixes"]))


def _lines(found: dict[str, Any]) -> list[str]:
    about = found["machine"]
    quick = " (--quick: not the figures that the targets speak of)" if found["quick"] else ""
    lines = [
        "# Scheduling policy, simulated",
        "",
        f"`python benchmarks/policy.py`{quick}; {found['jobs']} jobs x {found['seeds']} seeds for each mix.",
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}, "
        f"CPython {about['python']}, NumPy {about['numpy']}, SciPy {about['scipy']}.",
        "",
        "Makespan against the lower bound (memory area, slots, longest job; strangers left out), and "
        "out-of-memory",
        "attempts per 100 jobs; means over the seeds. A failed attempt costs its own time and 2 s. Ours "
        "starts with",
        "nothing measured and may use the CPUs, 12 times slower; the simple schedulers know the declared "
        "footprints and",
        "keep GPU jobs on GPUs.",
        "",
    ]
    rows = found["mixes"]
    who = list(rows[0]["runs"])
    lines += ["| mix | footprints | " + " | ".join(who) + " |", "|---|---|" + "---|" * len(who)]
    for (mix, scenario), group in _grouped(rows).items():
        cells = [
            f"{_mean(group, name, 'ratio'):.2f} / {_mean(group, name, 'oom_per_100'):.1f}" for name in who
        ]
        lines.append(f"| {mix} | {scenario} | " + " | ".join(cells) + " |")
    lines += ["", "![makespan against the bound](policy.svg)", "", "## What a failed attempt costs", ""]
    sweep = found["oom_cost"]
    names = list(sweep[0]["baselines"])
    lines += [
        "Makespan in s of the mixed mix with hogs, by the cost of a failed attempt beyond its own time.",
        "",
    ]
    lines += ["| cost, s | ours | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for row in sweep:
        joined = " | ".join(f"{row['baselines'][name]:.0f}" for name in names)
        lines.append(f"| {row['oom_cost_s']:g} | {row['ours']:.0f} | {joined} |")
    speed, placed, small = found["events"], found["placements"], found["small_cases"]
    lines += [
        "",
        "## What a decision costs",
        "",
        "Processor time of one thread. An event is the end of an attempt (with the start that follows), an "
        "arrival or a",
        "snapshot, one of each in turn, at 16 devices and 10,000 queued jobs.",
        "",
        f"- {speed['events_per_s']:.0f} events/s ({speed['events_per_s_without_snapshots']:.0f} without "
        "snapshots); "
        f"decisions p50 {speed['p50_ms']:.3f} ms, p99 {speed['p99_ms']:.3f} ms, worst "
        f"{speed['worst_ms']:.2f} ms",
        f"- {placed['devices']} devices, {placed['jobs']} jobs: {placed['placements_per_s']:.0f} "
        "placements/s, "
        f"the simulated cluster included ({placed['processor_s']:.1f} s)",
        "",
        "| queued | us a decision |",
        "|---|---|",
        *(f"| {point['queued']:,} | {point['us']:.1f} |" for point in found["queue_curve"]),
        "",
        "## Small cases and estimates",
        "",
        f"- {small['cases']} cases of 6 jobs on 2 GPUs against the exact optimum: mean {small['mean']:.3f}, "
        f"worst {small['worst']:.2f}, optimal in {small['optimal_share']:.0%}",
        f"- estimates of {found['estimates']['jobs']} jobs of the mixed mix: "
        f"{found['estimates']['covered']:.2%} of "
        f"peaks within, median waste {found['estimates']['median_waste']:.1%}",
        "",
        "## Targets",
        "",
        "| | target | measured |",
        "|---|---|---|",
    ]
    for target in found["targets"]:
        sign = ">=" if target["at_least"] else "<="
        verdict = "met" if target["met"] else "**missed**"
        lines.append(f"| {verdict} | {target['name']} {sign} {target['limit']:g} | {target['value']:.4g} |")
    met = sum(target["met"] for target in found["targets"])
    lines += ["", f"{met} of {len(found['targets'])} targets met."]
    return lines


def _grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mix"], row["scenario"]), []).append(row)
    return groups


def _mean(group: list[dict[str, Any]], name: str, figure: str) -> float:
    return float(statistics.mean(row["runs"][name][figure] for row in group))


def _picture(rows: list[dict[str, Any]]) -> str:
    """Bars of makespan over bound; the line is the bound, which nothing can pass."""
    groups = _grouped(rows)
    parts: list[str] = []
    top = 30
    for (mix, scenario), group in groups.items():
        parts.append(f'<text x="8" y="{top + 32}">{mix}, {scenario}</text>')
        for name, colour in COLOURS.items():
            ratio = _mean(group, name, "ratio")
            width = min(ratio, 5.0) * SCALE
            parts.append(
                f'<rect x="{LEFT}" y="{top}" width="{width:.0f}" height="{BAR - 1}" fill="{colour}"/>'
            )
            place = f'x="{LEFT + width + 5:.0f}" y="{top + BAR - 2}"'
            parts.append(f'<text {place} class="small">{name} {ratio:.2f}</text>')
            top += BAR
        top += GAP
    line = LEFT + SCALE
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + 5 * SCALE + 130}" height="{top + 10}" '
        'font-family="sans-serif" font-size="13">'
        "<style>.small{font-size:9px;fill:#495057}</style>"
        '<rect width="100%" height="100%" fill="white"/>'
        '<text x="8" y="18">Makespan / lower bound (bars end at 5)</text>'
    )
    bound = f'<line x1="{line}" y1="26" x2="{line}" y2="{top}" stroke="#c92a2a"/>'
    return head + "".join(parts) + bound + "</svg>\n"
