"""Runs everything that needs a GPU, and writes what came of it: `make gpu-check`, or

    python -m benchmarks.gpu_check [--minutes 9] [--only tests|benchmarks] [--out benchmarks/results]

Uses the Python that runs it and the libraries that it has: no virtual environment, no network. What is
missing is named with its version, and everything else runs: `pytest -m gpu` first, for a bounded time, then
each benchmark of `benchmarks/gpu.py` in a process of its own, so that a fault in one spoils no other. The
results are in place after each part. Where there is no GPU it says so and does nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import gpu, gpu_machine
from benchmarks.gpu_pytest import LACKING_VARIABLE, RESULTS_VARIABLE
from benchmarks.gpu_results import read_tests, result_paths, write_results

ROOT = Path(__file__).resolve().parent.parent
TESTS_SHARE = 0.65
TEST_LIMIT_S = 180
PIECE_LIMIT_S = 150.0
GRACE_S = 10.0
FINISHED, NOT_STARTED = "finished", "could not be started"
# pytest's exit codes; 5 is that nothing was collected.
PYTEST_ENDS = {0: FINISHED, 1: FINISHED, 2: "interrupted", 3: "broken", 4: NOT_STARTED, 5: NOT_STARTED}
# Without pytest-timeout its setting in pyproject.toml is an unknown one, which pytest refuses here.
PLAIN_SETTINGS = """[pytest]
addopts = -ra --strict-markers --import-mode=importlib
markers =
    gpu: needs a CUDA device
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the GPU, if there is one; 1 if a test or a benchmark failed or was cut short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything, 9 by default")
    parser.add_argument(
        "--only", choices=("tests", "benchmarks"), help="one half, which keeps the other's last results"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    gpus, why_none = gpu_machine.find_gpus()
    if not gpus:
        print(f"gpu-check: no GPU is here ({why_none}): nothing was run")
        return 0
    with tempfile.TemporaryDirectory(prefix="stackyard-gpu-check-") as folder:
        check = Check(gpus, Path(folder), options.out, deadline)
        return check.run(60 * options.minutes, options.only)


class Check:
    """One check of this machine's GPUs; `folder` is for what is in between, `out` for the results."""

    def __init__(self, gpus: Sequence[gpu_machine.Gpu], folder: Path, out: Path, deadline: float) -> None:
        self._folder = folder
        self._out = out
        self._deadline = deadline
        machine = gpu_machine.machine(gpus)
        lacking = gpu_machine.missing_dependencies()
        frameworks, peers = gpu_machine.missing_libraries(machine.get("cuda_driver", ""))
        self.results: dict[str, Any] = {
            "machine": machine,
            "command": shlex.join(["python", "-m", "benchmarks.gpu_check", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "state": "running",
            "missing": [*map(str, lacking), *frameworks, *(f"{name} (to compare with)" for name in peers)],
            "benchmarks": {},
        }
        self._lacking = lacking
        requirements = [*(each.requirement for each in lacking), *frameworks, *peers]
        if requirements:
            self.results["to_bring_them"] = gpu_machine.carry_command(requirements)
        self._has_pytest = not any(each.requirement.startswith("pytest>") for each in lacking)
        self._has_timeout = not any(each.requirement.startswith("pytest-timeout") for each in lacking)
        self._environment = child_environment(folder)

    def run(self, total_s: float, only: str | None = None) -> int:
        """Run all that can run, or one half of it; the exit status."""
        for lacking in self.results["missing"]:
            print(f"gpu-check: missing: {lacking}")
        if "to_bring_them" in self.results:
            print(f"gpu-check: {self.results['to_bring_them']}")
        if only is not None:
            self._keep("benchmarks" if only == "tests" else "tests")
        self._write()
        if only != "benchmarks":
            self._test(total_s if only == "tests" else TESTS_SHARE * total_s)
            self._write()
        for number, name in enumerate(gpu.PIECES if only != "tests" else ()):
            self.results["benchmarks"][name] = self._measure(name, len(gpu.PIECES) - number)
            self._write()
        problems = self._problems()
        self.results["state"] = "all that could run has passed" if not problems else "; ".join(problems)
        for path in self._write():
            print(f"gpu-check: {path}")
        print(f"gpu-check: {self.results['state']}")
        return 1 if problems else 0

    def _keep(self, half: str) -> None:
        """Take one half of the results from the file that is there for this device."""
        path, _ = result_paths(self._out, self.results["machine"]["device"])
        if path.exists():
            earlier = json.loads(path.read_text())
            self.results |= {half: earlier[half]} if half in earlier else {}

    def _write(self) -> tuple[Path, Path]:
        return write_results(self.results, self._out)

    def _test(self, limit_s: float) -> None:
        if not self._has_pytest:
            print("gpu-check: without pytest no test is run")
            return
        told = self._folder / "tests.jsonl"
        ends: dict[str, str] = {}
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "benchmarks.gpu_pytest"]
        command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", f"--rootdir={ROOT}"]
        if self._has_timeout:
            command += ["-o", f"timeout={TEST_LIMIT_S}"]
        else:
            settings = self._folder / "pytest.ini"
            settings.write_text(PLAIN_SETTINGS)
            command += ["-c", str(settings)]
        began = time.monotonic()
        # A folder at a time: one whose fixtures can't be imported would keep the others from running.
        for folder, files in marked_files().items():
            left_s = began + limit_s - time.monotonic()
            environment = {**self._environment, RESULTS_VARIABLE: str(told)}
            if self._lacking:
                environment[LACKING_VARIABLE] = "1"
            status = run_bounded([*command, *files], left_s, environment) if left_s > 0 else None
            ends[folder] = (
                "cut short by the time limit" if status is None else PYTEST_ENDS.get(status, f"{status}")
            )
            self.results["tests"] = {**read_tests(told), "seconds": time.monotonic() - began, "folders": ends}
            self._write()

    def _measure(self, name: str, left: int) -> dict[str, Any]:
        """Measure a piece, the first of so many that are left; it may take a little over its share."""
        left_s = self._deadline - time.monotonic() - GRACE_S
        limit_s, share_s = min(PIECE_LIMIT_S, left_s), left_s / left
        if limit_s < GRACE_S:
            return {"state": "not run", "reason": "the time was over"}
        print(f"gpu-check: measuring {name}", flush=True)
        told = self._folder / f"{name}.json"
        command = [sys.executable, "-m", "benchmarks.gpu", name, "--json", str(told)]
        status = run_bounded([*command, "--seconds", f"{0.7 * share_s:.0f}"], limit_s, self._environment)
        if told.exists():
            result: dict[str, Any] = json.loads(told.read_text())
            return result
        how = f"not within {limit_s:.0f} s" if status is None else f"exit status {status}"
        return {"state": "failed", "reason": f"the process gave no result: {how}"}

    def _problems(self) -> list[str]:
        tests = self.results.get("tests")
        found = []
        if tests and tests["failed"]:
            found.append(f"{tests['failed']} tests failed")
        if tests and not tests["passed"]:
            found.append("no test has passed")
        for folder, end in (tests or {"folders": {}})["folders"].items():
            # What its fixtures need may be what is missing, which is said already.
            if end != FINISHED and not (end == NOT_STARTED and self._lacking):
                found.append(f"{folder}: {end}")
        for name, piece in self.results["benchmarks"].items():
            if piece["state"] in ("failed", "not run"):
                found.append(f"{name}: {piece['reason']}")
        return found


def marked_files() -> dict[str, list[str]]:
    """The test files with cases for a GPU, by folder; to collect the others too would take its time."""
    found: dict[str, list[str]] = {"tests/gpu": []}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "mark.gpu" in path.read_text():
            found.setdefault(str(path.parent.relative_to(ROOT)), []).append(str(path.relative_to(ROOT)))
    # This one has the words in it, and nothing for a GPU.
    found.pop("tests/benchmarks", None)
    return found


def child_environment(folder: Path) -> dict[str, str]:
    """This process's environment, in which Stackyard is found here even where it isn't installed."""
    paths = [str(ROOT)]
    if not gpu_machine.installed(["stackyard"]):
        paths.append(str(_stand_in_distribution(folder)))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # Several libraries share the GPU: these two would take most of it at their first use.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }


def _stand_in_distribution(folder: Path) -> Path:
    # Runs write down their Stackyard's version, which is looked up among the installed distributions.
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    made = folder / "distribution" / f"{name}-{version}.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return made.parent


def run_bounded(command: Sequence[str], limit_s: float, environment: Mapping[str, str]) -> int | None:
    """Run a command in a process group of its own; its exit status, or None if the time was over first."""
    process = subprocess.Popen(command, cwd=ROOT, env=dict(environment), start_new_session=True)
    with _ended_with(process):
        try:
            return process.wait(max(0.0, limit_s))
        except subprocess.TimeoutExpired:
            return None


@contextmanager
def _ended_with(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        # Also what it has started and left: a process that goes on would hold memory of the GPU.
        for kind in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(process.pid, kind)
                process.wait(GRACE_S)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


if __name__ == "__main__":
    sys.exit(main())
