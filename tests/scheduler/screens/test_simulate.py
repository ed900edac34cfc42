"""`stackyard simulate` runs the dispatcher in virtual time and shows how it fares."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from scheduler.core.model import Device, DeviceKind, Footprint, Job, JobPlan
from scheduler.core.trace import Trace, TraceJob, TruePlan
from scheduler.execution.journal import Journal
from scheduler.screens import cli
from scheduler.screens.simulate_command import average_levels

MIXES = Path(__file__).parents[3] / "configs/simulation"
GIB = 1 << 30


def invoke(*arguments: object):
    return CliRunner().invoke(cli.app, ["simulate", *map(str, arguments)])


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Six jobs of 10 s, each of which needs more than half of the one GPU."""
    device = Device("GPU-1", "gpu0", DeviceKind.CUDA, 8 * GIB, slots=4, model="GPU")
    host = Device("CPU-1", "cpu", DeviceKind.CPU, 64 * GIB, slots=0, model="CPU")
    plan = JobPlan("gpu", (DeviceKind.CUDA,), Footprint(5 * GIB, GIB))
    jobs = tuple(
        TraceJob(Job(f"job{n}", "kind", (plan,)), {"gpu": TruePlan(5 * GIB, GIB, 10.0)}) for n in range(6)
    )
    path = tmp_path / "six.json"
    path.write_text(json.dumps(Trace("six", (device, host), jobs).to_json()))
    return path


def test_json_of_a_trace_whose_jobs_can_only_follow_each_other(trace):
    record = json.loads(invoke(trace, "--json").stdout)
    assert list(record) == ["jobs", "makespan_s", "bound_s", "decisions_per_s", "oom_attempts", "baselines"]
    assert (record["jobs"], record["oom_attempts"]) == (6, 0)
    assert record["makespan_s"] == pytest.approx(60.0)
    assert 0 < record["bound_s"] <= 60.0
    assert set(record["baselines"]["client.map"]) == {"makespan_s", "oom_attempts"}


def test_screen(trace):
    text = invoke(trace).stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith("six: 6 jobs on 2 devices; no scheduler can need less than ")
    assert any(line.startswith("Stackyard 1 min 00 s 1.") for line in lines)
    assert any(line.startswith("NVML-greedy") for line in lines)
    # Five of eight GiB, all the time.
    assert f"gpu0  │{'▒' * 64}│" in text


def test_baselines_can_be_left_out(trace):
    assert json.loads(invoke(trace, "--json", "--no-baselines").stdout)["baselines"] == {}


@pytest.mark.parametrize("mix", sorted(MIXES.glob("*.yaml")), ids=lambda path: path.stem)
def test_mixes_that_come_with_it(mix):
    arguments = (mix, "--jobs", 40, "--seed", 3, "--exact", "--no-baselines", "--json")
    first = json.loads(invoke(*arguments).stdout)
    assert (first["jobs"], first["oom_attempts"]) == (40, 0)
    assert first["makespan_s"] >= first["bound_s"] > 0
    second = json.loads(invoke(*arguments).stdout)
    assert second["makespan_s"] == first["makespan_s"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "- 1\n", "holds no mapping"),
        ("a.yaml", "jbos: 3\n", "unknown key 'jbos'"),
        ("a.yaml", "jobs: 3\n", "not complete"),
        ("a.yaml", "a: [\n", "no trace (.json), no mix (.yaml)"),
        ("a.json", "{", "no trace (.json)"),
        ("a.json", "{}", "no 'kinds'"),
        ("a.json", "[]", "no trace (.json)"),
    ],
)
def test_no_trace(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    result = invoke(tmp_path / name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_that_has_been_is_replayed(tmp_path):
    folder = tmp_path / "out/.stackyard/1"
    folder.mkdir(parents=True)
    journal = Journal.create(folder / "journal.sqlite", version="1", host="here", started_at=0.0, config={})
    journal.add_device("CPU-1", "cpu", "cpu", virtual=False, total_bytes=8 * GIB, slots=2)
    for job in range(4):
        journal.add_job(str(job), output=None, shape=(1, 2, 3), dtype="uint8", at=0.0)
        journal.start_attempt(
            str(job), 1, device="CPU-1", plan={"name": "p"}, device_bytes=0, host_bytes=GIB, at=1.0
        )
        journal.end_attempt(str(job), 1, outcome="done", detail={}, at=11.0)
        journal.end_job(str(job), state="done", reason="", at=11.0)
    journal.end_run(state="done", at=11.0)
    journal.close()
    for path in (tmp_path / "out", folder, folder / "journal.sqlite"):
        record = json.loads(invoke(path, "--json", "--no-baselines").stdout)
        # Two at a time, ten seconds each.
        assert (record["jobs"], record["makespan_s"]) == (4, pytest.approx(20.0))


def test_a_folder_without_a_run(tmp_path):
    result = invoke(tmp_path)
    assert result.exit_code == 2
    assert "no run in" in result.stderr
    (tmp_path / "journal.sqlite").write_text("no")
    result = invoke(tmp_path)
    assert result.exit_code == 2
    assert "is no journal of a run" in result.stderr


def test_no_file(tmp_path):
    result = invoke(tmp_path / "gone.json")
    assert result.exit_code == 2
    assert "gone.json: No such file or directory" in result.stderr


def test_averages_of_a_level():
    assert average_levels([(0.0, 8), (2.5, 4), (5.0, 0)], 10.0, 4) == [8.0, 4.0, 0.0, 0.0]
    assert average_levels([(5.0, 8)], 10.0, 4) == [0.0, 0.0, 8.0, 8.0]
    assert average_levels([(1.0, 4), (2.0, 0)], 10.0, 1) == [0.4]
    assert average_levels([], 10.0, 3) == [0.0, 0.0, 0.0]


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 100)), max_size=8), st.integers(1, 20))
def test_averages_keep_the_area(steps, cells):
    steps = sorted(steps)
    area = sum(level * (until - at) for (at, level), (until, _) in pairwise([*steps, (10.0, 0)]))
    assert sum(average_levels(steps, 10.0, cells)) * 10.0 / cells == pytest.approx(area, abs=1e-6)
