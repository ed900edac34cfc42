"""A run before it starts: jobs, plans with their conversions and footprints, devices, expected time."""

from collections.abc import Iterator
from math import prod
from operator import attrgetter
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from memcore.info import bytes_text, item_size
from scheduler.core.model import DeviceSnapshot
from scheduler.execution.forecast import Forecast, FormForecast, PlanForecast
from scheduler.execution.jobs import Form
from scheduler.screens.words import count_text, duration_text, path_text, printable

UNMEASURED = "not known before a run has measured this chain on each device that it may use"


def draw_forecast(forecast: Forecast) -> RenderableType:
    """Everything that `forecast` knows, for a person."""
    parts: list[RenderableType] = []
    parts += [_stacks(form) for form in forecast.forms]
    parts += [
        Text(printable(f"can't be read: {job.job_id}: {job.problem}"), style="red")
        for job in forecast.unreadable
    ]
    chain = " → ".join(step.name for step in forecast.prepared.chain.steps)
    parts.append(Text.assemble(("Steps    ", "bold"), printable(chain)))
    existing = f" ({count_text(forecast.existing, 'result')} there already)" if forecast.existing else ""
    more = " and so on" if len(forecast.prepared.jobs) > 1 else ""
    results = f"{path_text(forecast.prepared.jobs[0].output)}{more}{existing}"
    parts.append(Text.assemble(("Results  ", "bold"), results))
    for form in forecast.forms:
        parts += [Text(), _plans(form, several=len(forecast.forms) > 1), *_about_plans(form)]
    parts += [Text(), *([_devices(forecast)] if forecast.devices else [])]
    parts += [Text(printable(note), style="yellow") for note in forecast.notes]
    virtual = [device.name for device, _ in forecast.devices if device.virtual]
    if virtual:
        parts.append(
            Text(f"{', '.join(virtual)}: virtual, an account of bytes and no hardware", style="yellow")
        )
    expected = UNMEASURED
    if forecast.expected_s is not None:
        expected = f"about {duration_text(forecast.expected_s)}, by simulation with measured rates"
    parts.append(Text.assemble(("Time     ", "bold"), expected))
    return Group(*parts)


def forecast_json(forecast: Forecast) -> dict[str, Any]:
    """The same as an object; bytes and seconds, null where nothing is known."""
    return {
        "jobs": len(forecast.prepared.jobs),
        "steps": [step.use for step in forecast.prepared.chain.steps],
        "results": {"folder": str(forecast.prepared.config.output.path), "existing": forecast.existing},
        "unreadable": [{"job": job.job_id, "reason": job.problem} for job in forecast.unreadable],
        "forms": [
            {
                "shape": list(form.form[0]),
                "dtype": form.form[1],
                "stacks": {
                    name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype) in form.stacks
                },
                "jobs": form.jobs,
                "plans": [_plan_record(plan) for plan in form.plans],
            }
            for form in forecast.forms
        ],
        "devices": [
            {
                "name": device.name,
                "uuid": device.uuid,
                "kind": str(device.kind),
                "virtual": device.virtual,
                "total_bytes": snapshot.total_bytes,
                "free_bytes": _free(snapshot),
                "slots": device.slots,
                "jobs": None if forecast.placements is None else forecast.placements[device.name],
            }
            for device, snapshot in forecast.devices
        ],
        "notes": list(forecast.notes),
        "expected_s": forecast.expected_s,
        "slurm": dict(forecast.scripts) or None,
    }


def _plan_record(plan: PlanForecast) -> dict[str, Any]:
    return {
        "name": plan.plan.name,
        "device_kinds": [str(kind) for kind in plan.plan.device_kinds],
        "memory_types": [str(name) for name in plan.plan.memory_types],
        "conversions": list(plan.plan.conversions),
        "blocks": plan.plan.split.blocks if plan.plan.split else None,
        "device_bytes": plan.device_bytes,
        "host_bytes": plan.host_bytes,
        "seconds": dict(plan.seconds),
    }


def _free(snapshot: DeviceSnapshot) -> int | None:
    return None if snapshot.used_bytes is None else max(0, snapshot.total_bytes - snapshot.used_bytes)


def _stacks(form: FormForecast) -> Text:
    each = sum(prod(shape) * item_size(dtype) for _, (shape, dtype) in form.stacks)
    if len(form.stacks) > 1:
        stacks = ", ".join(f"{name} {_form(stack)}" for name, stack in form.stacks)
        what = f"{count_text(form.jobs, 'job')} of {stacks}; {bytes_text(each)} each"
    else:
        what = f"{count_text(form.jobs, 'stack')} of {_form(form.form)}, {bytes_text(each)} each"
    return Text.assemble(("Input    ", "bold"), what)


def _form(form: Form) -> str:
    shape, dtype = form
    return f"{' × '.join(map(str, shape))} {dtype}"


def _plans(form: FormForecast, *, several: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(f"plan for {_form(form.form)}" if several else "plan")
    table.add_column("array libraries", overflow="fold")
    for name in ("device memory", "host memory", "seconds a job"):
        table.add_column(name, justify="right")
    for each in form.whole:
        times = ", ".join(
            f"{value:.1f}" if value >= 1 else f"{value:#.2g}" for value in each.seconds.values()
        )
        table.add_row(
            each.plan.name,
            " → ".join(dict.fromkeys(map(str, each.plan.memory_types))),
            bytes_text(each.device_bytes) if each.device_bytes else "–",
            bytes_text(each.host_bytes),
            times or "unmeasured",
        )
    return table


def _about_plans(form: FormForecast) -> Iterator[Text]:
    for each in form.whole:
        if each.plan.conversions:
            what = "converts of each stack" if len(form.stacks) > 1 else "converts"
            yield Text(f"{each.plan.name} {what} {'; '.join(each.plan.conversions)}", style="dim")
        blocks = form.blocks(each)
        bytes_of = attrgetter("device_bytes" if each.device_bytes else "host_bytes")
        least = min(blocks, key=bytes_of, default=each)
        # A small stack has more halo than is saved by cutting it.
        if bytes_of(least) < bytes_of(each):
            most = least.plan.split.blocks if least.plan.split else 1
            yield Text(
                f"{each.plan.name} can be cut, where the whole doesn't fit: in {most} blocks it needs"
                f" {bytes_text(bytes_of(least))}",
                style="dim",
            )


def _devices(forecast: Forecast) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("device")
    table.add_column("kind")
    for name in ("total", "free", "at once", "jobs"):
        table.add_column(name, justify="right")
    for device, snapshot in forecast.devices:
        free = _free(snapshot)
        table.add_row(
            Text(printable(device.name), style="bold"),
            device.kind,
            bytes_text(snapshot.total_bytes),
            "unknown" if free is None else bytes_text(free),
            str(device.slots),
            "" if forecast.placements is None else str(forecast.placements[device.name]),
        )
    return table
