"""What a check of a GPU found, as JSON for programs and Markdown for people."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MOST_FAILURES = 50


def result_paths(folder: Path, device: str) -> tuple[Path, Path]:
    """gpu-<device>.json and .md."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return folder / f"gpu-{slug}.json", folder / f"gpu-{slug}.md"


def write_results(results: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Put both files in their place, each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = result_paths(folder, results["machine"]["device"])
    for path, text in zip(paths, (json.dumps(results, indent=1) + "\n", markdown(results)), strict=True):
        partial = path.with_name(f".{path.name}.part")
        partial.write_text(text)
        os.replace(partial, path)
    return paths


def read_tests(path: Path) -> dict[str, Any]:
    """What the plugin `gpu_pytest` has written: counts, failures, and why tests were skipped."""
    lines = path.read_text().splitlines() if path.exists() else []
    ends = [json.loads(line) for line in lines]
    collected = [int(end["seconds"]) for end in ends if end["outcome"] == "collected"]
    last = {end["test"]: end for end in ends if end["outcome"] != "collected"}
    counts = Counter(end["outcome"] for end in last.values())
    skipped = Counter(end["reason"] for end in last.values() if end["outcome"] == "skipped")
    failures = [
        {"test": end["test"], "reason": end["reason"]} for end in last.values() if end["outcome"] == "failed"
    ]
    return {
        "collected": collected[-1] if collected else 0,
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "skipped_because": dict(skipped.most_common()),
        "failures": failures[:MOST_FAILURES],
        "slowest": sorted(
            ((end["test"], round(end["seconds"], 1)) for end in last.values()), key=lambda each: -each[1]
        )[:10],
    }


def markdown(results: Mapping[str, Any]) -> str:
    """One page: the machine, what is missing, the tests, and a table for each benchmark."""
    machine = results["machine"]
    lines = [f"# Stackyard on {machine['device']}", ""]
    lines += [f"- {name}: {_told(value)}" for name, value in machine.items()]
    lines += [f"- command: `{results['command']}`, {results['date']}, {results['state']}", ""]
    if results["missing"]:
        lines += [
            "Not here, so what needs it did not run:",
            "",
            *(f"- {each}" for each in results["missing"]),
            "",
        ]
    lines += _tests(results.get("tests"))
    for name, piece in results["benchmarks"].items():
        lines += ["", f"## {name}", "", *_piece(piece)]
    return "\n".join(lines) + "\n"


def _tests(tests: Mapping[str, Any] | None) -> list[str]:
    if tests is None:
        return ["## Tests", "", "Not run."]
    done = tests["passed"] + tests["failed"] + tests["skipped"]
    lines = [
        "## Tests",
        "",
        f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped",
    ]
    lines[-1] += f" in {tests['seconds']:.0f} s."
    lines += [f"- {folder}: {end}" for folder, end in tests["folders"].items()]
    if done < tests["collected"]:
        lines += [f"{tests['collected'] - done} of {tests['collected']} were not reached."]
    lines += [f"- skipped, {count} times: {reason}" for reason, count in tests["skipped_because"].items()]
    for failure in tests["failures"]:
        lines += [f"- failed: `{failure['test']}`", "", *_quoted(failure["reason"]), ""]
    return lines


def _piece(piece: Mapping[str, Any]) -> list[str]:
    if piece["state"] != "done":
        return [f"{piece['state']}: {piece['reason']}"]
    lines = [piece["measures"], ""] if piece.get("measures") else []
    rows = piece["rows"]
    if not rows:
        return [*lines, "nothing was measured"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_told(row.get(column, '')) for column in columns)} |" for row in rows]
    return [*lines, *(f"\n{note}" for note in piece.get("notes", ()))]


def _quoted(text: str) -> Iterable[str]:
    return ("    " + line for line in text.splitlines()[-12:])


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
