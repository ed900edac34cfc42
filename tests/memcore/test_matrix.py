"""The strict matrix: every pair × dtype × layout × copy is bit-exact, or an error that names the remedy."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.memcore import matrix_cases

CHILD = Path(__file__).with_name("matrix_child.py")
CASES = matrix_cases.all_cases()

# Only the child process imports the libraries.
for name in matrix_cases.TYPES:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}", allow_module_level=True)


class Child:
    """A preloaded process that converts; started again when a case kills it."""

    def __init__(self, x64: bool) -> None:
        self.environment = {**os.environ, "JAX_ENABLE_X64": str(int(x64)), "JAX_PLATFORMS": "cpu"}
        self.process: subprocess.Popen[str] | None = None

    def run(self, indices: list[int]) -> Iterator[dict[str, Any]]:
        aborts = 0
        # Each restart takes seconds: a broken build needn't be counted to the end.
        while indices and aborts < 5:
            done = 0
            for answer in self._answers(indices):
                done += 1
                yield answer
            if done == len(indices):
                return
            aborts += 1
            yield {"index": indices[done], "kind": "aborted", "text": f"exit status {self.status}"}
            indices = indices[done + 1 :]

    def _answers(self, indices: list[int]) -> Iterator[dict[str, Any]]:
        process = subprocess.Popen(
            [sys.executable, str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            greeting = json.loads(process.stdout.readline())
            assert greeting == {"x64": self.environment["JAX_ENABLE_X64"] == "1", "cases": len(CASES)}
            for index in indices:
                try:
                    process.stdin.write(f"{index}\n")
                    process.stdin.flush()
                except BrokenPipeError:
                    break
                line = process.stdout.readline()
                if not line:
                    break
                yield json.loads(line)
            process.stdin.close()
        self.status = process.returncode


def verdict(case: matrix_cases.Case, answer: dict[str, Any], x64: bool) -> str | None:
    """What is wrong with an outcome, or None."""
    kind = answer["kind"]
    expected = matrix_cases.expected_error(case, x64)
    if kind == "absent" or (kind == "exact" and expected is None):
        return None
    if kind == "refused":
        if not matrix_cases.REMEDY.search(answer["text"]):
            return f"names no remedy: {answer['text']}"
        if answer["error"] == expected:
            return None
        if case.copy is False and expected is None and "pass copy=None" in answer["text"]:
            return None
    return f"expected {expected or 'exact'}, got {kind} {answer.get('error', '')} {answer.get('text', '')}"


@pytest.mark.parametrize("x64", [False, True], ids=["jax 32-bit", "jax 64-bit"])
def test_every_combination_is_exact_or_refused_with_a_remedy(
    x64: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    # With 64-bit types on only the pairs with JAX differ, and only these types.
    indices = [
        i
        for i, case in enumerate(CASES)
        if not x64 or ("jax" in (case.source, case.target) and case.dtype in {*matrix_cases.WIDE, "float32"})
    ]
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    wrong = []
    for answer in Child(x64).run(indices):
        case = CASES[answer["index"]]
        counts[answer["kind"]] += 1
        if "error" in answer:
            errors[answer["error"]] += 1
        problem = verdict(case, answer, x64)
        if problem is not None:
            wrong.append(f"{case}: {problem}")
    with capsys.disabled():
        tried = sum(counts.values()) - counts["absent"]
        print(
            f"\nmatrix, jax {64 if x64 else 32}-bit: {tried} combinations, {counts['exact']} exact, "
            f"{counts['refused']} typed errors {dict(errors)}; {counts['absent']} arrays don't exist"
        )
    assert not wrong, f"{len(wrong)} wrong, such as\n" + "\n".join(wrong[:20])
    assert counts["exact"] > (300 if x64 else 3000)
    assert sum(counts.values()) == len(indices)
