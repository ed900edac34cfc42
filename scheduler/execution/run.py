"""`run(config)`: the main job, from a config to finished outputs and an account of what ran where."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from distributed import Client

from scheduler.config.cluster import AddressCluster, LocalCluster, SlurmCluster
from scheduler.config.model import RunConfig, VirtualGpus
from scheduler.core.policy import Pin
from scheduler.execution.cluster import check_main
from scheduler.execution.devices import open_devices
from scheduler.execution.errors import ClusterError
from scheduler.execution.events import Event, taken
from scheduler.execution.jobs import JobRequest
from scheduler.execution.local import local_scheduler
from scheduler.execution.plans import named_job_plans, step_types
from scheduler.execution.prepare import PreparedRun, prepare, write_plates
from scheduler.execution.record import JournalRecord
from scheduler.execution.run_lock import new_run_id, run_lock
from scheduler.execution.slurm import slurm_cluster
from scheduler.execution.stack_scheduler import StackScheduler
from scheduler.execution.status import RunStatus, RunSummary
from scheduler.execution.usable import installed
from scheduler.execution.worker_plugin import read_worker_pids
from scheduler.host.probes import Discovery
from scheduler.images.outputs import remove_partials

VIEW_S = 0.25
CONNECT_S = 30


def run(
    config: RunConfig,
    *,
    overwrite: bool = False,
    on_status: Callable[[RunStatus], None] | None = None,
    stop: threading.Event | None = None,
    run_id: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunSummary:
    """Run a config's jobs on the cluster that it names and return how it ended.

    The embedded cluster starts worker processes, which import the caller's main module again: a script calls
    this below `if __name__ == "__main__":`.

    Parameters
    ----------
    overwrite
        Replace outputs that exist; without it they are an error before anything starts.
    on_status
        Called a few times a second, in this thread, with the state of the run.
    stop
        Set it to stop: nothing more is started, what runs gets ten seconds, what is done is kept.
    run_id
        The name of the run's folder, where it was fixed before; it may be there, without a run in it.
    on_event
        Called with each event of the run, a few times a second, in this thread.

    Raises
    ------
    InputError, OutputError, StepError, DevicesError, ClusterError
        Nothing was started: the input, the output folder, a step, a device or the cluster can't be used.
    """
    check_main()
    prepared = prepare(config, overwrite=overwrite)
    run_dir = config.output.path / ".stackyard" / (run_id or new_run_id())

    def begin() -> JournalRecord:
        write_plates(prepared, overwrite=overwrite)
        requests = [prepared.request(job, run_id=run_dir.name, overwrite=overwrite) for job in prepared.jobs]
        return JournalRecord.begin(run_dir, config.model_dump(mode="json"), requests)

    with run_lock(config, run_dir.name):
        return carry_out(
            prepared,
            run_dir,
            begin,
            overwrite=overwrite,
            on_status=on_status,
            stop=stop,
            on_event=on_event,
        )


def carry_out(
    prepared: PreparedRun,
    run_dir: Path,
    make_record: Callable[[], JournalRecord],
    *,
    overwrite: bool,
    on_status: Callable[[RunStatus], None] | None,
    stop: threading.Event | None,
    pins: Mapping[str, Pin] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunSummary:
    """Run the prepared jobs; `make_record` is called once nothing is left that could refuse them all."""
    requests = [prepared.request(job, run_id=run_dir.name, overwrite=overwrite) for job in prepared.jobs]
    told: deque[Event] = deque()

    def followed() -> JournalRecord:
        nonlocal told
        record = make_record()
        told = record.events.follow()
        return record

    def tell() -> None:
        for event in taken(told):
            if on_event is not None:
                on_event(event)

    try:
        with _scheduler(prepared, requests, run_dir, followed, pins) as scheduler:
            show = _shown_once(scheduler, on_status, tell)
            # That may take hours, in which somebody may cancel the run.
            scheduler.wait_for_worker(stop, meanwhile=show)
            if stop is None or not stop.is_set():
                scheduler.submit_requests(requests, recorded=True, stop=stop)
                scheduler.finish()
            _follow(scheduler, show, stop)
    finally:
        remove_partials(prepared.folders(), read_worker_pids(run_dir))
        tell()
    if on_status is not None and scheduler.record.status is not None:
        on_status(scheduler.record.status)
    assert scheduler.summary is not None
    return scheduler.summary


def _shown_once(
    scheduler: StackScheduler, on_status: Callable[[RunStatus], None] | None, tell: Callable[[], None]
) -> Callable[[], None]:
    """What calls `tell`, and hands the last moment of the run to `on_status`, unless that has been done."""
    shown: RunStatus | None = None

    def show() -> None:
        nonlocal shown
        tell()
        status = scheduler.status()
        if on_status is not None and status is not None and status is not shown:
            on_status(status)
            shown = status

    return show


def _follow(scheduler: StackScheduler, show: Callable[[], None], stop: threading.Event | None) -> None:
    """Wait for the end of the run, show its moments, and hand on the wish to stop it."""
    while not scheduler.join(VIEW_S):
        if stop is not None and stop.is_set():
            scheduler.stop("the run is being stopped")
            stop = None
        show()
    if scheduler.error is not None:
        raise scheduler.error


@contextlib.contextmanager
def _scheduler(
    prepared: PreparedRun,
    requests: Sequence[JobRequest],
    run_dir: Path,
    make_record: Callable[[], JournalRecord],
    pins: Mapping[str, Pin] | None,
) -> Iterator[StackScheduler]:
    """The scheduler on the cluster that the config names."""
    config = prepared.config
    with contextlib.ExitStack() as stack:
        match config.cluster:
            case LocalCluster(metrics_port=port):
                discovery = open_devices(
                    config.devices, config.memory, run_dir=run_dir, jobs=len(requests)
                )
                stack.callback(discovery.close)
                _check_plans(prepared, requests, discovery)
                own = local_scheduler(
                    run_dir=run_dir,
                    devices=config.devices,
                    memory=config.memory,
                    jobs=config.jobs,
                    discovery=discovery,
                    record=make_record(),
                    pins=pins,
                    metrics_port=port,
                )
                yield stack.enter_context(own)
                return
            case AddressCluster(address=address):
                refuse_virtual(config)
                client, expected = stack.enter_context(_connected(address)), lambda: True
                record = make_record()
            case SlurmCluster():
                refuse_virtual(config)
                record = make_record()
                workers = stack.enter_context(
                    slurm_cluster(config.cluster, config.devices, run_dir=run_dir, remark=record.remark)
                )
                client, expected = workers.client, workers.expected
        scheduler = StackScheduler(
            client,
            devices=config.devices,
            memory=config.memory,
            jobs=config.jobs,
            _record=record,
            _expected=expected,
            _pins=pins,
        )
        yield stack.enter_context(scheduler)


def refuse_virtual(config: RunConfig) -> None:
    """Raise ClusterError for virtual GPUs, which are accounts of the one host that a local cluster is on."""
    if isinstance(config.devices.gpus, VirtualGpus):
        raise ClusterError("devices.gpus: virtual GPUs are there with cluster kind local only")


def _check_plans(prepared: PreparedRun, requests: Sequence[JobRequest], discovery: Discovery) -> None:
    """Raise StepError, before a process is started, if no device here can run the chain on a job's stacks."""
    names = step_types(step.step for step in prepared.chain.steps)
    usable = {device.kind: installed(names, device.kind) for device in discovery.devices if device.slots}
    for forms in sorted({request.forms for request in requests}):
        named_job_plans(prepared.chain.steps, forms, usable)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ClusterError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        yield client
