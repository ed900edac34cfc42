"""The reservation table under kill -9 from eight processes, and what probing costs.

    python benchmarks/reservations.py [--quick] [--out benchmarks/results]

Random reservations, allocations and releases of virtual device memory; half of the processes are killed in
the middle. Then nine devices (eight GPUs of a fake NVML, and the host) are probed as in a run. Writes
reservations.json and reservations.md with the machine they came from. A target that is missed is shown as
missed.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

# ruff: noqa: E402  a file beside this one is named like the package `pools`
ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import pynvml

from benchmarks.policy_report import machine
from scheduler.execution.driver import SNAPSHOT_S
from scheduler.host.probes import discover
from scheduler.host.reservations import Reservations
from tests.scheduler.host import fake_nvml

TEST = "tests/scheduler/host/test_reservations.py"


def main() -> int:
    """Measure, write the results, and say how many targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer events")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    killed = _kill_test(8_000 if options.quick else 100_000)
    probing = _probing(50 if options.quick else 500)
    targets = [
        ("events from 8 processes, 4 killed", killed["events"], ">=", 4_000 if options.quick else 100_000),
        ("overcommitted bytes", killed["overcommitted_bytes"], "<=", 0),
        ("rows of a dead process are back, s", killed["dead_rows_back_s"], "<=", 2.0),
        ("probing 9 devices as often as a run does, % of a core", probing["percent_of_a_core"], "<=", 1.0),
        ("age of a snapshot at most, s: the pause and a round", SNAPSHOT_S + probing["wall_s"], "<=", 0.2),
    ]
    rows = [(name, value, sign, limit, _met(value, sign, limit)) for name, value, sign, limit in targets]
    found = {
        "machine": machine(),
        "quick": options.quick,
        "killed": killed,
        "probing": probing,
        "targets": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "reservations.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "reservations.md").write_text("\n".join(_lines(found)) + "\n")
    for name, value, sign, limit, met in rows:
        print(f"{'met   ' if met else 'MISSED'} {name}: {value:.4g} ({sign} {limit:g})")
    kept = sum(row[-1] for row in rows)
    print(f"{kept} of {len(rows)} targets met")
    return 0 if kept == len(rows) else 1


def _met(value: float, sign: str, limit: float) -> bool:
    return value >= limit if sign == ">=" else value <= limit


def _kill_test(events: int) -> dict[str, Any]:
    """The test of the test suite with another number of events; it fails at the first overcommitted byte."""
    environment = {**os.environ, "STACKYARD_RESERVATION_EVENTS": str(events)}
    command = [sys.executable, "-m", "pytest", TEST, "-q", "-s", "-k", "eight", "-p", "no:cacheprovider"]
    began = perf_counter()
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(ran.stdout)
    figures = next(json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{"))
    return {**figures, "overcommitted_bytes": 0, "wall_s": round(perf_counter() - began, 1)}


def _probing(rounds: int) -> dict[str, float]:
    """A run's probing thread: every device's memory, and the table's rows for it."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        library = fake_nvml.build(folder)
        fake_nvml.new_state(folder / "state", count=8)
        os.environ["FAKE_NVML_STATE"] = str(folder / "state")
        pynvml.nvmlLib = ctypes.CDLL(str(library))
        found = discover()
        with Reservations(folder / "own" / "table.sqlite", run="a") as table:
            for device in found.devices:
                table.reserve("job", {device.uuid: 100}, read=found.read)
                table.measure(device.uuid, 1000, 10)
            found.snapshots(table)
            used, began = process_time(), perf_counter()
            for _ in range(rounds):
                found.snapshots(table)
            used, wall = (process_time() - used) / rounds, (perf_counter() - began) / rounds
        found.close()
    return {
        "devices": len(found.devices),
        "processor_s": used,
        "wall_s": wall,
        "percent_of_a_core": 100 * used / (SNAPSHOT_S + wall),
    }


def _lines(found: dict[str, Any]) -> list[str]:
    about = found["machine"]
    return [
        "# Reservations and probing",
        "",
        f"`python benchmarks/reservations.py`{' --quick' if found['quick'] else ''}; {about['cpu']}, "
        f"{about['cores']} cores, {about['system']}, CPython {about['python']}.",
        "",
        "| | target | measured |",
        "|---|---|---|",
        *(
            f"| {'met' if met else '**missed**'} | {name} {sign} {limit:g} | {value:.4g} |"
            for name, value, sign, limit, met in found["targets"]
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
