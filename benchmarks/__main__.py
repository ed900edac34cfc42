"""Every benchmark, one after another, each in a process of its own: `python -m benchmarks`.

    python -m benchmarks [--quick | --full] [--only NAME ...] [--out FOLDER] [--readme README.md] [--tables]

Each writes its own results into the folder (benchmarks/results; a temporary one with --quick). At the end the
common table is written beside them, and its short form into the README where one is named. A benchmark that
can't run is a row with the reason. Ends with 1 if one of them could not run; a missed target is shown, and no
error.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.measure import machine
from benchmarks.report import ORDER, fill, write, write_again
from benchmarks.rows import Row

FOLDER = Path(__file__).resolve().parent
HAS_FULL = ("execution", "end_to_end", "scaling")
# A missed target makes some of them end with 1.
MEASURED = (0, 1)


def main() -> int:
    """Run them and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and few, to see that all of them run")
    parser.add_argument("--full", action="store_true", help="more rounds, more jobs, more stacks: hours")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER, help="not the others")
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--readme", type=Path, help="its short table is filled in")
    parser.add_argument("--tables", action="store_true", help="run nothing: write the tables anew")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.out is not None:
            folder = options.out.resolve()
        elif options.quick:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stackyard-bench-")))
        else:
            folder = FOLDER / "results"
        return _run(options, folder)


def _run(options: argparse.Namespace, folder: Path) -> int:
    if options.tables:
        write_again(folder)
        if options.readme is not None:
            fill(options.readme, folder)
        return 0
    size = "quick" if options.quick else "full" if options.full else ""
    command = {"": "make bench", "quick": "make bench-quick", "full": "make bench-full"}[size]
    about = machine("stackyard", "numpy", "scipy", "dask", "distributed", "torch", "jax", "arraybridge")
    about |= {"command": command, "size": size or "default"}
    absent: list[Row] = []
    began = perf_counter()
    for name in options.only:
        problem = _one(name, size, folder)
        if problem:
            absent.append(Row(name, f"{name}.py", "all of its peers", note=f"could not run: {problem}"))
    about["wall_s"] = round(perf_counter() - began)
    rows = write(folder, about, absent)
    if options.readme is not None:
        fill(options.readme, folder)
    missed = [row for row in rows if row.met is False]
    print(f"{command}: {about['wall_s']} s, {len(rows)} rows in {folder / 'README.md'}, {len(missed)} missed")
    for row in missed:
        print(f"  missed: {row.what}, beside {row.peer}: {row.ratio:.3g}, target {row.target}")
    return 1 if absent else 0


def _one(name: str, size: str, folder: Path) -> str:
    """Run one benchmark; returns why it could not run, or ""."""
    arguments = [sys.executable, str(FOLDER / f"{name}.py"), "--out", str(folder)]
    if size == "quick" or (size == "full" and name in HAS_FULL):
        arguments.append(f"--{size}")
    began = perf_counter()
    ran = subprocess.run(arguments, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    print(f"{name}: {perf_counter() - began:.0f} s", flush=True)
    if ran.returncode in MEASURED and (folder / f"{name}.json").exists() and "Traceback" not in ran.stderr:
        return ""
    last = (ran.stderr.strip() or ran.stdout.strip() or f"exit status {ran.returncode}").splitlines()[-1]
    print(f"{name} could not run:\n{ran.stderr[-4000:]}", file=sys.stderr)
    return last


if __name__ == "__main__":
    raise SystemExit(main())
