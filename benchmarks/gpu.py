"""What Stackyard costs on a GPU, beside what one would use instead: one piece for each run of this program.

    python -m benchmarks.gpu PIECE [--json FILE] [--seconds 60]

`make gpu-check` runs them all. Where there is no GPU, `--rehearse` runs a piece on host memory with small
arrays: it shows mistakes of the program, prints no figure and writes no file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The module of each piece, whose function has the piece's name; in the order in which they are run.
PIECES = {
    "transfers": "benchmarks.gpu_memory",
    "stacking": "benchmarks.gpu_memory",
    "conversions": "benchmarks.gpu_memory",
    "pools": "benchmarks.gpu_pools",
    "pinned": "benchmarks.gpu_pools",
    "out_of_memory": "benchmarks.gpu_pools",
    "end_to_end": "benchmarks.gpu_runs",
    "dask_cuda": "benchmarks.gpu_runs",
}
REHEARSAL_SHRINK = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one piece; 1 if that failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("piece", choices=PIECES)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it may take, about")
    parser.add_argument("--rehearse", action="store_true", help="on host memory, to try the program itself")
    options = parser.parse_args(arguments)
    if options.rehearse and options.json:
        parser.error("a rehearsal has no result to write")
    result = measure(options.piece, options.seconds, rehearse=options.rehearse)
    if options.json:
        options.json.write_text(json.dumps(result))
    elif options.rehearse:
        print(f"{options.piece}: rehearsed, {len(result.get('rows', ()))} rows; {result['state']}")
    else:
        print(json.dumps(result, indent=1))
    print(result.get("traceback", ""), file=sys.stderr, end="")
    return 1 if result["state"] == "failed" else 0


def measure(name: str, seconds: float, *, rehearse: bool = False) -> dict[str, Any]:
    """A piece's result: `state` done, skipped or failed, with `rows` or the `reason`."""
    began = time.monotonic()
    try:
        # Imported here: a machine may lack what one of the pieces needs.
        from benchmarks.gpu_clock import Bench

        bench = Bench(gpu=not rehearse, seconds=seconds, shrink=REHEARSAL_SHRINK if rehearse else 1)
        piece = getattr(importlib.import_module(PIECES[name]), name)
        rows = piece(bench)
    except ImportError as error:
        return {"state": "skipped", "reason": f"it needs {error.name or error}: {error}"}
    except Exception as error:  # noqa: BLE001  whatever it is, it is this piece's result
        return {
            "state": "failed",
            "reason": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }
    told = {"measures": " ".join((piece.__doc__ or "").split()), "notes": bench.notes}
    if not rows:
        return {"state": "skipped", "reason": "; ".join(bench.notes) or "there is nothing to measure", **told}
    return {"state": "done", "seconds": round(time.monotonic() - began, 1), "rows": rows, **told}


if __name__ == "__main__":
    sys.exit(main())
