"""A stress test from its options to its account: the real scheduler on its own cluster, under pressure."""

import contextlib
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import tifffile

from pools.virtual import VirtualDeviceMemory
from scheduler.config.model import JobsConfig
from scheduler.core.model import DeviceKind
from scheduler.execution.local import local_scheduler
from scheduler.execution.session import StackFuture
from scheduler.execution.stack_scheduler import StackJob, StackScheduler
from scheduler.execution.status import RunStatus
from scheduler.host.probes import Discovery
from scheduler.host.reservations import Reservations
from scheduler.stress import slow_disk
from scheduler.stress.account import StressAccount, judge
from scheduler.stress.devices import find_devices, smallest_gpu
from scheduler.stress.diary import read_diaries
from scheduler.stress.evidence import Evidence, JobEnd, read_journal, rows_left
from scheduler.stress.expected import difference, difference_of_file, expected_result
from scheduler.stress.faults import FaultyProbe, with_faults
from scheduler.stress.hogs import OWNER, Hogs
from scheduler.stress.kills import Killer
from scheduler.stress.options import StressOptions
from scheduler.stress.placements import Placements
from scheduler.stress.watch import Watch
from scheduler.stress.workload import StressJob, input_stack, make_workload

# So many jobs are waiting or running at a time; the next ones come when some have ended.
WINDOW = 256
TURN_S = 0.1
# Nothing ends for so long: the jobs that are left are lost.
STALL_S = 240.0
# What promises and charges may take to be given back once the last job has ended.
SETTLE_S = 5.0
JOB_TIMEOUT_S = 600.0

INPUTS, RESULTS = "inputs", "results"


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
    StressError, DevicesError
        Nothing was started: a device isn't there, or something is missing to use it.
    """
    tag = f"stress-{secrets.token_hex(4)}"
    devices, found = find_devices(options, tag)
    faulty: list[FaultyProbe] = []
    if options.faults:
        found, faulty = with_faults(found, options.seed)
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
            watch = Watch(found.devices, tag, hogs.held, hogs.uuids)
            try:
                with local_scheduler(
                    run_dir=run_dir,
                    devices=devices,
                    jobs=JobsConfig(timeout_s=JOB_TIMEOUT_S),
                    expected_jobs=len(jobs),
                    discovery=found,
                ) as scheduler:
                    course = _Course(options, jobs, folder, scheduler, evidence)
                    course.run(on_status, say, stop)
                    evidence.left += _left_over(tag, found)
                    scheduler.close(cancel=evidence.interrupted or bool(evidence.given_up))
                evidence.watch = watch.stop()
            finally:
                watch.close()
        evidence.wall_s = time.monotonic() - began
        course.look_back()
        evidence.left += rows_left(tag)
        evidence.journal = read_journal(run_dir / "journal.sqlite")
        evidence.step_runs = read_diaries(run_dir)
        evidence.probe_faults = sum(probe.faults for probe in faulty)
        return judge(jobs, evidence, virtual=options.virtual is not None, seed=options.seed)
    finally:
        found.close()


class _Course:
    """The jobs of a stress test under way: what is handed in, what has ended, and what happens meanwhile."""

    def __init__(
        self,
        options: StressOptions,
        jobs: Sequence[StressJob],
        folder: Path,
        scheduler: StackScheduler,
        evidence: Evidence,
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._coming = iter(jobs)
        self._folder = folder
        self._scheduler = scheduler
        self._evidence = evidence
        self._killer = Killer(len(jobs), options.kill_workers, options.seed)
        self._placements = Placements([folder / RESULTS, folder / slow_disk.FOLDER])
        self._ended: queue.SimpleQueue[StackFuture] = queue.SimpleQueue()
        self._outstanding = 0
        self._shown: RunStatus | None = None

    def run(
        self, on_status: Callable[[RunStatus], None], say: Callable[[str], None], stop: threading.Event
    ) -> None:
        """Hand in every job and wait for its end, or until `stop` is set, or nothing moves any more."""
        last = time.monotonic()
        with Reservations(run=f"stress-kills-{os.getpid()}") as table:
            while self._hand_in():
                if self._take_ended():
                    last = time.monotonic()
                elif time.monotonic() - last > STALL_S:
                    self._evidence.given_up = f"nothing has ended for {STALL_S:.0f} s"
                    return
                self._placements.look()
                self._kill(table, say)
                self._show(on_status)
                if stop.is_set():
                    self._evidence.interrupted = True
                    return

    def look_back(self) -> None:
        """After the end: is each result still what it was when its job was reported as done?"""
        evidence, placements = self._evidence, self._placements
        placements.look()
        evidence.missing |= {_job_of(path) for path in placements.missing()}
        evidence.changed |= {_job_of(path) for path in placements.changed()}
        evidence.replaced |= {_job_of(path) for path in placements.replaced} - evidence.changed

    def _hand_in(self) -> bool:
        """Hand in what there is room for; False when every job has ended, or the scheduler takes none."""
        batch = list(islice(self._coming, WINDOW - self._outstanding))
        for returns in (None, "array"):
            chosen = [job for job in batch if job.to_file is (returns is None)]
            try:
                futures = self._scheduler.map(map(self._stack_job, chosen), returns=returns)
            except RuntimeError as error:
                self._evidence.given_up = f"the scheduler takes no more jobs: {error}"
                return False
            self._outstanding += len(futures)
            for future in futures:
                future.add_done_callback(self._ended.put)  # type: ignore[arg-type]  # it is called with itself
        return self._outstanding > 0

    def _take_ended(self) -> bool:
        """Wait a little for jobs to end, and look at their results; True if any did."""
        with contextlib.suppress(queue.Empty):
            self._look_at(self._ended.get(timeout=TURN_S))
            # Values are compared here: leave time for the rest of the turn.
            until = time.monotonic() + TURN_S
            while time.monotonic() < until:
                self._look_at(self._ended.get_nowait())
            return True
        return False

    def _stack_job(self, job: StressJob) -> StackJob:
        family = job.family
        stack = input_stack(job)
        source = self._folder / INPUTS / f"{job.name}.tif"
        if job.from_file:
            tifffile.imwrite(source, stack, photometric="minisblack", metadata={"axes": "ZYX"})
        keywords = {
            "bytes_per_voxel": family.bytes_per_voxel,
            "rounds": family.mixing.rounds,
            "weights": list(family.mixing.weights),
            "offset": family.mixing.offset,
            "hold_s": family.hold_s,
        }
        steps = [{"use": "scheduler.stress.steps:strain", "with": keywords}]
        if family.turned:
            steps.append({"use": "scheduler.stress.steps:turn"})
        return StackJob(
            inputs=source if job.from_file else stack,
            steps=steps,
            output=self._output(job) if job.to_file else None,
            name=job.name,
            priority=job.priority,
        )

    def _output(self, job: StressJob) -> Path:
        return self._folder / (slow_disk.FOLDER if job.slow_disk else RESULTS) / f"{job.name}.ome.tif"

    def _look_at(self, future: StackFuture) -> None:
        job = self._jobs[future.name]
        self._outstanding -= 1
        if future.cancelled() or future.exception() is not None:
            reason = (
                "" if future.cancelled() else f"{type(future.exception()).__name__}: {future.exception()}"
            )
            self._evidence.ends[job.name].append(JobEnd("cancelled" if not reason else "error", reason))
            return
        result = future.result()
        wrong = ""
        if result.outcome == "done" and job.to_file:
            self._placements.told(self._output(job))
            wrong = difference_of_file(self._output(job), expected_result(job))
        elif result.outcome == "done":
            wrong = difference(result.arrays.get("stack"), expected_result(job))
        self._evidence.ends[job.name].append(JobEnd(str(result.outcome), result.reason, wrong))
        if job.from_file:
            (self._folder / INPUTS / f"{job.name}.tif").unlink()

    def _kill(self, table: Reservations, say: Callable[[str], None]) -> None:
        ended = len(self._evidence.ends)
        due = self._killer.is_due_after
        if due is None or ended < due:
            return
        run = self._scheduler.run_dir.name
        rows = [row for row in table.rows() if row.run == run]
        kill = self._killer.act(ended, self._scheduler.worker_pids(), rows)
        if kill is not None:
            self._evidence.kills.append(kill)
            say(f"killed worker {kill.pid}, which had {len(kill.jobs)} jobs")

    def _show(self, on_status: Callable[[RunStatus], None]) -> None:
        status = self._scheduler.status()
        if status is None or status is self._shown:
            return
        self._shown = status
        total = len(self._jobs)
        left = total - status.done - status.failed
        eta_s = left / status.rate_per_s if status.rate_per_s and left else None
        on_status(replace(status, jobs=total, eta_s=eta_s))


def _job_of(path: Path) -> str:
    return path.name.removesuffix(".ome.tif")


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
