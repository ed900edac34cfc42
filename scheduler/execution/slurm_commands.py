"""Slurm's own commands: submit a job, look how jobs stand, cancel them, ask when they end."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COMMAND_S = 60.0
# Slurm's tools write times as seconds since the epoch with this; otherwise as local time.
_SECONDS = {"SLURM_TIME_FORMAT": "%s"}


class SlurmError(RuntimeError):
    """Slurm isn't here, or refuses what it is asked."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A Slurm job in the queue.

    `reason` says what a pending job waits for, in Slurm's words. `end_time` is when its time limit ends it,
    in seconds since the epoch; None while that is unknown or unlimited.
    """

    job_id: str
    state: str
    reason: str
    end_time: float | None

    @property
    def pending(self) -> bool:
        """True before it runs."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def ending(self) -> bool:
        """True once nothing more is to be expected of it."""
        return not self.pending and self.state not in (
            "RUNNING",
            "SUSPENDED",
            "STOPPED",
            "RESIZING",
            "SIGNALING",
        )


def sbatch(script: str) -> str:
    """Submit a batch script; returns the job's id.

    Raises
    ------
    SlurmError
        There is no sbatch here, or it refuses the script, with its own words.
    """
    # With several clusters the id is followed by the cluster's name.
    return _call(["sbatch", "--parsable"], script).strip().partition(";")[0]


def check_script(script: str) -> None:
    """Have Slurm check a batch script without submitting it.

    Raises
    ------
    SlurmError
        There is no sbatch here, or it would refuse the script, with its own words.
    """
    _call(["sbatch", "--test-only"], script)


def job_states(*, name: str = "", job_id: str = "") -> tuple[JobState, ...]:
    """The jobs in the queue with this name, or this id. A job that has ended is no longer there.

    Raises
    ------
    SlurmError
        There is no squeue here, or the controller doesn't answer.
    """
    by = ["--name", name] if name else ["--jobs", job_id]
    try:
        listed = _call(["squeue", "--noheader", "--all", "--format=%A|%T|%e|%r", *by])
    except SlurmError as error:
        if job_id and "Invalid job id" in str(error):  # it has ended, and is forgotten by now
            return ()
        raise
    states = []
    for line in listed.splitlines():
        found, state, end, reason = line.split("|", 3)
        states.append(JobState(found, state, "" if reason == "None" else reason, _time(end)))
    return tuple(states)


def cancel_job(job_id: str, *, only_pending: bool = False) -> None:
    """End a job, queued or (unless `only_pending`) running; one that has ended already is left alone.

    Raises
    ------
    SlurmError
        There is no scancel here, or it refuses.
    """
    _call(["scancel", "--quiet", *["--state=PENDING"] * only_pending, job_id])


def end_of_job(environment: Mapping[str, str]) -> float | None:
    """When the job that this process runs in will be ended, in seconds since the epoch.

    Slurm tells it in the job's environment in newer releases, and by `squeue` in all of them; None if it does
    neither, or if the job has no time limit.
    """
    told = _time(environment.get("SLURM_JOB_END_TIME", ""))
    if told is not None:
        return told
    job_id = environment.get("SLURM_JOB_ID")
    if job_id is None:
        return None
    try:
        states = job_states(job_id=job_id)
    except SlurmError:  # a node need not have Slurm's commands; its job's own limit is known too
        return None
    return states[0].end_time if states else None


def _time(text: str) -> float | None:
    """Seconds since the epoch; Slurm writes N/A, Unknown or 0 where there is none."""
    return float(text) if text.isdecimal() and int(text) > 0 else None


def _call(command: Sequence[str], stdin: str = "") -> str:
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_S,
            env=os.environ | _SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise SlurmError(
            f"there is no {command[0]} here: cluster.kind slurm needs Slurm's commands, as on a login node"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} hasn't answered for {COMMAND_S:g} s") from error
    if done.returncode:
        said = " ".join(done.stderr.split()).removeprefix(f"{command[0]}: ").removeprefix("error: ")
        raise SlurmError(f"{command[0]}: {said or f'failed with status {done.returncode}'}")
    return done.stdout
