"""Converts the cases of the matrix from an index on, in a process that may abort: a line of JSON for each."""

import json
import os
import sys
import warnings
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from memcore import MemcoreError, convert_memory, device_of, plan_conversion
from tests.gpu.matrix_cases import Case, all_cases, bits, build


def outcome(case: Case, x64: bool) -> dict[str, Any]:
    """What came of a case: absent, exact, refused with its error, or what is wrong."""
    source = build(case, x64)
    if source is None:
        return {"kind": "absent"}
    before = bits(source.detach() if case.layout == "requires_grad" else source, case.source)
    try:
        plan = plan_conversion(source, case.target, case.goal, copy=case.copy)
        result = convert_memory(source, case.source, case.target, case.goal, copy=case.copy)
    except MemcoreError as error:
        return {"kind": "refused", "error": type(error).__name__, "text": str(error)}
    found = bits(result.detach() if hasattr(result, "detach") else result, case.target)
    if found != before:
        return {"kind": "different", "text": f"{found[:2]} of {before[:2]} by {plan.route}"}
    if case.target != "numpy" and device_of(result) != case.goal:
        return {"kind": "elsewhere", "text": f"on {device_of(result)!r}"}
    return {"kind": "exact", "text": str(plan.route)}


def main() -> None:
    """Arguments: the place, the libraries, the dtypes, 1 for 64-bit types of JAX, and the first index."""
    place, libraries, dtypes, x64, first = sys.argv[1:]
    os.environ["JAX_ENABLE_X64"] = x64
    warnings.simplefilter("ignore")
    cases = all_cases(
        tuple(libraries.split(",")), "cpu" if place == "cpu" else int(place), tuple(dtypes.split(","))
    )
    for index, case in enumerate(cases[int(first) :], int(first)):
        try:
            answer = outcome(case, x64 == "1")
        except Exception as error:  # noqa: BLE001  anything but our own error is what the test looks for
            answer = {"kind": "escaped", "text": f"{type(error).__name__}: {error}"}
        print(json.dumps({"index": index, **answer}), flush=True)


main()
