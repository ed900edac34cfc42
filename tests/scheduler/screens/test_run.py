"""`stackyard run`: what it prints where, and how it ends."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tifffile
from typer.testing import CliRunner

from scheduler.execution.errors import ClusterError
from scheduler.execution.slurm_commands import SlurmError
from scheduler.execution.status import JobFailure, RunSummary
from scheduler.images.errors import InputError, OutputError
from scheduler.images.sample import write_sample
from scheduler.screens import cli
from scheduler.screens.event_lines import EventLines
from tests.scheduler.dask_programs import wait_for

CONFIG = """\
input: {path: img, pattern: "{well}_s{site}_z{z}_c{channel}.tif"}
steps:
  - use: gaussian
    with: {sigma: 1}
output: {path: out, name: "{well}_s{site}_c{channel}"}
"""
KEYS = ["jobs", "done", "failed", "lost", "oom_attempts", "wall_s", "run_dir", "devices", "failures"]
CPU = {"cpu": {"uuid": "CPU-localhost", "kind": "cpu", "virtual": False, "jobs": 2}}
DONE = RunSummary(2, 2, 0, 0, 0, 1.0, "/run", False, CPU)
FAILED = RunSummary(2, 1, 1, 0, 0, 1.0, "/run", False, CPU, (JobFailure("a", "z2 is missing"),))
INTERRUPTED = RunSummary(2, 1, 0, 0, 0, 1.0, "/run", True, CPU)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def ended(monkeypatch, status):
    """Have every run end as told, after one status; gives the calls."""
    calls: list[tuple[object, dict[str, object]]] = []

    def end_with(outcome: RunSummary | Exception) -> list[tuple[object, dict[str, object]]]:
        def run(config, **keywords):
            calls.append((config, keywords))
            keywords["on_status"](status)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr("scheduler.execution.run.run", run)
        return calls

    return end_with


def invoke(*arguments: object):
    return CliRunner().invoke(cli.app, ["run", *map(str, arguments)])


@pytest.mark.parametrize(("summary", "code"), [(DONE, 0), (FAILED, 1), (INTERRUPTED, 130)])
def test_exit_status_and_account(config, ended, summary, code):
    ended(summary)
    result = invoke(config)
    assert result.exit_code == code
    assert "2 jobs done in 1.0 s" in result.stdout
    assert ("a\n         z2 is missing" in result.stdout) == bool(summary.failures)
    assert "120/480 done" in result.stderr


@pytest.mark.parametrize("summary", [DONE, FAILED])
def test_json_is_all_that_standard_output_holds(config, ended, summary):
    ended(summary)
    result = invoke(config, "--json")
    record = json.loads(result.stdout)
    assert list(record) == KEYS
    assert record["failures"] == [{"job": each.job, "reason": each.reason} for each in summary.failures]
    assert ("z2 is missing" in result.stderr) == bool(summary.failures)


@pytest.mark.parametrize(("summary", "said"), [(DONE, ""), (FAILED, "z2 is missing")])
def test_quiet_says_what_failed_and_nothing_else(config, ended, summary, said):
    ended(summary)
    result = invoke(config, "--quiet")
    assert result.stdout == ""
    assert (said in result.stderr) if said else (result.stderr == "")


def test_what_the_run_is_given(config, ended):
    calls = ended(DONE)
    invoke(config, "--overwrite")
    invoke(config)
    (given, first), (_, second) = calls
    assert given.config_file == config
    assert (first["overwrite"], second["overwrite"]) == (True, False)
    assert not first["stop"].is_set()


def test_cancelled_from_elsewhere(config, monkeypatch, status, tmp_path):
    """The file that `stackyard cancel` leaves in the run's folder stops the run as Ctrl-C does."""
    seen = []

    def run(_config, *, on_status, stop, **_keywords):
        for step in range(4):
            if step == 2:
                (tmp_path / "cancel").touch()
            on_status(replace(status, run_dir=str(tmp_path)))
            seen.append(stop.is_set())
        return INTERRUPTED

    monkeypatch.setattr("scheduler.execution.run.run", run)
    assert invoke(config).exit_code == 130
    assert seen == [False, False, True, True]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("no such folder"), 2, "stackyard: no such folder"),
        (OutputError("16 outputs exist"), 2, "stackyard: 16 outputs exist"),
        (ClusterError("no scheduler answers"), 2, "stackyard: no scheduler answers"),
        (SlurmError("sbatch: no"), 2, "stackyard: sbatch: no"),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), 2, "stackyard: /out: Permission denied"),
        (RuntimeError("oops"), 1, "internal error: RuntimeError: oops"),
    ],
)
def test_errors_are_messages(config, ended, error, code, said):
    ended(error)
    result = invoke(config)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in invoke(config, "--debug").stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            CONFIG.replace("sigma", "sigmaa"),
            ":4:20: steps[0].with.sigmaa: gaussian has no parameter 'sigmaa'",
        ),
        (CONFIG.replace("gaussian", "gausian"), "steps[0].use: no step 'gausian' (did you mean 'gaussian'?)"),
        (CONFIG + "devices: {gpus: 7}\n", ":6:17: devices.gpus: expected 'auto'"),
        (CONFIG + "outptu: {}\n", ":6:1: unknown key 'outptu'; did you mean 'output'?"),
        (CONFIG.replace("{sigma: 1}", "[sigma"), "not YAML"),
    ],
)
def test_a_config_that_cannot_be_used_starts_nothing(config, ended, text, said):
    calls = ended(DONE)
    config.write_text(text)
    result = invoke(config)
    assert result.exit_code == 2
    assert f"stackyard: {config}:" in result.stderr
    assert said in result.stderr
    assert not calls


def test_a_gpu_that_is_not_there(config, tmp_path):
    write_sample(tmp_path / "img", wells=1, sites=1, channels=1, planes=1, size=8)
    config.write_text(CONFIG + "devices: {gpus: [70]}\n")
    result = invoke(config)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "stackyard: devices.gpus: GPU 70 is not there" in result.stderr


def test_for_real(tmp_path, config):
    write_sample(tmp_path / "img", wells=1, sites=1, channels=2, planes=3, size=32)
    command = [sys.executable, "-m", "scheduler.screens", "run", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert list(record) == KEYS
    assert (record["jobs"], record["done"], record["failed"], record["lost"]) == (2, 2, 0, 0)
    assert Path(record["run_dir"]).parent == tmp_path / "out/.stackyard"
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == [
        "A01_s1_c1.ome.tif",
        "A01_s1_c2.ome.tif",
    ]
    assert tifffile.imread(tmp_path / "out/A01_s1_c1.ome.tif").shape == (3, 32, 32)
    assert re.search(r"^\[.* s\] done: 2/2 done", done.stderr, re.MULTILINE)
    assert "\x1b" not in done.stdout + done.stderr


def test_ctrl_c_keeps_what_is_done(tmp_path, config):
    write_sample(tmp_path / "img", wells=2, sites=4, channels=2, planes=1, size=16)
    (tmp_path / "step_of_a_test.py").write_text(
        "import pathlib, time\n"
        "from memcore import memory_types\n\n\n"
        "@memory_types('numpy')\n"
        "def wait_for_the_signal(stack):\n"
        f"    folder = pathlib.Path({str(tmp_path)!r})\n"
        "    (folder / 'started').touch()\n"
        "    deadline = time.monotonic() + 60\n"
        "    while not (folder / 'signalled').exists() and time.monotonic() < deadline:\n"
        "        time.sleep(0.01)\n"
        "    return stack\n"
    )
    config.write_text(
        CONFIG.replace("gaussian", "step_of_a_test:wait_for_the_signal").replace("with: {sigma: 1}", "")
    )
    command = [sys.executable, "-m", "scheduler.screens", "run", str(config), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            errors = process.stderr
            assert errors is not None
            first = errors.readline()
            assert "running" in first
            deadline = 60.0
            while not (tmp_path / "started").exists() and deadline > 0:
                deadline -= 0.05
                signal.sigtimedwait([], 0.05)
            process.send_signal(signal.SIGINT)
            assert "stopping" in errors.readline()
            (state,) = (tmp_path / "out/.stackyard").glob("*/status.json")
            wait_for("driver that stops", lambda: json.loads(state.read_text())["state"] == "stopping")
            (tmp_path / "signalled").touch()
            out, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, rest
    record = json.loads(out)
    assert 0 < record["done"] < record["jobs"] == 16
    assert (record["failed"], record["lost"]) == (0, 0)
    results = list((tmp_path / "out").glob("*.tif"))
    assert len(results) == record["done"]
    assert not [
        path
        for path in os.listdir(tmp_path / "out")
        if path not in {".stackyard", *(r.name for r in results)}
    ]


@pytest.mark.parametrize("options", [(), ("--quiet",), ("--json",)])
def test_log_json_is_all_that_standard_error_holds(config, monkeypatch, status, capfd, options):
    told = {"at": 1.5, "run": "r", "event": "job_ended", "job": "\x1b[2J\nä", "state": "failed"}

    def run(_config, *, on_status, on_event, stop, **_keywords):
        on_status(status)
        on_event(told)
        return FAILED

    monkeypatch.setattr("scheduler.execution.run.run", run)
    with pytest.raises(SystemExit) as ended:
        cli.app(["run", str(config), "--log-json", *options])
    assert ended.value.code == 1
    out, err = capfd.readouterr()
    assert [json.loads(line) for line in err.splitlines()] == [told]
    assert err.isascii()
    assert "\x1b" not in err
    if options == ("--json",):
        assert json.loads(out)["failed"] == 1
    else:
        assert ("2 jobs done" in out) == (options == ())


def test_log_json_tells_errors_and_signals_as_events_too(config, ended, capfd):
    ended(InputError("no such folder"))
    for path in (config, config.with_name("gone.yaml")):
        with pytest.raises(SystemExit) as end:
            cli.app(["run", str(path), "--log-json"])
        assert end.value.code == 2
    with EventLines() as lines:
        lines.say("stopping")
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(event["event"], event["text"]) for event in events] == [
        ("error", "no such folder"),
        ("error", f"{config.with_name('gone.yaml')}: no such file"),
        ("said", "stopping"),
    ]
