"""A real Slurm on this machine: two nodes on loopback in a scratch folder, with nothing of the system's.

    python tests/scheduler/slurm_node/node.py bash

runs a command with SLURM_CONF set, and stops Slurm when the command ends. Needs Debian's slurm-wlm and munge;
no systemd, no cgroups, and no root: as another user its jobs run as that user.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
NODES = ("n1", "n2")
CORES, MEMORY_MB = 4, 3000
START_S = 60.0
# Slurm wants character devices for GPUs; these are there in any container.
GPU_FILES = ("/dev/null", "/dev/zero")

CONF = """\
ClusterName=stackyard
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# What the nodes have is what stands here, whatever the machine has.
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
# Seconds between SIGTERM and SIGKILL when a job's time is over.
KillWait=5
# A machine under load answers late; no node is given up for that.
SlurmdTimeout=0
MessageTimeout=60
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP
"""


class SlurmStartError(RuntimeError):
    """Slurm is installed and doesn't start."""


def missing_programs() -> list[str]:
    """What a node needs and isn't installed; Debian has the daemons in /usr/sbin."""
    return [program for program in PROGRAMS if _found(program) is None]


@contextlib.contextmanager
def slurm_node() -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and a slurmd for each node; yields the environment that Slurm's commands need.

    Raises
    ------
    SlurmStartError
        A daemon ended, or no node is idle after a minute; with the ends of their logs.
    """
    # Not pytest's folder: a socket's path may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="stackyard-slurm-"))
    variables = {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin",
    }
    environment = os.environ | variables
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _configure(folder)
        munge = [
            "munged", "--foreground", "--force", "--num-threads=2",
            f"--socket={folder / 'munge.socket'}", f"--key-file={folder / 'munge.key'}",
            f"--pid-file={folder / 'munged.pid'}", f"--seed-file={folder / 'munged.seed'}",
            f"--log-file={folder / 'munged.log'}",
        ]  # fmt: skip
        daemons.append(_start(munge, folder, environment))
        _wait_until((folder / "munge.socket").exists, daemons, folder)
        daemons.append(_start(["slurmctld", "-D"], folder, environment))
        daemons += [_start(["slurmd", "-D", "-N", node], folder, environment) for node in NODES]
        _wait_until(lambda: _idle_nodes(environment) == len(NODES), daemons, folder)
        yield variables
    finally:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _end_jobs(environment)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    host = socket.gethostname().partition(".")[0]
    controller_port, *node_ports = _free_ports(1 + len(NODES))
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CORES} "
        f"RealMemory={MEMORY_MB} Gres=gpu:{len(GPU_FILES)}"
        for node, port in zip(NODES, node_ports, strict=True)
    ]
    (folder / "slurm.conf").write_text(
        CONF.format(
            host=host,
            controller_port=controller_port,
            user=pwd.getpwuid(os.getuid()).pw_name,
            folder=folder,
            nodes="\n".join(nodes),
        )
    )
    gpus = [f"NodeName={node} Name=gpu File={file}\n" for node in NODES for file in GPU_FILES]
    (folder / "gres.conf").write_text("".join(gpus))
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(command: Sequence[str], folder: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    program = _found(command[0])
    assert program is not None
    with (folder / f"{command[0]}.out").open("ab") as output:
        return subprocess.Popen(
            [program, *command[1:]],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _wait_until(ready: Callable[[], bool], daemons: "list[subprocess.Popen[bytes]]", folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        ended = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = "\n".join(
                f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}"
                for path in sorted(folder.glob("*.out"))
            )
            what = f"{ended[0]} ended" if ended else f"not ready after {START_S:g} s"
            raise SlurmStartError(f"Slurm doesn't start here: {what}\n{logs}")
        time.sleep(0.05)


def _idle_nodes(environment: dict[str, str]) -> int:
    asked = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle"],
        env=environment, capture_output=True, text=True, timeout=START_S, check=False,
    )  # fmt: skip
    return len(asked.stdout.splitlines())


def _end_jobs(environment: dict[str, str]) -> None:
    """Nothing that a test started outlives it."""
    subprocess.run(["scancel", "--partition=main"], env=environment, timeout=30, check=False)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        asked = subprocess.run(
            ["squeue", "--noheader"], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        if not asked.stdout.strip():
            return
        time.sleep(0.1)


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin")


if __name__ == "__main__":
    with slurm_node() as more:
        sys.exit(subprocess.run(sys.argv[1:], env=os.environ | more, check=False).returncode)
