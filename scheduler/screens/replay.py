"""A run that has been, as a trace: what its journal says of jobs, devices, bytes and times."""

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from statistics import median

from scheduler.core.model import GPU_KINDS, Device, DeviceKind, Footprint, Job, JobPlan
from scheduler.core.trace import Trace, TraceJob, TruePlan

JOURNAL = "journal.sqlite"

_CPU = (DeviceKind.CPU,)
_Form = tuple[str, str]


def read_journal(path: Path) -> Trace:
    """The jobs of a run that succeeded, on the devices that it had.

    A job's bytes are those that were reserved, the best that a journal knows; its time is that of its
    successful attempt. On the other sort of device (GPU or CPU) it is given the median time of the jobs of
    its shape and dtype that ran there, and no plan where none did. All jobs arrive when they were added.

    Raises
    ------
    ValueError
        No job of the journal has succeeded, or it is no journal.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as journal:
            devices = {
                uuid: Device(uuid, name, DeviceKind(kind), total, slots, model=kind)
                for uuid, name, kind, total, slots in journal.execute(
                    "SELECT uuid, name, kind, total_bytes, slots FROM device"
                )
            }
            rows = journal.execute(
                "SELECT job.job_id, job.shape, job.dtype, job.added_at, attempt.device, attempt.device_bytes,"
                " attempt.host_bytes, attempt.ended_at - attempt.started_at"
                " FROM job JOIN attempt USING (job_id) WHERE job.state = 'done' AND attempt.ended_at IS NOT "
                "NULL"
                " AND number = (SELECT MAX(number) FROM attempt AS each WHERE each.job_id = job.job_id)"
                " ORDER BY job.added_at, job.job_id"
            ).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"{path} is no journal of a run: {error}") from error
    if not rows:
        raise ValueError(f"no job of {path} has succeeded: there is nothing to replay")
    measured: dict[_Form, dict[bool, list[TruePlan]]] = defaultdict(lambda: defaultdict(list))
    for _, shape, dtype, _, device, device_bytes, host_bytes, seconds in rows:
        on_cpu = devices[device].kind is DeviceKind.CPU
        took = TruePlan(0 if on_cpu else device_bytes, host_bytes, seconds)
        measured[shape, dtype][on_cpu].append(took)
    forms = {form: {on_cpu: _median(found) for on_cpu, found in by.items()} for form, by in measured.items()}
    plans = {form: tuple(_plan(on_cpu, by[on_cpu]) for on_cpu in sorted(by)) for form, by in forms.items()}
    began = min(row[3] for row in rows)
    jobs = []
    for job_id, shape, dtype, added_at, device, _, _, seconds in rows:
        own = devices[device].kind is DeviceKind.CPU
        by = forms[shape, dtype]
        truth = {
            _name(on_cpu): TruePlan(of.device_bytes, of.host_bytes, seconds if on_cpu == own else of.seconds)
            for on_cpu, of in by.items()
        }
        kind = f"{'x'.join(str(extent) for extent in json.loads(shape))} {dtype}"
        jobs.append(TraceJob(Job(job_id, kind, plans[shape, dtype]), truth, added_at - began))
    return Trace(path.parent.name, tuple(devices.values()), tuple(jobs), load_fraction=0.0)


def _median(found: list[TruePlan]) -> TruePlan:
    return TruePlan(
        max(plan.device_bytes for plan in found),
        max(plan.host_bytes for plan in found),
        median(plan.seconds for plan in found),
    )


def _plan(on_cpu: bool, truth: TruePlan) -> JobPlan:
    footprint = Footprint(truth.device_bytes, truth.host_bytes, "measured")
    return JobPlan(_name(on_cpu), _CPU if on_cpu else GPU_KINDS, footprint, cost=truth.seconds)


def _name(on_cpu: bool) -> str:
    return "cpu" if on_cpu else "gpu"
