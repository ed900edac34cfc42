"""`make gpu-check`: nothing is pretended where there is no GPU, and nothing is lost where there is one."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import gpu, gpu_check, gpu_machine
from benchmarks.gpu_pytest import LACKING_VARIABLE, RESULTS_VARIABLE
from benchmarks.gpu_results import read_tests, write_results

ROOT = Path(__file__).parents[2]
H100 = gpu_machine.Gpu("NVIDIA H100 80GB HBM3", 80 << 30)


def test_a_machine_without_a_gpu_is_told_so_in_one_line_and_nothing_runs(tmp_path: Path) -> None:
    # An empty list hides the GPUs that this machine may have.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "results")]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"gpu-check: no GPU is here \(.+\): nothing was run\n", done.stdout)
    assert not (tmp_path / "results").exists()


def test_make_uses_the_python_that_it_is_given() -> None:
    command = ["make", "-n", "gpu-check", "PYTHON=some-python", "GPU_CHECK=--minutes 3"]
    # The tests may have been started by another make, whose flags are handed on.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "some-python -m benchmarks.gpu_check --minutes 3\n"


def test_the_check_and_the_list_of_pieces_need_the_standard_library_alone() -> None:
    code = (
        "import sys\nfrom benchmarks import gpu, gpu_check\n"
        "foreign = {'numpy', 'memcore', 'pools', 'scheduler', 'pytest', 'psutil'} & set(sys.modules)\n"
        "assert not foreign, foreign"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


Command = list[str]
Ran = Callable[[Command, float, Any], int | None]
Check = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Check a pretended H100; what would be run as a process is given to a function instead."""
    monkeypatch.setattr(gpu_check.gpu_machine, "find_gpus", lambda: ((H100,), ""))
    monkeypatch.setattr(gpu, "PIECES", {"transfers": "", "pools": ""})

    def run(ran: Ran, *options: str) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr(gpu_check, "run_bounded", ran)
        status = gpu_check.main(["--out", str(tmp_path), "--minutes", "5", *options])
        path = tmp_path / "gpu-nvidia-h100-80gb-hbm3.json"
        return status, json.loads(path.read_text()), path.with_suffix(".md").read_text()

    return run


def test_results_are_in_place_after_each_part_and_a_failed_one_loses_no_other(
    tmp_path: Path, check: Check
) -> None:
    seen: list[dict[str, Any]] = []

    def ran(command: Command, limit_s: float, environment: Any) -> int | None:
        seen.append(json.loads((tmp_path / "gpu-nvidia-h100-80gb-hbm3.json").read_text()))
        if "pytest" in command:
            Path(environment[RESULTS_VARIABLE]).write_text(
                '{"test": "", "outcome": "collected", "seconds": 3, "reason": ""}\n'
                '{"test": "a", "outcome": "passed", "seconds": 1.5, "reason": ""}\n'
                '{"test": "b", "outcome": "skipped", "seconds": 0, "reason": "needs cupy"}\n'
            )
            return None
        if "transfers" in command:
            return -11
        result = {"state": "done", "measures": "time", "rows": [{"what": "ours", "ms": 0.25}], "notes": []}
        Path(command[command.index("--json") + 1]).write_text(json.dumps(result))
        return 0

    status, results, page = check(ran)
    assert status == 1
    assert {each["state"] for each in seen} == {"running"}
    assert [sorted(each["benchmarks"]) for each in seen[-3:]] == [[], [], ["transfers"]]
    assert seen[1]["tests"]["passed"] == 1
    tests = results["tests"]
    assert (tests["passed"], tests["failed"], tests["skipped"], tests["collected"]) == (1, 0, 1, 3)
    assert set(tests["folders"].values()) == {"cut short by the time limit"}
    assert results["benchmarks"]["transfers"]["reason"] == "the process gave no result: exit status -11"
    assert results["benchmarks"]["pools"]["rows"] == [{"what": "ours", "ms": 0.25}]
    assert results["state"].startswith("tests/gpu: cut short by the time limit; ")
    assert page.startswith("# Stackyard on NVIDIA H100 80GB HBM3\n")
    for line in ("1 of 3 were not reached.", "- skipped, 1 times: needs cupy", "| ours | 0.25 |"):
        assert line in page


def test_what_passed_ends_with_0_and_what_was_only_skipped_does_not(
    check: Check,
) -> None:
    passed = "passed"

    def ran(command: Command, limit_s: float, environment: Any) -> int:
        if "pytest" in command:
            end = {"test": "a", "outcome": passed, "seconds": 1.5, "reason": ""}
            Path(environment[RESULTS_VARIABLE]).write_text(json.dumps(end) + "\n")
        else:
            result = {"state": "skipped", "reason": "it needs dask_cuda"}
            Path(command[command.index("--json") + 1]).write_text(json.dumps(result))
        return 0

    status, results, page = check(ran)
    assert (status, results["state"]) == (0, "all that could run has passed")
    assert "skipped: it needs dask_cuda" in page
    passed = "skipped"
    status, results, _ = check(ran)
    assert (status, results["state"]) == (1, "no test has passed")


def test_one_half_keeps_the_results_of_the_other(check: Check) -> None:
    ran_last: list[Command] = []

    def ran(command: Command, limit_s: float, environment: Any) -> int:
        ran_last.append(command)
        if "pytest" in command:
            end = {"test": "a", "outcome": "passed", "seconds": 1.5, "reason": ""}
            Path(environment[RESULTS_VARIABLE]).write_text(json.dumps(end) + "\n")
        else:
            result = {"state": "skipped", "reason": "it needs dask_cuda"}
            Path(command[command.index("--json") + 1]).write_text(json.dumps(result))
        return 0

    _, both, _ = check(ran)
    for half in ("tests", "benchmarks"):
        ran_last.clear()
        status, results, _ = check(ran, "--only", half)
        assert {"pytest" in command for command in ran_last} == {half == "tests"}
        assert status == 0
        assert results["tests"]["passed"] == 1
        assert results["benchmarks"] == both["benchmarks"]


def test_what_is_missing_is_named_with_its_version_and_the_way_to_bring_it(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=999.1", "zarr-no-such>=3.0.8", "psutil>=1.0"]\n'
        '[dependency-groups]\ntest = ["pytest-timeout>=999", "hypothesis"]\n'
    )
    missing = gpu_machine.missing_dependencies(tmp_path / "pyproject.toml")
    assert [each.requirement for each in missing] == [
        "numpy>=999.1", "zarr-no-such>=3.0.8", "pytest-timeout>=999",
    ]  # fmt: skip
    assert re.fullmatch(r"numpy>=999\.1 \(\S+ is here\)", str(missing[0]))
    assert str(missing[1]) == "zarr-no-such>=3.0.8 (not installed)"
    command = gpu_machine.carry_command(each.requirement for each in missing)
    assert "pip download --dest wheels" in command
    assert "pip install --no-index --find-links wheels 'numpy>=999.1' 'zarr-no-such>=3.0.8'" in command


def test_nothing_of_our_own_is_missing_here() -> None:
    assert gpu_machine.missing_dependencies() == []


def test_a_command_that_outlives_its_time_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "pid"
    program = (
        "import os, signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        f"open({str(tmp_path / 'part')!r}, 'w').write(str(child.pid))\n"
        f"os.rename({str(tmp_path / 'part')!r}, {str(told)!r})\n"
        "signal.pause()"
    )

    class Impatient(subprocess.Popen):  # type: ignore[type-arg]
        """Its time is over as soon as it has told whom it has started."""

        def wait(self, timeout: float | None = None) -> int:
            if not self.over:
                self.over = True
                deadline = time.monotonic() + 60
                while not told.exists():
                    assert time.monotonic() < deadline
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            return super().wait(timeout)

        over = False

    monkeypatch.setattr(gpu_check, "GRACE_S", 0.2)
    monkeypatch.setattr(subprocess, "Popen", Impatient)
    assert gpu_check.run_bounded([sys.executable, "-c", program], 2.0, os.environ) is None
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(told.read_text())).wait(60)


def test_a_source_tree_that_is_not_installed_has_a_version_for_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check.gpu_machine, "installed", lambda names: {})
    environment = gpu_check.child_environment(tmp_path)
    stand_in = environment["PYTHONPATH"].split(os.pathsep)[1]
    code = (
        "from importlib.metadata import distributions\n"
        f"(found,) = distributions(name='stackyard', path=[{stand_in!r}])\n"
        "assert found.version == '0.1.0'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_plugin_writes_down_every_test_and_why_it_did_not_pass(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_away(): pytest.skip('needs cupy')\n"
        "@pytest.fixture\ndef broken(): raise ValueError('no device')\n"
        "def test_unready(broken): pass\n"
    )
    (tmp_path / "test_not_there.py").write_text("import no_such_module\n")
    told = tmp_path / "told.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu_pytest", "-p", "no:cacheprovider"]
    command += [
        "--continue-on-collection-errors",
        "--rootdir",
        str(tmp_path),
        "-c",
        os.devnull,
        str(tmp_path),
    ]
    environment = {**os.environ, RESULTS_VARIABLE: str(told), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=120)
    tests = read_tests(told)
    assert (tests["collected"], tests["passed"], tests["failed"], tests["skipped"]) == (4, 1, 3, 1)
    assert tests["skipped_because"] == {"needs cupy": 1}
    reasons = " ".join(each["reason"] for each in tests["failures"])
    for said in ("assert 1 == 2", "no device", "no_such_module"):
        assert said in reasons
    # Where something is known to be missing, that it can't be imported is no failure.
    told.unlink()
    environment[LACKING_VARIABLE] = "1"
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=120)
    tests = read_tests(told)
    assert tests["failed"] == 2
    assert tests["skipped_because"] == {"needs cupy": 1, "needs no_such_module": 1}


def test_the_files_with_cases_for_a_gpu_are_found() -> None:
    files = gpu_check.marked_files()
    assert next(iter(files)) == "tests/gpu"
    assert "tests/memcore/test_backends.py" in files["tests/memcore"]
    assert "tests/scheduler/steps/test_agreement.py" in files["tests/scheduler/steps"]
    assert "tests/memcore/test_errors.py" not in files["tests/memcore"]


def test_fixtures_that_need_what_is_missing_keep_no_other_folder_from_running(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = [gpu_machine.Missing("psutil>=6", "")]
    monkeypatch.setattr(gpu_check.gpu_machine, "missing_dependencies", lambda: lacking)

    def ran(command: Command, limit_s: float, environment: Any) -> int:
        if "pytest" not in command:
            Path(command[command.index("--json") + 1]).write_text('{"state": "skipped", "reason": "psutil"}')
            return 0
        if any(argument.startswith("tests/gpu/scheduler/") for argument in command):
            return 4
        assert (LACKING_VARIABLE in environment) == bool(lacking)
        end = {"test": command[-1], "outcome": "passed", "seconds": 1.5, "reason": ""}
        with Path(environment[RESULTS_VARIABLE]).open("a") as file:
            file.write(json.dumps(end) + "\n")
        return 0

    status, results, page = check(ran)
    assert (status, results["state"]) == (0, "all that could run has passed")
    assert results["tests"]["folders"]["tests/gpu/scheduler"] == "could not be started"
    assert results["tests"]["folders"]["tests/memcore"] == "finished"
    assert "psutil>=6 (not installed)" in page
    lacking.clear()
    status, results, _ = check(ran)
    assert (status, results["state"]) == (1, "tests/gpu/scheduler: could not be started")


def test_a_reason_of_several_lines_keeps_its_table_whole(tmp_path: Path) -> None:
    piece = {"state": "done", "rows": [{"what": "a | b\nc", "ms": None}], "notes": []}
    machine = {"device": "X 1"}
    results = {
        "machine": machine, "command": "c", "date": "d", "state": "s", "missing": [],
        "benchmarks": {"p": piece},
    }  # fmt: skip
    _, page = write_results(results, tmp_path)
    assert "| a \\| b c | None |" in page.read_text()
