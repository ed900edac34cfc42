"""On which classes of devices a group could run, by which plans, and what each would need.

No load considered.
"""

from collections.abc import Sequence

from scheduler.core.accounts import DeviceClass
from scheduler.core.footprint import Estimates
from scheduler.core.model import JobPlan, gib
from scheduler.core.policy import OnPressure
from scheduler.core.records import Group, Option


def find_options(
    group: Group, classes: list[DeviceClass], estimates: Estimates
) -> dict[int, tuple[Option, ...]]:
    """Options by class index, in the order of the plans; empty if the group can never run.

    Blocks are an option on GPUs only where the whole fits on none of them. A second plan is an option beside
    a first only if it needs less memory.
    """
    whole = tuple(plan for plan in group.plans if plan.split is None)
    split = tuple(plan for plan in group.plans if plan.split is not None)
    gpus = [cls for cls in classes if not cls.is_cpu]
    cpus = [cls for cls in classes if cls.is_cpu]
    found = _options_on(group, gpus, whole, estimates)
    found = found or _options_on(group, gpus, split, estimates)
    on_cpu = _options_on(group, cpus, whole, estimates)
    on_cpu = on_cpu or _options_on(group, cpus, split, estimates)
    return {**found, **on_cpu}


def _options_on(
    group: Group,
    classes: list[DeviceClass],
    plans: tuple[JobPlan, ...],
    estimates: Estimates,
) -> dict[int, tuple[Option, ...]]:
    found: dict[int, tuple[Option, ...]] = {}
    squeezed: dict[int, tuple[Option, ...]] = {}
    for cls in classes:
        if group.restricted and not any(group.permits(account.device.uuid) for account in cls.accounts):
            continue
        options: list[Option] = []
        for index, plan in enumerate(plans):
            option = _option(group, cls, plan, index, estimates)
            if option is not None and (not options or option.need < options[-1].need):
                options.append(option)
        if options:
            fits = any(option.need < cls.attempt_capacity() for option in options)
            (found if fits else squeezed)[cls.index] = tuple(options)
    # where only the margin is cut off it is tried if nowhere else has room for all of it
    return found or squeezed


def _option(group: Group, cls: DeviceClass, plan: JobPlan, index: int, estimates: Estimates) -> Option | None:
    if cls.kind not in plan.device_kinds:
        return None
    family, kind = group.family, group.kind
    host_need = max(estimates.host_bytes(family, kind, plan), group.least_host)
    host_least = max(plan.footprint.host_bytes, group.least_host)
    resident = 0
    if cls.is_cpu:
        need, least = host_need, host_least
    else:
        host_capacity = min(_host_capacity(group, cls), cls.attempt_host_bytes())
        if host_least > host_capacity:
            return None
        host_need = min(host_need, max(host_least, _nearly(host_capacity)))
        estimate = estimates.device_bytes(family, kind, plan, cls.model)
        declared = plan.footprint.device_bytes
        least = max(
            estimates.device_floor(kind, plan, cls.model) or min(declared, estimate), group.least_need
        )
        resident = plan.resident.nbytes if plan.resident is not None else 0
        need, least = max(estimate, group.least_need) + resident, least + resident
    capacity = cls.attempt_capacity()
    if least > capacity:
        return None
    # a margin alone never makes a job impossible: then it takes the whole device, or most of the host
    need = min(need, max(least, _nearly(capacity)) if cls.is_cpu else capacity)
    measured = estimates.seconds(family, plan, cls.model)
    slots = max((account.device.slots for account in cls.accounts), default=1) or 1
    return Option(
        plan=plan,
        need=need,
        host_need=need if cls.is_cpu else host_need,
        seconds=estimates.expected_seconds(family, plan) if measured is None else measured,
        measured=measured is not None,
        share=max(need / cls.capacity if cls.capacity > 0 else 1.0, 1 / slots),
        resident=resident,
        index=index,
    )


def _nearly(capacity: int) -> int:
    """The most of a host that a margin may ask for: of a small one our idle processes hold a good part."""
    return capacity - capacity // 4


def _host_capacity(group: Group, cls: DeviceClass) -> int:
    """The most host memory that there is beside a device of this class that the group may use."""
    if not group.restricted:
        return cls.host_capacity()
    return max((a.host.capacity for a in cls.accounts if group.permits(a.device.uuid)), default=0)


def too_large_for_gpus(group: Group, classes: list[DeviceClass], estimates: Estimates) -> str:
    """The figures, if the group has plans for GPUs that are here and fits on none of them; else ""."""
    kinds = {cls.kind for cls in classes if not cls.is_cpu}
    plans = tuple(plan for plan in group.plans if not kinds.isdisjoint(plan.device_kinds))
    if not plans or any(not classes[index].is_cpu for index in group.options):
        return ""
    return _why_no_plan(group, plans, classes, estimates)


def why_impossible(
    group: Group,
    classes: list[DeviceClass],
    estimates: Estimates,
    on_pressure: OnPressure = OnPressure.EARLIEST_FINISH,
) -> str:
    """Why no device could ever run this group, with the figures of each plan."""
    figures = why_not_here(group, classes, estimates, on_pressure)
    return f"can never fit: {figures}" if classes and group.plans else figures


def why_not_here(
    group: Group,
    classes: list[DeviceClass],
    estimates: Estimates,
    on_pressure: OnPressure = OnPressure.EARLIEST_FINISH,
) -> str:
    """Why none of the devices that have joined so far can run this group, with the figures of each plan."""
    if not classes:
        return "no device has joined"
    if on_pressure.keeps_off_cpu:
        figures = too_large_for_gpus(group, classes, estimates)
        if figures:
            return f"{figures}; on_pressure is {on_pressure.value}, so the CPU isn't used instead"
    return _why_no_plan(group, group.plans, classes, estimates) or "it has no plan at all"


def _why_no_plan(
    group: Group,
    plans: Sequence[JobPlan],
    classes: list[DeviceClass],
    estimates: Estimates,
) -> str:
    lines = []
    for plan in plans:
        able = [cls for cls in classes if cls.kind in plan.device_kinds]
        if not able:
            wanted = " or ".join(kind.value for kind in plan.device_kinds)
            there = ", ".join(sorted({cls.kind.value for cls in classes}))
            lines.append(f"{plan.name} runs on {wanted}, and there is only {there}")
            continue
        allowed = [account for cls in able for account in cls.accounts if group.permits(account.device.uuid)]
        if not allowed:
            lines.append(f"{plan.name}: none of the devices that it may use is left")
            continue
        largest = max(allowed, key=lambda account: account.cls.attempt_capacity())
        host_need = max(plan.footprint.host_bytes, group.least_host)
        if plan.on_cpu:
            most = max(0, largest.cls.attempt_capacity())
            each = " for one process" if most < largest.cls.capacity else ""
            lines.append(
                f"{plan.name} needs {gib(host_need)} of host memory, and {largest.device.name} has "
                f"{gib(most)}{each} at most"
            )
            continue
        model = largest.cls.model
        resident = plan.resident.nbytes if plan.resident is not None else 0
        need = max(estimates.device_bytes(group.family, group.kind, plan, model), group.least_need) + resident
        if need > largest.cls.capacity:
            lines.append(
                f"{plan.name} needs {gib(need)} of device memory, and the largest device, "
                f"{largest.device.name}, has "
                f"{gib(largest.device.total_bytes)} with {gib(largest.device.headroom_bytes)} of headroom"
            )
        else:
            most = min(_host_capacity(group, largest.cls), largest.cls.attempt_host_bytes())
            lines.append(
                f"{plan.name} needs {gib(host_need)} of host memory beside the device, and a host has "
                f"{gib(max(0, most))} at most"
            )
    return "; ".join(lines)
