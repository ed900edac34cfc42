"""The strict matrix on a GPU: every pair × dtype × layout × copy is exact, or an error with its remedy."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from memcore.registry import backend_of
from tests.cuda import cuda_libraries
from tests.gpu.matrix_cases import Case, Place, all_cases, expected_error
from tests.memcore.matrix_cases import DTYPES, REMEDY

ROOT = Path(__file__).parents[2]
MOST_ABORTS = 5
DEADLINE_S = 170


def answers(
    libraries: tuple[str, ...], place: Place, dtypes: tuple[str, ...], x64: bool, folder: Path
) -> list[dict[str, Any]]:
    """What came of each case; a process that a case has ended is started again behind it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    total = len(all_cases(libraries, place, dtypes))
    found: list[dict[str, Any]] = []
    for _ in range(MOST_ABORTS):
        command = [sys.executable, "-m", "tests.gpu.matrix_child", str(place), ",".join(libraries)]
        command += [",".join(dtypes), str(int(x64)), str(len(found))]
        with (folder / "answers").open("w+") as file, (folder / "errors").open("w+") as errors:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=errors,
                check=False,
                timeout=DEADLINE_S,
            )
            file.seek(0)
            found += [json.loads(line) for line in file if line.startswith("{")]
            if len(found) == total:
                return found
            errors.seek(0)
            said = errors.read()[-500:]
        found.append({"index": len(found), "kind": "aborted", "text": f"status {done.returncode}: {said}"})
    return found


def verdict(case: Case, answer: dict[str, Any], x64: bool) -> str | None:
    """What is wrong with an outcome, or None."""
    kind, expected = answer["kind"], expected_error(case, x64)
    if kind == "absent" or (kind == "exact" and expected is None):
        return None
    if kind == "refused" and REMEDY.search(answer["text"]):
        if answer["error"] == expected:
            return None
        if case.copy is False and expected is None and "pass copy=None" in answer["text"]:
            return None
        # Which dtypes TensorFlow has GPU kernels for is its own affair; int32 it keeps in host memory.
        if "tensorflow" in (case.source, case.target) and "tensorflow keeps" in answer["text"]:
            return None
    return f"expected {expected or 'exact'}, got {kind} {answer.get('error', '')} {answer.get('text', '')}"


def check(
    libraries: tuple[str, ...], place: Place, dtypes: tuple[str, ...], x64: bool, folder: Path
) -> Counter[tuple[str, str]]:
    """Fails if any case is wrong; how many were exact, by source and target."""
    cases = all_cases(libraries, place, dtypes)
    found = answers(libraries, place, dtypes, x64, folder)
    exact: Counter[tuple[str, str]] = Counter()
    wrong = []
    for answer in found:
        case = cases[answer["index"]]
        problem = verdict(case, answer, x64)
        if problem is not None:
            wrong.append(f"{case}: {problem}")
        elif answer["kind"] == "exact":
            exact[case.source, case.target] += 1
    assert not wrong, f"{len(wrong)} wrong, such as\n" + "\n".join(wrong[:20])
    assert len(found) == len(cases)
    return exact


@pytest.mark.gpu
@pytest.mark.parametrize("x64", [False, True], ids=["jax 32-bit", "jax 64-bit"])
def test_every_combination_on_the_gpu_is_exact_or_refused_with_a_remedy(tmp_path: Path, x64: bool) -> None:
    libraries = ("numpy", *cuda_libraries("torch", "cupy", "jax", "tensorflow"))
    if x64 and "jax" not in libraries:
        pytest.skip("needs jax on a CUDA device")
    dtypes = DTYPES if not x64 else ("int64", "uint64", "float64", "complex128", "float32")
    exact = check(libraries, 0, dtypes, x64, tmp_path)
    for source in libraries:
        for target in libraries:
            assert exact[source, target] >= 20, f"{source} to {target}: {exact[source, target]} exact"


def test_the_same_cases_rehearsed_in_host_memory(tmp_path: Path) -> None:
    libraries = ("numpy", *(name for name in ("torch", "jax") if backend_of(name).installed()))
    exact = check(libraries, "cpu", ("uint16", "float32", "complex64", "bfloat16"), False, tmp_path)
    assert min(exact[source, target] for source in libraries for target in libraries) >= 10
