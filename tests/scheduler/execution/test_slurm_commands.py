"""Slurm's commands as this program uses them, with stand-ins on the PATH that answer as Slurm does."""

import os
import time
from pathlib import Path

import pytest

from scheduler.execution import slurm_commands
from scheduler.execution.slurm_commands import (
    JobState,
    SlurmError,
    cancel_job,
    check_script,
    end_of_job,
    job_states,
    sbatch,
)
from tests.scheduler.slurm_node.waiting import wait_until


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing on the PATH but what the test puts there: `commands(name, shell)`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name: str, shell: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{shell}\n")
        (folder / name).chmod(0o755)

    return put


def test_a_script_is_handed_over_as_it_is(commands, tmp_path):
    commands("sbatch", f'echo "$@" > {tmp_path}/options; /bin/cat > {tmp_path}/script; echo 71')
    assert sbatch("#!/bin/sh\nrun\n") == "71"
    assert (tmp_path / "options").read_text() == "--parsable\n"
    assert (tmp_path / "script").read_text() == "#!/bin/sh\nrun\n"


def test_the_id_comes_without_the_cluster_s_name(commands):
    commands("sbatch", "echo '71;big'")
    assert sbatch("") == "71"


def test_slurm_s_own_words_are_the_error(commands):
    commands("sbatch", 'echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1')
    with pytest.raises(SlurmError, match=r"^sbatch: invalid partition specified: gpu$"):
        check_script("")


def test_a_failure_without_words_has_its_status(commands):
    commands("scancel", "exit 7")
    with pytest.raises(SlurmError, match="scancel: failed with status 7"):
        cancel_job("1")


def test_a_machine_without_slurm_is_told(commands):
    with pytest.raises(SlurmError, match=r"there is no sbatch here: .* as on a login node"):
        sbatch("")


def test_a_controller_that_hangs_is_given_up(commands, monkeypatch):
    monkeypatch.setattr(slurm_commands, "COMMAND_S", 0.2)
    commands("squeue", "exec /bin/sleep 60")
    with pytest.raises(SlurmError, match=r"squeue hasn't answered for 0\.2 s"):
        job_states(name="x")


def test_jobs_by_name(commands, tmp_path):
    commands(
        "squeue",
        f'echo "$@" $SLURM_TIME_FORMAT > {tmp_path}/asked\n'
        "echo '7|PENDING|N/A|Resources'\necho '8|RUNNING|1790000000|None'\n"
        "echo '9|COMPLETING|1780000000|None'",
    )
    assert job_states(name="stackyard-workers-r1") == (
        JobState("7", "PENDING", "Resources", None),
        JobState("8", "RUNNING", "", 1790000000.0),
        JobState("9", "COMPLETING", "", 1780000000.0),
    )
    asked = (tmp_path / "asked").read_text()
    assert "--name stackyard-workers-r1 %s" in asked


@pytest.mark.parametrize(
    ("state", "pending", "ending"),
    [
        ("PENDING", True, False),
        ("CONFIGURING", True, False),
        ("RUNNING", False, False),
        ("SUSPENDED", False, False),
        ("COMPLETING", False, True),
        ("TIMEOUT", False, True),
        ("NODE_FAIL", False, True),
    ],
)
def test_what_is_to_be_expected_of_a_job(state, pending, ending):
    job = JobState("1", state, "", None)
    assert (job.pending, job.ending) == (pending, ending)


def test_a_job_that_is_forgotten_has_no_state(commands):
    commands("squeue", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert job_states(job_id="7") == ()
    with pytest.raises(SlurmError):
        job_states(name="7")


def test_the_end_of_a_job_is_what_its_environment_says(commands):
    commands("squeue", "echo '7|RUNNING|1790000000|None'")
    assert end_of_job({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1790000500"}) == 1790000500


def test_older_releases_tell_the_end_of_a_job_by_squeue(commands):
    commands("squeue", "echo '7|RUNNING|1790000000|None'")
    assert end_of_job({"SLURM_JOB_ID": "7"}) == 1790000000


@pytest.mark.parametrize("end", ["N/A", "Unknown", "NONE", "0"])
def test_a_job_without_a_limit_has_no_end(commands, end):
    commands("squeue", f"echo '7|RUNNING|{end}|None'")
    assert end_of_job({"SLURM_JOB_ID": "7"}) is None


def test_a_node_without_slurm_s_commands_tells_no_end(commands):
    assert end_of_job({"SLURM_JOB_ID": "7"}) is None
    assert end_of_job({}) is None


def test_a_real_slurm(slurm):
    """What the stand-ins above answer is what Slurm answers."""
    with pytest.raises(SlurmError, match="invalid partition"):
        check_script("#!/bin/sh\n#SBATCH --partition=no-such\n:\n")
    script = "#!/bin/sh\n#SBATCH --job-name=here --time=5 --output=/dev/null\nexec sleep 600\n"
    check_script(script)
    before = time.time()
    job_id = sbatch(script)
    held = sbatch(script.replace("--time=5", "--time=5 --hold"))
    wait_until(lambda: {state.state for state in job_states(job_id=job_id)} == {"RUNNING"}, "start")
    running, waiting = sorted(job_states(name="here"), key=lambda state: int(state.job_id))
    assert (running.job_id, waiting.job_id) == (job_id, held)
    assert (waiting.pending, waiting.reason) == (True, "JobHeldUser")
    assert running.end_time is not None
    assert before + 299 <= running.end_time <= time.time() + 300
    assert end_of_job({**os.environ, "SLURM_JOB_ID": job_id}) == running.end_time
    cancel_job(held)
    cancel_job(job_id)
    wait_until(lambda: all(state.ending for state in job_states(name="here")), "end")
    cancel_job(job_id)
