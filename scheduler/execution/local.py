"""The scheduler on an embedded cluster: this host's devices, and worker processes for them."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from scheduler.config.model import DevicesConfig, JobsConfig, MemoryConfig
from scheduler.core.model import DeviceKind
from scheduler.core.policy import Pin
from scheduler.execution.cluster import check_main, local_cluster
from scheduler.execution.devices import open_devices, run_label
from scheduler.execution.record import JournalRecord
from scheduler.execution.stack_scheduler import OwnCluster, StackScheduler
from scheduler.host.probes import Discovery
from scheduler.host.reservations import Reservations


@contextlib.contextmanager
def local_scheduler(
    *,
    run_dir: Path,
    devices: DevicesConfig | None = None,
    memory: MemoryConfig | None = None,
    jobs: JobsConfig | None = None,
    expected_jobs: int = 1 << 30,
    discovery: Discovery | None = None,
    record: JournalRecord | None = None,
    pins: Mapping[str, Pin] | None = None,
    metrics_port: int | None = None,
) -> Iterator[StackScheduler]:
    """Start worker processes on this machine and run stack jobs on them, for as long as the block takes.

    Parameters
    ----------
    run_dir
        A new folder for the journal, status.json and logs; its name is the run's.
    expected_jobs
        No more CPU processes are started than there will be jobs.
    discovery
        The devices, where they were found already; they are closed by whoever found them.
    record
        The journal, where there is one already.
    pins
        What an earlier part of a reproducible run has fixed.
    metrics_port
        Where the run's figures are served on this machine; any free port if it is None.

    Raises
    ------
    DevicesError
        A GPU that isn't there, or nothing to run on.
    ClusterError
        The worker processes don't start, or `metrics_port` is taken.
    """
    check_main()
    run_dir = run_dir.absolute()
    with contextlib.ExitStack() as stack:
        if discovery is None:
            discovery = open_devices(
                devices or DevicesConfig(), memory or MemoryConfig(), run_dir=run_dir, jobs=expected_jobs
            )
            stack.callback(discovery.close)
        if record is None:
            record = JournalRecord.begin(run_dir, {})
        host = next(device for device in discovery.devices if device.kind is DeviceKind.CPU)
        reservations = stack.enter_context(Reservations(run=run_label(run_dir)))
        client = stack.enter_context(
            local_cluster(discovery.devices, host_limit=host.total_bytes, metrics_port=metrics_port)
        )
        scheduler = StackScheduler(
            client,
            devices=devices,
            memory=memory,
            jobs=jobs,
            _record=record,
            _own=OwnCluster(discovery, reservations),
            _pins=pins,
        )
        for problem in discovery.problems:
            record.remark(problem)
        with scheduler:
            yield scheduler
