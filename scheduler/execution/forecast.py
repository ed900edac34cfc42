"""How a run would go: what its jobs need by each plan, and where and when they would run, by simulation."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from scheduler.config.cluster import LocalCluster, SlurmCluster
from scheduler.config.model import RunConfig
from scheduler.core.footprint import Estimates
from scheduler.core.model import Device, DeviceKind, DeviceSnapshot, Job, JobPlan
from scheduler.core.policy import OnPressure, Policy
from scheduler.core.simulate import run_dispatcher
from scheduler.core.trace import Hog, Trace, TraceJob, TruePlan
from scheduler.execution.devices import open_devices
from scheduler.execution.jobs import Form, Forms, dispatcher_job
from scheduler.execution.plans import named_job_plans, step_types
from scheduler.execution.prepare import PreparedJob, PreparedRun, look
from scheduler.execution.run import refuse_virtual
from scheduler.execution.slurm_driver import run_scripts
from scheduler.execution.usable import Usable, fitting, installed
from scheduler.host.estimates import default_estimates_path, load_estimates
from scheduler.host.reservations import Reservations

# Strangers' memory is taken to stay as it is, and to be known before the first job comes.
_HOGS_KNOWN_S = 1.0
_FOR_GOOD_S = 1e9
_UNKNOWN_WORKERS = (
    "the cluster's workers decide which of these plans are used: their devices, and the libraries that they "
    "have, are known once they have joined"
)


@dataclass(frozen=True, slots=True)
class PlanForecast:
    """One way to run a job. Bytes are what would be reserved; `seconds` by device model, where measured."""

    plan: JobPlan
    device_bytes: int
    host_bytes: int
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FormForecast:
    """The jobs whose stacks have the same names, shapes and dtypes, and the plans for them, best first.

    Plans that cut the stack into blocks are for where the whole doesn't fit, or ran out of memory.
    """

    stacks: Forms
    jobs: int
    plans: tuple[PlanForecast, ...]

    @property
    def form(self) -> Form:
        """That of the stack that goes in, the first one of several."""
        return self.stacks[0][1]

    @property
    def whole(self) -> tuple[PlanForecast, ...]:
        """The plans that take the stack as it is."""
        return tuple(each for each in self.plans if each.plan.split is None)

    def blocks(self, whole: PlanForecast) -> tuple[PlanForecast, ...]:
        """The plans that do the same in blocks."""
        kinds = whole.plan.device_kinds
        return tuple(each for each in self.plans if each.plan.split and each.plan.device_kinds == kinds)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Everything that is known of a run before it starts.

    `expected_s` and `placements` (jobs by device name) are None until each plan that would be used has been
    measured in an earlier run; start-up of the worker processes isn't in the time. On a cluster there are no
    devices before its workers have joined. `scripts` are what Slurm is asked for, by whose they are.
    """

    prepared: PreparedRun
    devices: tuple[tuple[Device, DeviceSnapshot], ...]
    notes: tuple[str, ...]
    forms: tuple[FormForecast, ...]
    unreadable: tuple[PreparedJob, ...]
    existing: int
    expected_s: float | None
    placements: Mapping[str, int] | None
    scripts: Mapping[str, str] = field(default_factory=dict)


def forecast(config: RunConfig) -> Forecast:
    """Look at input, steps, devices and what earlier runs have learned; starts nothing and writes nothing.

    Which array libraries really work on a GPU is found out by the run itself: here an installed one counts.
    Of a cluster's workers nothing is known before they have joined: there every one counts.

    Raises
    ------
    InputError, OutputError, StepError, DevicesError, ClusterError, SlurmError
        What can't be used, and what to do about it.
    """
    prepared = look(config)
    run_id = f"plan-{time.time_ns()}"
    names = step_types(step.step for step in prepared.chain.steps)
    if isinstance(config.cluster, LocalCluster):
        devices, notes = _devices_here(config, run_id, len(prepared.jobs))
        usable: Usable = {device.kind: installed(names, device.kind) for device, _ in devices if device.slots}
    else:
        refuse_virtual(config)
        devices, notes = (), (_UNKNOWN_WORKERS,)
        usable = {kind: fitting(names, kind) for kind in _kinds_there(config)}
    readable = [
        prepared.request(job, run_id=run_id, overwrite=False) for job in prepared.jobs if not job.problem
    ]
    counts = Counter(request.forms for request in readable)
    plans = {forms: named_job_plans(prepared.chain.steps, forms, usable) for forms in sorted(counts)}
    jobs = [dispatcher_job(request, plans[request.forms]) for request in readable]
    estimates = load_estimates(default_estimates_path())
    example = {request.forms: known for request, known in zip(readable, jobs, strict=True)}
    forms = tuple(
        FormForecast(
            stacks,
            counts[stacks],
            tuple(
                _plan_forecast(plan, example[stacks], estimates, [device for device, _ in devices])
                for plan in form_plans
            ),
        )
        for stacks, form_plans in plans.items()
    )
    outcome = _simulate(jobs, forms, devices, config)
    return Forecast(
        prepared,
        devices,
        notes,
        forms,
        tuple(job for job in prepared.jobs if job.problem),
        sum(path.exists() for job in prepared.jobs for path in job.paths),
        *outcome,
        scripts=run_scripts(config, config.cluster) if isinstance(config.cluster, SlurmCluster) else {},
    )


def _devices_here(
    config: RunConfig, run_id: str, jobs: int
) -> tuple[tuple[tuple[Device, DeviceSnapshot], ...], tuple[str, ...]]:
    """The devices of this host, each with its memory now, and what is wrong with some."""
    discovery = open_devices(config.devices, config.memory, run_dir=Path(run_id), jobs=jobs)
    try:
        with Reservations(run=run_id) as reservations:
            snapshots = discovery.snapshots(reservations)
    finally:
        discovery.close()
    return tuple(zip(discovery.devices, snapshots, strict=True)), discovery.problems


def _kinds_there(config: RunConfig) -> Iterator[DeviceKind]:
    """The kinds of device that workers of the config's cluster may have."""
    cluster = config.cluster
    asked = not isinstance(cluster, SlurmCluster) or (
        cluster.inside
        or cluster.gpus
        or any(word in directive for directive in cluster.directives for word in ("gpu", "gres"))
    )
    if asked and config.devices.gpus != ():
        yield DeviceKind.CUDA
    if config.devices.cpu:
        yield DeviceKind.CPU


def _plan_forecast(plan: JobPlan, job: Job, estimates: Estimates, devices: Sequence[Device]) -> PlanForecast:
    models = dict.fromkeys(device.model for device in devices if device.kind in plan.device_kinds)
    reserved = [estimates.device_bytes(job.learns_as, job.kind, plan, model) for model in models]
    seconds = {model: estimates.seconds(job.learns_as, plan, model) for model in models}
    return PlanForecast(
        plan,
        max(reserved, default=plan.footprint.device_bytes),
        estimates.host_bytes(job.learns_as, job.kind, plan),
        {model: value for model, value in seconds.items() if value is not None},
    )


def _seconds(plan: PlanForecast) -> float:
    return next(iter(plan.seconds.values()))


def _simulate(
    jobs: Sequence[Job],
    forms: Sequence[FormForecast],
    devices: Sequence[tuple[Device, DeviceSnapshot]],
    config: RunConfig,
) -> tuple[float | None, Mapping[str, int] | None]:
    """(seconds, jobs by device name) of the same dispatcher in virtual time, where rates were measured."""
    whole = [each for form in forms for each in form.whole]
    if not devices or not jobs or any(not each.seconds for each in whole):
        return None, None
    # A plan's rate on another model than the first measured one enters as that model's speed.
    speeds = {model: _seconds(each) / seconds for each in whole for model, seconds in each.seconds.items()}
    truth = {
        form.stacks: {
            each.plan.name: TruePlan(
                each.device_bytes,
                each.host_bytes,
                # In blocks it is expected to take longer as it costs more.
                _seconds(by_whole) * each.plan.cost / by_whole.plan.cost,
            )
            for by_whole in form.whole
            for each in (by_whole, *form.blocks(by_whole))
        }
        for form in forms
    }
    plans_of = {tuple(each.plan for each in form.plans): form.stacks for form in forms}
    trace = Trace(
        "forecast",
        # A prefetched job reads while another computes: it takes no slot.
        tuple(replace(device, prefetch=0) for device, _ in devices),
        tuple(TraceJob(job, truth[plans_of[job.plans]], _HOGS_KNOWN_S) for job in jobs),
        speeds=speeds,
        hogs=tuple(
            Hog(device.uuid, 0.0, snapshot.external_bytes, _FOR_GOOD_S)
            for device, snapshot in devices
            if snapshot.external_bytes
        ),
    )
    policy = Policy(
        on_pressure=OnPressure(config.memory.on_pressure), reproducible=config.memory.reproducible
    )
    outcome = run_dispatcher(trace, policy, load_estimates(default_estimates_path()), keep_spans=True)
    if outcome.done < len(jobs):
        return None, None
    names = {device.uuid: device.name for device, _ in devices}
    placements = Counter(names[span.uuid] for span in outcome.spans or () if not span.oom)
    return outcome.makespan_s - _HOGS_KNOWN_S, {
        names[device.uuid]: placements[names[device.uuid]] for device, _ in devices
    }
