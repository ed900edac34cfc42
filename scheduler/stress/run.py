"""A stress test from its options to its account: the real scheduler on its own cluster, under pressure."""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pools.virtual import VirtualDeviceMemory
from scheduler.config.model import JobsConfig
from scheduler.core.model import DeviceKind
from scheduler.execution.devices import run_label
from scheduler.execution.local import local_scheduler
from scheduler.execution.status import RunStatus
from scheduler.host.probes import Discovery
from scheduler.host.reservations import Reservations
from scheduler.stress import slow_disk
from scheduler.stress.account import StressAccount, judge
from scheduler.stress.course import INPUTS, RESULTS, TURN_S, Course
from scheduler.stress.devices import find_devices, smallest_gpu
from scheduler.stress.diary import read_diaries
from scheduler.stress.evidence import Evidence, read_journal, rows_left
from scheduler.stress.faults import with_faults
from scheduler.stress.hogs import OWNER, Hogs
from scheduler.stress.options import StressOptions
from scheduler.stress.watch import Watch
from scheduler.stress.workload import make_workload

# What promises and charges may take to be given back once the last job has ended.
SETTLE_S = 5.0
JOB_TIMEOUT_S = 600.0


def stress(
    options: StressOptions,
    folder: Path,
    *,
    on_status: Callable[[RunStatus], None],
    say: Callable[[str], None],
    stop: threading.Event,
) -> StressAccount:
    """Run a stress test in an empty folder and judge it.

    Starts worker processes, hogs and a watch, which import the caller's main module again: a script calls
    this below `if __name__ == "__main__":`.

    Parameters
    ----------
    on_status, say
        Told a few times a second how the run stands, and of what happens to it.
    stop
        Set it to stop.

    Raises
    ------
    StressError, DevicesError, ClusterError
        No job was started: a device isn't there, or something is missing to use it.
    """
    tag = f"stress-{secrets.token_hex(4)}"
    devices, plain = find_devices(options, tag)
    found, faulty = with_faults(plain, options.seed) if options.faults else (plain, [])
    try:
        jobs = make_workload(
            options.jobs,
            capacity=smallest_gpu(found),
            under_estimate=options.under_estimate,
            seed=options.seed,
        )
        for name in (INPUTS, RESULTS, slow_disk.FOLDER):
            (folder / name).mkdir(parents=True)
        run_dir = folder / tag
        evidence = Evidence()
        began = time.monotonic()
        with _own_estimates(folder), Hogs(found.devices, options.hog, options.seed) as hogs:
            watch = Watch(found.devices, run_label(run_dir), hogs.held, hogs.uuids)
            try:
                with local_scheduler(
                    run_dir=run_dir,
                    devices=devices,
                    jobs=JobsConfig(timeout_s=JOB_TIMEOUT_S),
                    expected_jobs=len(jobs),
                    discovery=found,
                ) as scheduler:
                    course = Course(options, jobs, folder, scheduler, evidence)
                    course.run(on_status, say, stop)
                    early = evidence.interrupted or bool(evidence.given_up)
                    if not early:
                        evidence.left += _left_over(run_label(run_dir), found)
                    scheduler.close(cancel=early)
                evidence.watch = watch.stop()
            finally:
                watch.close()
        evidence.wall_s = time.monotonic() - began
        course.look_back()
        evidence.left += rows_left(run_label(run_dir))
        evidence.journal = read_journal(run_dir / "journal.sqlite")
        evidence.step_runs = read_diaries(run_dir)
        evidence.probe_faults = sum(probe.faults for probe in faulty)
        return judge(jobs, evidence, virtual=options.virtual is not None, seed=options.seed)
    finally:
        found.close()
        # The guard around a faulty probe closes it in a thread, and virtual devices must be gone at the end.
        plain.close()


def _left_over(run: str, found: Discovery) -> list[str]:
    """Promises and charges of the run that are still there now, when every job has ended."""
    deadline = time.monotonic() + SETTLE_S
    with Reservations(run=f"stress-end-{os.getpid()}") as table:
        while True:
            left = [
                f"{row.nbytes} bytes of {row.device} for {row.job} by process {row.process.pid}"
                for row in table.rows()
                if row.run == run
            ]
            left += [
                f"{charge.nbytes} bytes charged to {device.uuid} for {charge.owner}"
                for device in found.devices
                if device.kind is DeviceKind.VIRTUAL
                for charge in VirtualDeviceMemory(device.uuid).charges()
                if charge.owner != OWNER
            ]
            if not left or time.monotonic() > deadline:
                return left
            threading.Event().wait(TURN_S)


@contextlib.contextmanager
def _own_estimates(folder: Path) -> Iterator[None]:
    """What is learned of these jobs is of no use for others, and a seed should begin with nothing learned."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before
