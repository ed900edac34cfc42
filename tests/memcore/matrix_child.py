"""Runs cases of the strict matrix in a process that may abort: one line of JSON for each index read."""

import json
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

# PoCL before TensorFlow, as its LLVM crashes the process the other way round.
import jax
import pyclesperanto  # noqa: F401
import tensorflow  # noqa: F401
import torch  # noqa: F401

import memcore
from tests.memcore import matrix_cases

CASES = matrix_cases.all_cases()


def outcome(case: matrix_cases.Case) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries warn about sparse and masked tensors being new
        try:
            array = matrix_cases.build(case.source, case.dtype, case.layout)
        except Exception as error:  # noqa: BLE001  whatever it is, it is the test's fault
            return {"kind": "broken", "text": f"the test can't build it: {error}"}
    if array is None:
        return {"kind": "absent"}
    plain = case.layout not in matrix_cases.MEANINGFUL
    before = matrix_cases.bits(array, case.source) if plain else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = memcore.convert_memory(array, case.source, case.target, case.gpu_id, copy=case.copy)
    except memcore.MemcoreError as error:
        return {"kind": "refused", "error": type(error).__name__, "text": str(error)}
    except Exception as error:  # noqa: BLE001  an error that isn't ours is what is looked for
        return {"kind": "foreign", "error": type(error).__name__, "text": str(error)}
    if not plain:
        return {"kind": "lost", "text": "an array that means more than its values was converted"}
    if memcore.memory_type_of(result) != case.target:
        return {"kind": "wrong", "text": f"a {type(result)} came out"}
    for name, end, kind in (("source", array, case.source), ("result", result, case.target)):
        now = matrix_cases.bits(end, kind)
        if now != before:
            return {
                "kind": "wrong",
                "text": f"{name}: {now[:2]} {now[2].hex()}, not {before}",
            }
    if case.source == case.target == "numpy" and result.dtype != array.dtype:
        return {"kind": "wrong", "text": f"byte order {result.dtype.str}"}
    return {"kind": "exact"}


print(json.dumps({"x64": bool(jax.config.jax_enable_x64), "cases": len(CASES)}), flush=True)
for line in sys.stdin:
    index = int(line)
    print(json.dumps({"index": index, **outcome(CASES[index])}), flush=True)
