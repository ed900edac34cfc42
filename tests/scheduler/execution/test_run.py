"""Whole runs on an embedded cluster, against what the steps give by hand."""

import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from scheduler.config import RunConfig
from scheduler.execution.journal import Journal
from scheduler.execution.run import run
from scheduler.execution.status import RunStatus
from scheduler.host.reservations import Reservations
from scheduler.images.sources import find_stacks, read_stack
from scheduler.screens.report.records import read_run
from scheduler.steps.gaussian import gaussian
from scheduler.steps.max_projection import max_projection
from scheduler.steps.rescale_intensity import rescale_intensity
from scheduler.steps.richardson_lucy import richardson_lucy
from scheduler.steps.subtract_background import subtract_background

MakeConfig = Callable[..., RunConfig]


def stacks_of(folder: Path) -> dict[str, np.ndarray]:
    """Every stack of the plate, by its output's name."""
    stacks = {}
    for source in find_stacks(folder, "{well}_z{z}_c{channel}.tif"):
        stack = np.empty(source.shape, source.dtype)
        read_stack(source, stack)
        fields = dict(source.fields)
        stacks[f"{fields['well']}_c{fields['channel']}.ome.tif"] = stack
    return stacks


def journal_of(run_dir: str) -> Journal:
    return Journal.open_readonly(Path(run_dir, "journal.sqlite"))


def test_outputs_equal_the_steps_called_by_hand_bit_for_bit(plate: Path, make_config: MakeConfig) -> None:
    config = make_config(
        steps=[
            {"use": "subtract_background", "with": {"radius": 5}, "memory": "numpy"},
            {
                "use": "richardson_lucy",
                "with": {"sigma": [1.0, 1.5, 1.5], "iterations": 3},
                "memory": "numpy",
            },
            {"use": "gaussian", "with": {"sigma": 0.7}, "memory": "numpy"},
            {"use": "rescale_intensity", "memory": "numpy"},
            {"use": "max_projection", "memory": "numpy"},
        ],
    )
    summary = run(config)
    assert (summary.jobs, summary.done, summary.failed, summary.lost) == (4, 4, 0, 0)
    assert summary.exit_status == 0
    for name, stack in stacks_of(plate).items():
        flat = subtract_background(stack, radius=5)
        sharp = richardson_lucy(flat, sigma=[1.0, 1.5, 1.5], iterations=3)
        by_hand = max_projection(rescale_intensity(gaussian(sharp, sigma=0.7)))
        written = tifffile.imread(config.output.path / name)
        np.testing.assert_array_equal(written.reshape(by_hand.shape), by_hand, strict=True)


def test_the_account_of_a_run_agrees_with_its_journal(make_config: MakeConfig) -> None:
    seen: list[RunStatus] = []
    summary = run(make_config(), on_status=seen.append)
    assert sum(device["jobs"] for device in summary.devices.values()) == 4
    jobs = list(journal_of(summary.run_dir).jobs())
    assert {(job.state, job.shape, job.dtype) for job in jobs} == {("done", (3, 31, 37), "uint16")}
    assert all(job.output is not None and Path(job.output).is_file() for job in jobs)
    assert (seen[-1].state, seen[-1].done, seen[-1].running) == ("done", 4, 0)
    ((where, stats),) = read_run(Path(summary.run_dir)).pools().items()
    assert where == ("CPU-localhost", "numpy on cpu")
    assert stats.hits + stats.misses >= 4, "each stack is read into an array of the pool"


def test_json_has_the_keys_of_the_contract(make_config: MakeConfig) -> None:
    record = run(make_config()).to_json()
    assert set(record) == {
        "jobs", "done", "failed", "lost", "oom_attempts", "wall_s", "run_dir", "devices", "failures",
    }  # fmt: skip
    (device,) = record["devices"].values()
    assert set(device) == {"uuid", "kind", "virtual", "jobs"}


def test_a_truncated_file_fails_its_own_job_and_no_other(plate: Path, make_config: MakeConfig) -> None:
    damaged = plate / "A01_z01_c1.tif"
    damaged.write_bytes(damaged.read_bytes()[:700])
    summary = run(make_config())
    assert (summary.done, summary.failed, summary.exit_status) == (3, 1, 1)
    (failure,) = summary.failures
    assert "A01" in failure.job
    assert "A01_z01_c1.tif" in failure.reason


@pytest.mark.parametrize(
    ("plane", "figures"),
    [(np.zeros((30, 37), np.uint16), r"\(30, 37\)"), (np.zeros((31, 37), np.uint8), "uint8")],
    ids=["shape", "dtype"],
)
def test_slices_that_differ_fail_their_job_with_the_figures(
    plate: Path, make_config: MakeConfig, plane: np.ndarray, figures: str
) -> None:
    tifffile.imwrite(plate / "B02_z02_c2.tif", plane)
    summary = run(make_config())
    assert (summary.done, summary.failed) == (3, 1)
    assert re.search(rf"B02_z02_c2\.tif.*{figures}", summary.failures[0].reason)


def test_a_step_that_raises_is_named_with_what_it_was_given(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "mysteps.py").write_text(
        "def picky(stack):\n"
        "    print('looking at', stack.shape)\n"
        "    if stack.mean() > 0:\n"
        "        raise ValueError('too bright')\n"
        "    return stack\n"
    )
    declare = {"input": "numpy"}
    summary = run(make_config(steps=[{"use": "mysteps:picky", "declare": declare}]))
    assert (summary.done, summary.failed, summary.exit_status) == (0, 4, 1)
    reason = summary.failures[0].reason
    assert "picky" in reason
    assert "ValueError: too bright" in reason
    assert "uint16 (3, 31, 37)" in reason
    log = Path(summary.run_dir, "logs", f"{summary.failures[0].job}.log").read_text()
    assert "looking at (3, 31, 37)" in log
    assert "Traceback" in log


def test_equal_failures_before_any_success_stop_the_run(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "broken_step.py").write_text("def fail(stack):\n    raise RuntimeError('no model')\n")
    steps = [{"use": "broken_step:fail", "declare": {"input": "numpy"}}]
    summary = run(make_config(steps=steps, jobs={"max_failures": 2}))
    assert (summary.done, summary.failed, summary.lost) == (0, 4, 0)
    assert any("failed alike" in failure.reason for failure in summary.failures)


@pytest.fixture
def gated_step(tmp_path: Path) -> Path:
    """A step `gated:gated` that waits until the file which this returns exists."""
    gate = tmp_path / "gate"
    (tmp_path / "gated.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def gated(stack):\n"
        "    deadline = time.monotonic() + 60\n"
        f"    while not Path({str(gate)!r}).exists():\n"
        "        assert time.monotonic() < deadline, 'nobody opened the gate'\n"
        "        time.sleep(0.01)\n"
        "    return stack\n"
    )
    return gate


def test_stop_lets_what_runs_finish_and_exits_130(
    gated_step: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.execution.devices.usable_cores", lambda: 2)
    stop = threading.Event()

    def stop_while_two_run(status: RunStatus) -> None:
        if status.running == 2:
            stop.set()
        if status.state == "stopping":
            gated_step.touch()

    config = make_config(steps=[{"use": "gated:gated", "declare": {"input": "numpy"}}])
    summary = run(config, on_status=stop_while_two_run, stop=stop)
    assert (summary.done, summary.failed, summary.exit_status) == (2, 0, 130)
    assert len(list(config.output.path.glob("*.ome.tif"))) == 2
    states = [job.state for job in journal_of(summary.run_dir).jobs()]
    assert sorted(states) == ["done", "done", "waiting", "waiting"]


def test_stop_drops_what_does_not_finish_in_its_grace(
    gated_step: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.execution.driver.STOP_GRACE_S", 0.1)
    stop = threading.Event()

    def stop_at_once(status: RunStatus) -> None:
        if status.running:
            stop.set()

    config = make_config(steps=[{"use": "gated:gated", "declare": {"input": "numpy"}}])
    summary = run(config, on_status=stop_at_once, stop=stop)
    assert not gated_step.exists()
    assert (summary.done, summary.exit_status) == (0, 130)
    assert [path.name for path in config.output.path.iterdir()] == [".stackyard"]


def test_a_worker_that_dies_costs_only_its_job(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "def deadly(stack, *, context):\n"
        "    if 'well-A01_channel-1' in context.job_id:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return stack\n"
    )
    config = make_config(steps=[{"use": "deadly:deadly", "declare": {"input": "numpy"}}])
    summary = run(config)
    assert (summary.done, summary.failed, summary.lost) == (3, 1, 0)
    assert "set aside" in summary.failures[0].reason
    assert not list(config.output.path.glob(".stackyard-*"))


def test_a_step_class_is_set_up_once_in_each_worker_and_torn_down(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    told = tmp_path / "told.txt"
    (tmp_path / "model_step.py").write_text(
        "import os\n"
        "class Brighten:\n"
        "    declare = {'input': 'numpy'}\n"
        "    def __init__(self, by):\n"
        "        self.by = by\n"
        "    def tell(self, what):\n"
        f"        with open({str(told)!r}, 'a') as file:\n"
        "            file.write(f'{what} {os.getpid()}\\n')\n"
        "    def setup(self, context):\n"
        "        self.tell('setup')\n"
        "    def __call__(self, stack):\n"
        "        return stack + stack.dtype.type(self.by)\n"
        "    def teardown(self):\n"
        "        self.tell('teardown')\n"
    )
    config = make_config(steps=[{"use": "model_step:Brighten", "with": {"by": 3}}])
    summary = run(config)
    assert (summary.done, summary.failed) == (4, 0)
    lines = told.read_text().split("\n")[:-1]
    setups = {line.split()[1] for line in lines if line.startswith("setup")}
    assert len([line for line in lines if line.startswith("setup")]) == len(setups)
    assert {line.split()[1] for line in lines if line.startswith("teardown")} == setups


def test_a_finished_attempt_needs_nothing_more_of_its_worker(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise AssertionError("the worker may have died with its results")

    monkeypatch.setattr("distributed.Future.result", gone)
    assert run(make_config()).done == 4


@pytest.mark.parametrize("damage", ["no home for it", "not JSON"])
def test_what_was_learned_is_a_help_and_no_condition(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    cache = tmp_path / "cache"
    if damage == "not JSON":
        (cache / "stackyard").mkdir(parents=True)
        (cache / "stackyard" / "estimates.json").write_text("{")
    else:
        cache.write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    summary = run(make_config())
    assert (summary.done, summary.exit_status) == (4, 0)
    assert any("learned" in remark for remark in summary.remarks)


def test_while_a_job_runs_everybody_can_see_what_it_holds(gated_step: Path, make_config: MakeConfig) -> None:
    seen: set[tuple[str, str]] = set()

    def look(status: RunStatus) -> None:
        if status.running:
            with Reservations() as table:
                seen.update((lease.job, lease.what) for lease in table.leases())
        if held in seen:
            gated_step.touch()

    held = "well-A01_channel-1", "numpy uint16 (3, 31, 37)"
    config = make_config(steps=[{"use": "gated:gated", "declare": {"input": "numpy"}}])
    assert run(config, on_status=look).done == 4
    assert held in seen
