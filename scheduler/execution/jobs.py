"""The dispatcher's view of a prepared run: jobs with their plans, and the names under which it learns."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from scheduler.core.model import DeviceKind, Job, JobPlan
from scheduler.execution.plans import job_plans
from scheduler.execution.prepare import PreparedJob, PreparedRun

Form = tuple[tuple[int, int, int], str]


def plans_by_form(
    prepared: PreparedRun, usable: Mapping[DeviceKind, Iterable[str]]
) -> dict[Form, tuple[JobPlan, ...]]:
    """The plans for each shape and dtype among the stacks that can be read.

    Raises
    ------
    StepError
        No kind of device can run the chain on one of them.
    """
    forms = {(job.source.shape, job.source.dtype) for job in prepared.jobs if not job.source.problem}
    return {form: job_plans(prepared.steps, *form, usable) for form in sorted(forms)}


def dispatcher_job(prepared: PreparedRun, job: PreparedJob, plans: Mapping[Form, Sequence[JobPlan]]) -> Job:
    """One stack as the dispatcher knows it; it learns by chain, parameters and dtype."""
    source = job.source
    # A stack that can't be read has no form: any plan will do to have its problem told.
    form_plans = plans.get((source.shape, source.dtype)) or next(iter(plans.values()))
    chain = [[step.use, step.parameters, step.step.memory_types] for step in prepared.steps]
    digest = hashlib.sha256(json.dumps(chain, sort_keys=True, default=str).encode()).hexdigest()[:16]
    family = f"{digest}:{source.dtype}"
    return Job(
        job.job_id,
        kind=f"{family}:{'x'.join(map(str, source.shape))}",
        family=family,
        plans=tuple(form_plans),
        priority=prepared.config.jobs.priority,
        timeout_s=prepared.config.jobs.timeout_s,
    )
