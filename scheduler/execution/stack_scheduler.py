"""`StackScheduler(client)`: stack jobs on any Dask cluster, as futures."""

import concurrent.futures
import itertools
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from distributed import Client

from scheduler.config.model import DevicesConfig, JobsConfig, MemoryConfig, StepConfig
from scheduler.core.model import DeviceSnapshot
from scheduler.core.policy import OnPressure, Pin, Policy
from scheduler.execution.announcer import Announcer
from scheduler.execution.crew import ClusterTerms
from scheduler.execution.devices import run_label, virtual_tag
from scheduler.execution.driver import nobody
from scheduler.execution.errors import ClusterError
from scheduler.execution.job_ends import job_source, job_target, results_of, tables_of
from scheduler.execution.jobs import Chain, JobRequest
from scheduler.execution.prepare import step_spec
from scheduler.execution.record import JournalRecord
from scheduler.execution.results import JobFailedError, JobResult
from scheduler.execution.run_lock import new_run_id
from scheduler.execution.run_settings import WorkerSettings
from scheduler.execution.session import CLOSED, Session, StackFuture
from scheduler.execution.status import RunSummary
from scheduler.execution.worker_plugin import read_worker_pids
from scheduler.execution.workplace import versions
from scheduler.host.probes import Discovery
from scheduler.host.reservations import Reservations
from scheduler.steps.resolve import StepSpec

__all__ = [
    "ClusterError",
    "JobFailedError",
    "JobResult",
    "StackFuture",
    "StackJob",
    "StackScheduler",
]

# How long a worker of somebody else's cluster that is being closed may take to end what it has.
DRAIN_S = 25.0
_NAME = re.compile(r"(?!\.)[^/\x00-\x1f\ud800-\udfff]+")
# A log's file name: 255 bytes on most file systems, with its suffix.
_NAME_BYTES = 200
Step = str | Mapping[str, Any] | StepSpec | Callable[..., Any]
_Section = TypeVar("_Section", DevicesConfig, MemoryConfig, JobsConfig)


@dataclass(frozen=True)
class StackJob:
    """One stack to be processed, or several together.

    Attributes
    ----------
    inputs
        The `[Z, Y, X]` stack: a NumPy array, which is sent to the worker; a file of planes (multi-page TIFF,
        OME-TIFF, OME-Zarr), or a sequence of files with one plane each, which the workers must be able to
        read; or a `StackSource` of `find_stacks`. Or a mapping of names to several of these: a step takes
        them by `inputs`, as `{"use": "mylab.cells:segment", "inputs": ["image", "nuclei"]}`.
    steps
        Each as in the YAML's `steps`: a built-in's name or `package.module:function`, or a mapping with `use`
        and, if need be, `with`, `inputs`, `outputs`, `arrays`, `memory`, `declare`; or a decorated function
        that the workers can import.
    output
        Where the result is written, by its suffix as OME-TIFF (.ome.tif), TIFF (.tif) or OME-Zarr
        (.ome.zarr); None if it isn't. Where the steps give several stacks, a mapping of their names to paths.
        A step's table goes beside the first, with the suffix .csv.
    name
        Names the job in the journal and its log; one is made if it is None.
    priority
        Jobs of a higher one go first.
    timeout_s
        Seconds that an attempt may take.
    """

    inputs: Any
    steps: Sequence[Step]
    output: str | Path | Mapping[str, str | Path] | None = None
    name: str | None = None
    priority: int = 0
    timeout_s: float | None = None


class StackScheduler(Session):
    """Runs stack jobs on the workers of a Dask cluster, each where its memory is free.

        with StackScheduler(client) as scheduler:
            future = scheduler.submit(StackJob("cells.tif", ["gaussian"]), returns="array")
            smooth = future.result().check().arrays["stack"]

    Leaving the block waits for every job; an exception in it stops the scheduler instead. Workers that come
    later are used; those that leave end what they have. The cluster itself goes on.

    Parameters
    ----------
    client
        Connected to any cluster: workers of `dask worker`, of dask-cuda, of a `LocalCluster`. Stackyard must
        be importable by its scheduler and its workers. A worker is bound to the first GPU of its
        CUDA_VISIBLE_DEVICES, or serves the CPU.
    devices, memory, jobs
        As the YAML's sections of these names: `headroom`; `on_pressure`, `host_limit`, `reproducible`;
        `timeout_s`, `priority`, `max_failures`.
    run_dir
        A new folder for the journal, status.json and the jobs' logs; a temporary one if it is None.

    Raises
    ------
    ClusterError
        One of its processes can't import Stackyard, or a worker isn't ready within a minute.
    pydantic.ValidationError
        A section says something unknown.
    """

    def __init__(
        self,
        client: Client,
        *,
        devices: DevicesConfig | Mapping[str, Any] | None = None,
        memory: MemoryConfig | Mapping[str, Any] | None = None,
        jobs: JobsConfig | Mapping[str, Any] | None = None,
        run_dir: str | Path | None = None,
        _record: JournalRecord | None = None,
        _own: "OwnCluster | None" = None,
        _expected: Callable[[], bool] = lambda: True,
        _pins: Mapping[str, Pin] | None = None,
    ) -> None:
        _check_client(client)
        device_section = _section(DevicesConfig, devices)
        memory_section = _section(MemoryConfig, memory)
        self._jobs = _section(JobsConfig, jobs)
        self._own = _own
        self._numbers = itertools.count(1)
        self._chains: dict[tuple[StepSpec, ...], Chain] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if _record is None:
            if run_dir is None:
                self._folder = tempfile.TemporaryDirectory(prefix="stackyard-")
            run_dir = (
                Path(self._folder.name, new_run_id()) if self._folder else Path(run_dir or "").absolute()
            )
            _record = JournalRecord.begin(run_dir, {})
        self.summary: RunSummary | None = None
        self._announcer = Announcer(client, _record)
        _record.tell_start()
        super().__init__(
            client,
            _settings(_record.run_dir, device_section, memory_section, _own),
            _record,
            policy=Policy(
                on_pressure=OnPressure(memory_section.on_pressure),
                reproducible=memory_section.reproducible,
                elastic=_own is None,
                max_failures=self._jobs.max_failures,
            ),
            terms=ClusterTerms(elastic=_own is None, drain_s=0.0 if _own else DRAIN_S, expected=_expected),
            take_snapshots=_own.snapshots if _own is not None else None,
            pins=_pins,
            table_holder=_own.reservations.holder if _own is not None else nobody,
        )
        self._announcer.start()

    @property
    def run_dir(self) -> Path:
        """The folder of the journal, status.json and the jobs' logs."""
        return self.record.run_dir

    def submit(self, job: StackJob, *, returns: Literal["array"] | None = None) -> StackFuture:
        """Take one job in; it runs as soon as a device has room for it.

        Parameters
        ----------
        returns
            "array" brings the result back as a copy, in `JobResult.arrays`.

        Raises
        ------
        StepError, InputError, OutputError, StackError, ValueError
            The job can't be used, and what to do about it; nothing was taken in.
        RuntimeError
            The scheduler is closed, or has stopped after so many equal failures.
        """
        return self.map([job], returns=returns)[0]

    def map(self, jobs: Iterable[StackJob], *, returns: Literal["array"] | None = None) -> list[StackFuture]:
        """Take many jobs in at once, all or none; the futures are in their order. Errors as of `submit`."""
        if returns not in (None, "array"):
            raise ValueError(f"returns is {returns!r}; it may be 'array' or None")
        return self.submit_requests([self._request(job, returns is not None) for job in jobs])

    def as_completed(
        self, futures: Iterable[StackFuture], timeout: float | None = None
    ) -> Iterator[StackFuture]:
        """The futures in the order in which their jobs end. Raises TimeoutError after `timeout` seconds."""
        yield from concurrent.futures.as_completed(futures, timeout)  # type: ignore[misc]  # futures of ours

    def close(self, *, cancel: bool = False) -> None:
        """Wait for every job, or give up those that aren't done, and leave the cluster.

        A second call does nothing.
        """
        if self.summary is not None:
            return
        if cancel:
            self.stop(CLOSED, grace_s=0.0)
        self.finish()
        self.join()
        try:
            self.summary = self.sum_up()
        finally:
            self._announcer.close()
            if self._own is None:
                self.disconnect()
            self._remove_folder()

    def _end_at_once(self, reason: str) -> None:
        super()._end_at_once(reason)
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def worker_pids(self) -> list[int]:
        """The processes of an embedded cluster that have ever worked here, those that died included."""
        return read_worker_pids(self.run_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    def _request(self, job: StackJob, returns_array: bool) -> JobRequest:
        if not isinstance(job, StackJob):
            raise TypeError(f"a job is a StackJob, not of type {type(job).__name__}")
        _check_terms(job)
        chain, source = self._chain(job.steps), job_source(job.inputs)
        return JobRequest(
            job_id=job.name if job.name is not None else self._new_name(),
            chain=chain,
            source=source,
            output=job_target(
                job.output, self.record.run_dir.name, results_of(chain, source), tables_of(chain, source)
            ),
            returns_array=returns_array,
            priority=job.priority,
            timeout_s=job.timeout_s if job.timeout_s is not None else self._jobs.timeout_s,
        )

    def _new_name(self) -> str:
        names = (f"job-{next(self._numbers):06}" for _ in itertools.repeat(None))
        return next(name for name in names if name not in self._names_taken)

    def _chain(self, steps: Sequence[Step]) -> Chain:
        if isinstance(steps, str | Mapping) or not steps:
            raise ValueError("steps must be a sequence of one or more steps")
        specs = tuple(_spec(step) for step in steps)
        # Resolving imports modules and checks keywords: once for each chain, not for each of its jobs.
        if specs not in self._chains:
            self._chains[specs] = Chain.of(specs)
        return self._chains[specs]


@dataclass(frozen=True, slots=True)
class OwnCluster:
    """A cluster whose workers the driver has started on this host: it knows their devices and reads them."""

    discovery: Discovery
    reservations: Reservations

    def snapshots(self) -> list[DeviceSnapshot]:
        """Every device's memory now."""
        return self.discovery.snapshots(self.reservations)


def _settings(
    run_dir: Path, devices: DevicesConfig, memory: MemoryConfig, own: OwnCluster | None
) -> WorkerSettings:
    if own is not None:
        tag = virtual_tag(devices, run_dir)
        return WorkerSettings(run_label(run_dir), str(run_dir), own.discovery.devices, virtual_tag=tag)
    share = isinstance(memory.host_limit, str)
    return WorkerSettings(
        run_label(run_dir),
        str(run_dir),
        host_share=float(str(memory.host_limit).removesuffix("%")) / 100 if share else 1.0,
        host_limit=0 if share else int(memory.host_limit),
        headroom_bytes=int(devices.headroom),
        drain_s=DRAIN_S,
        versions=tuple(versions().items()),
    )


def _check_client(client: Client) -> None:
    if client.status != "running":
        raise ClusterError(f"the Dask client isn't connected: it is {client.status}")
    if client.asynchronous:
        raise ClusterError("the Dask client is an asynchronous one: take one made outside of coroutines")


def _section(model: type[_Section], given: _Section | Mapping[str, Any] | None) -> _Section:
    return given if isinstance(given, model) else model.model_validate(given or {})


def _check_terms(job: StackJob) -> None:
    """Raise ValueError for what would upset the driver, and with it every other job."""
    name, priority, timeout_s = job.name, job.priority, job.timeout_s
    fit = name is None or (
        isinstance(name, str) and _NAME.fullmatch(name) and len(name.encode()) <= _NAME_BYTES
    )
    if not fit:
        raise ValueError(
            f"job name {name!r} must be fit for a file: text without a slash or a dot in front, "
            f"{_NAME_BYTES} bytes at most"
        )
    if not isinstance(priority, int):
        raise ValueError(f"priority is {priority!r}; it must be a whole number")
    if timeout_s is not None and not (isinstance(timeout_s, int | float) and timeout_s > 0):
        raise ValueError(f"timeout_s is {timeout_s!r}; it must be seconds above 0, or None")


def _spec(step: Step) -> StepSpec:
    if isinstance(step, StepSpec):
        return step
    if isinstance(step, str):
        step = {"use": step}
    if isinstance(step, Mapping):
        section = StepConfig.model_validate(step)
        by_fields = [name for name, choice in section.inputs.items() if not isinstance(choice, str)]
        if by_fields:
            raise ValueError(
                f"{section.use}: inputs.{by_fields[0]}: the job's inputs have names here: give one of them"
            )
        return step_spec(section, Path.cwd())
    module, name = getattr(step, "__module__", None), getattr(step, "__qualname__", "")
    if module in (None, "__main__") or not name or "<" in name:
        raise ValueError(
            f"{step!r} can't be imported by a worker: put it into a module, and name it module:function"
        )
    return StepSpec(use=f"{module}:{name}", search_path=(str(Path.cwd()),))
