"""The jobs of a stress test under way: handed in, watched, and compared with what they must be."""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import tifffile

from scheduler.execution.devices import run_label
from scheduler.execution.session import StackFuture
from scheduler.execution.stack_scheduler import StackJob, StackScheduler
from scheduler.execution.status import RunStatus
from scheduler.host.reservations import Reservations
from scheduler.stress import slow_disk
from scheduler.stress.evidence import Evidence, JobEnd
from scheduler.stress.expected import difference, difference_of_file, expected_result
from scheduler.stress.kills import Killer
from scheduler.stress.options import StressOptions
from scheduler.stress.placements import Placements
from scheduler.stress.workload import StressJob, input_stack

# So many jobs are waiting or running at a time; the next ones come when some have ended.
WINDOW = 256
TURN_S = 0.1
# Nothing ends for so long: the jobs that are left are lost.
STALL_S = 240.0

INPUTS, RESULTS = "inputs", "results"


class Course:
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
        try:
            self._look_at(self._ended.get(timeout=TURN_S))
        except queue.Empty:
            return False
        # Values are compared here: leave time for the rest of the turn.
        until = time.monotonic() + TURN_S
        with contextlib.suppress(queue.Empty):
            while time.monotonic() < until:
                self._look_at(self._ended.get_nowait())
        return True

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
        run = run_label(self._scheduler.run_dir)
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
