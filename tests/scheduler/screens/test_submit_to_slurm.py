"""`submit`, `status` and `cancel` of a driver that waits in Slurm's queue; Slurm's answers are injected."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from scheduler.execution import slurm_driver
from scheduler.execution.slurm_commands import JobState, SlurmError
from scheduler.images.sample import write_sample
from scheduler.screens import cli

CONFIG = """\
input: {path: img, pattern: "{well}_s{site}_z{z}_c{channel}.tif"}
steps: [{use: gaussian, with: {sigma: 1}, memory: [numpy]}]
output: {path: out, name: "{well}_s{site}_c{channel}"}
cluster: {kind: slurm, cores: 1, memory: 1GiB}
"""


class Queue:
    """Slurm, as far as it is asked here: `states` is what squeue says, `refusal` what every command says."""

    def __init__(self) -> None:
        self.scripts: list[str] = []
        self.cancelled: list[tuple[str, bool]] = []
        self.states: tuple[JobState, ...] = (JobState("12", "PENDING", "Priority", None),)
        self.refusal = ""

    def _answer(self) -> None:
        if self.refusal:
            raise SlurmError(self.refusal)

    def check_script(self, script: str) -> None:
        assert "slurm_node" in script
        self._answer()

    def sbatch(self, script: str) -> str:
        self._answer()
        self.scripts.append(script)
        return "12"

    def job_states(self, *, job_id: str) -> tuple[JobState, ...]:
        self._answer()
        return tuple(state for state in self.states if state.job_id == job_id)

    def cancel_job(self, job_id: str, *, only_pending: bool) -> None:
        self._answer()
        self.cancelled.append((job_id, only_pending))
        self.states = tuple(state for state in self.states if not state.pending)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue")
    queue = Queue()
    for name in ("check_script", "sbatch", "job_states", "cancel_job"):
        monkeypatch.setattr(slurm_driver, name, getattr(queue, name))
    return queue


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_sample(tmp_path / "img", wells=1, sites=1, channels=1, planes=2, size=16)
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def run_dir(config: Path, queue: Queue) -> Path:
    """The folder of a run whose driver waits."""
    return Path(json.loads(invoke("submit", config, "--json").stdout)["run_dir"])


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


def test_the_driver_s_job_carries_out_this_config_in_this_folder(config, queue, tmp_path):
    result = invoke("submit", config, "--overwrite", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    run_dir = Path(record["run_dir"])
    assert run_dir.parent == tmp_path / "out/.stackyard"
    assert record == {
        "run_dir": str(run_dir),
        "slurm_job": "12",
        "log": str(run_dir / "logs/driver-12.log"),
    }
    (script,) = queue.scripts
    lines = script.splitlines()
    assert f"#SBATCH --output={run_dir}/logs/driver-%j.log" in lines
    assert shlex.split(lines[-1]) == [
        *["exec", sys.executable, "-m", "scheduler.screens", "run", str(config)],
        *["--run-id", run_dir.name, "--overwrite"],
    ]
    assert (run_dir / "logs").is_dir()


def test_submit_prints_the_folder_and_the_job(config, queue, tmp_path):
    told, hint = invoke("submit", config).stdout.splitlines()
    (run_dir,) = (tmp_path / "out/.stackyard").iterdir()
    assert told.startswith(f"{run_dir}: submitted to Slurm as job 12; ")
    assert hint.startswith(f"stackyard status {run_dir} ")


def test_what_slurm_refuses_leaves_no_run(config, queue, tmp_path):
    queue.refusal = "sbatch: invalid partition specified: gpu"
    result = invoke("submit", config)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "stackyard: sbatch: invalid partition specified: gpu\n"
    assert not list((tmp_path / "out").glob(".stackyard/*"))


def test_results_that_are_there_are_found_before_the_queue(config, queue, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/A01_s1_c1.ome.tif").touch()
    result = invoke("submit", config)
    assert result.exit_code == 2
    assert "pass --overwrite" in result.stderr
    assert queue.scripts == []


@pytest.mark.parametrize(
    ("states", "state", "said"),
    [
        (("PENDING", "Priority"), "queued", "queued in Slurm as job 12 (Priority)"),
        (("RUNNING", ""), "starting", "Slurm has started job 12; its driver has yet to begin the run"),
        (("FAILED", "NonZeroExitCode"), "ended", "Slurm job 12 has ended before the run began; "),
        (None, "ended", "Slurm job 12 has ended before the run began; "),
    ],
)
def test_status_before_the_driver_has_begun(run_dir, queue, states, state, said):
    queue.states = () if states is None else (JobState("12", *states, None),)
    result = invoke("status", run_dir)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{run_dir}: {said}")
    record = json.loads(invoke("status", run_dir, "--json").stdout)
    assert (record["state"], record["slurm_job"], record["run_dir"]) == (state, "12", str(run_dir))


def test_status_where_slurm_can_t_be_asked(run_dir, queue):
    queue.refusal = "there is no squeue here"
    result = invoke("status", run_dir)
    assert result.exit_code == 0
    assert (
        "submitted to Slurm as job 12; how it stands is unknown here (there is no squeue here)"
        in result.stdout
    )


def test_a_queued_driver_is_cancelled_and_one_that_runs_is_asked(run_dir, queue):
    result = invoke("cancel", run_dir)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"cancelled Slurm job 12; the run in {run_dir} had not begun\n"
    assert queue.cancelled == [("12", True)]
    assert "cancelled before it began, as Slurm job 12" in invoke("status", run_dir).stdout


def test_a_driver_that_starts_just_then_is_asked_to_stop(run_dir, queue):
    queue.states = (JobState("12", "RUNNING", "", None),)
    result = invoke("cancel", run_dir)
    assert "to stop as soon as it begins: Slurm has just started job 12" in result.stdout
    assert (run_dir / "cancel").exists()


def test_a_driver_is_asked_to_stop_where_slurm_can_t_be(run_dir, queue):
    queue.refusal = "there is no scancel here"
    record = json.loads(invoke("cancel", run_dir, "--json").stdout)
    assert (record["slurm_job"], record["state"]) == ("12", "unknown")
    result = invoke("cancel", run_dir)
    assert result.exit_code == 0
    assert "Slurm job 12 can't be cancelled here, there is no scancel here" in result.stdout
    assert (run_dir / "cancel").exists()


def test_a_run_that_was_cancelled_in_the_queue_isn_t_the_newest(config, run_dir, queue):
    queue.states = ()
    invoke("cancel", run_dir)
    other = run_dir.with_name("0")
    (other / "logs").mkdir(parents=True)
    (other / "slurm-driver.json").write_text((run_dir / "slurm-driver.json").read_text())
    assert invoke("status", run_dir.parents[1]).stdout.startswith(f"{other}: ")


def test_a_run_that_has_not_begun_cannot_be_resumed(run_dir):
    result = invoke("resume", run_dir)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"stackyard: the run in {run_dir} hasn't begun: its driver is Slurm job 12\n"


def test_a_damaged_record_of_the_job_is_named(run_dir):
    (run_dir / "slurm-driver.json").write_text("{")
    result = invoke("status", run_dir)
    assert result.exit_code == 2
    assert "slurm-driver.json can't be read" in result.stderr
