"""`run(config)`: the main job, from a config to finished outputs and an account of what ran where."""

import secrets
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from scheduler.config.model import RunConfig
from scheduler.core.dispatcher import Dispatcher
from scheduler.core.footprint import Estimates
from scheduler.core.model import DeviceKind, JobPlan, Placement
from scheduler.core.policy import OnPressure, Policy
from scheduler.execution.attempt import AttemptTask, OutputTarget
from scheduler.execution.cluster import local_cluster
from scheduler.execution.devices import open_devices, virtual_tag
from scheduler.execution.driver import Driver
from scheduler.execution.fleet import Fleet
from scheduler.execution.jobs import Form, dispatcher_job, plans_by_form
from scheduler.execution.plans import step_types
from scheduler.execution.prepare import PreparedRun, prepare
from scheduler.execution.record import JournalRecord
from scheduler.execution.run_lock import run_lock
from scheduler.execution.status import RunStatus, RunSummary
from scheduler.execution.usable import Usable, installed, working_plans
from scheduler.execution.worker import StackyardWorker, WorkerSettings, read_worker_pids
from scheduler.host.estimates import default_estimates_path, load_estimates, save_estimates
from scheduler.host.probes import Discovery
from scheduler.host.reservations import Reservations
from scheduler.images.outputs import remove_partials


def run(
    config: RunConfig,
    *,
    overwrite: bool = False,
    on_status: Callable[[RunStatus], None] | None = None,
    stop: threading.Event | None = None,
) -> RunSummary:
    """Run a config's jobs on an embedded cluster and return how it ended.

    Starts worker processes, which import the caller's main module again: a script calls this below
    `if __name__ == "__main__":`.

    Parameters
    ----------
    overwrite
        Replace outputs that exist; without it they are an error before anything starts.
    on_status
        Called a few times a second, in this thread, with the state of the run.
    stop
        Set it to stop: nothing more is started, what runs gets ten seconds, what is done is kept.

    Raises
    ------
    InputError, OutputError, StepError, DevicesError
        Nothing was started: the input, the output folder, a step or a device can't be used.
    """
    prepared = prepare(config, overwrite=overwrite)
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    run_dir = config.output.path / ".stackyard" / run_id

    def begin() -> JournalRecord:
        return JournalRecord.begin(run_dir, config.model_dump(mode="json"), prepared.jobs, on_status)

    with run_lock(config, run_id):
        return carry_out(prepared, run_dir, begin, overwrite=overwrite, stop=stop)


def carry_out(
    prepared: PreparedRun,
    run_dir: Path,
    make_record: Callable[[], JournalRecord],
    *,
    overwrite: bool,
    stop: threading.Event | None,
) -> RunSummary:
    """Run the prepared jobs; `make_record` is called once nothing is left that could refuse them all."""
    discovery = open_devices(prepared.config, run_id=run_dir.name, jobs=len(prepared.jobs))
    try:
        names = step_types(step.step for step in prepared.steps)
        kinds = {device.kind for device in discovery.devices if device.slots}
        usable = {kind: installed(names, kind) for kind in kinds}
        plans = plans_by_form(prepared, usable)
        return _Run(prepared, discovery, make_record(), overwrite).carry_out(plans, usable, stop)
    finally:
        discovery.close()


class _Run:
    """One run under way: its folder, its record, and what its parts need of each other."""

    def __init__(
        self, prepared: PreparedRun, discovery: Discovery, record: JournalRecord, overwrite: bool
    ) -> None:
        self.prepared = prepared
        self.config = prepared.config
        self.discovery = discovery
        self.devices = discovery.devices
        self.record = record
        self.run_dir = record.run_dir
        self.run_id = record.run_dir.name
        self.overwrite = overwrite
        self.jobs = {job.job_id: job for job in prepared.jobs}
        self.record.add_devices(self.devices)
        for problem in discovery.problems:
            self.record.remark(problem)

    def carry_out(
        self,
        plans: dict[Form, tuple[JobPlan, ...]],
        usable: Usable,
        stop: threading.Event | None,
    ) -> RunSummary:
        """Start the cluster, run every job, and sum up."""
        memory = self.config.memory
        policy = Policy(
            on_pressure=OnPressure(memory.on_pressure),
            reproducible=memory.reproducible,
            max_failures=self.config.jobs.max_failures,
        )
        dispatcher = Dispatcher(policy, self.devices, self._learned())
        host = next(device for device in self.devices if device.kind is DeviceKind.CPU)
        settings = WorkerSettings(
            self.run_id, str(self.run_dir), self.devices, virtual_tag=virtual_tag(self.config, self.run_id)
        )
        state = "failed"
        try:
            with (
                Reservations(run=self.run_id) as reservations,
                local_cluster(self.devices, host_limit=host.total_bytes) as client,
            ):
                client.register_plugin(StackyardWorker(settings))
                fleet = Fleet(client, {device.uuid: device for device in self.devices})
                plans = working_plans(self.prepared, plans, usable, fleet, remark=self.record.remark)
                driver = Driver(
                    fleet,
                    dispatcher,
                    self.record,
                    make_task=self._task,
                    take_snapshots=lambda: self.discovery.snapshots(reservations),
                )
                jobs = [dispatcher_job(self.prepared, job, plans) for job in self.prepared.jobs]
                state = driver.run(jobs, stop)
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            remove_partials({job.output.parent for job in self.prepared.jobs}, read_worker_pids(self.run_dir))
            self._keep(dispatcher.estimates)
            summary = self.record.end(state, dispatcher.device_view(), interrupted=state == "interrupted")
        return summary

    def _learned(self) -> Estimates:
        """What earlier runs have learned; a file that can't be read costs a remark, not the run."""
        try:
            return load_estimates(default_estimates_path())
        except (OSError, RuntimeError, ValueError) as error:
            self.record.remark(f"starts without what earlier runs have learned: {error}")
            return Estimates()

    def _keep(self, estimates: Estimates) -> None:
        try:
            save_estimates(estimates, default_estimates_path())
        except (OSError, RuntimeError) as error:  # no home, no room, no permission
            self.record.remark(f"what was learned isn't kept for later runs: {error}")

    def _task(self, placement: Placement) -> AttemptTask:
        job = self.jobs[placement.job_id]
        return AttemptTask(
            job_id=job.job_id,
            kind=f"{placement.plan.name}:{job.source.shape}:{job.source.dtype}",
            number=placement.attempt,
            source=job.source,
            steps=self.prepared.specs,
            memory_types=placement.plan.memory_types,
            split=placement.plan.split,
            device_bytes=placement.reserve_bytes,
            host_bytes=placement.host_bytes,
            output=OutputTarget(
                path=str(job.output),
                format=self.config.output.format,
                overwrite=self.overwrite,
                provenance={"stackyard": version("stackyard"), "run": self.run_id},
            ),
        )
