"""The ways in which a chain can run on the kinds of device that are there, each with its declared bytes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from memcore import ContractError, FunctionStep, plan_chain
from memcore.backend import nbytes_of
from memcore.info import ArrayInfo
from scheduler.core.model import GPU_KINDS, DeviceKind, Footprint, JobPlan
from scheduler.steps.resolve import ResolvedStep, StepError

HOST_TYPE = "numpy"


@dataclass(frozen=True, slots=True)
class _Stage:
    """One step of a plan with its bytes: what goes in, what comes out, and what it uses beside them."""

    on_host: bool
    input_bytes: int
    output_bytes: int
    workspace_bytes: int

    @property
    def nbytes(self) -> int:
        """All that is alive while the step runs."""
        return self.input_bytes + self.output_bytes + self.workspace_bytes


def job_plans(
    steps: Sequence[ResolvedStep],
    shape: tuple[int, ...],
    dtype: str,
    usable: Mapping[DeviceKind, Iterable[str]],
) -> tuple[JobPlan, ...]:
    """The plans for a stack of this form, GPUs' first.

    On a GPU a step that is written for NumPy only runs in host memory, between two transfers.

    Parameters
    ----------
    usable
        For each kind of device that there is, the memory types that work on it.

    Raises
    ------
    StepError
        No kind of device can run the chain; the text names the step and what it lacks.
    """
    chain = [step.step for step in steps]
    keywords = [step.parameters for step in steps]
    info = ArrayInfo(HOST_TYPE, tuple(shape), dtype)
    plans: list[JobPlan] = []
    problems: list[str] = []
    for kind in (*GPU_KINDS, DeviceKind.CPU):
        if kind not in usable:
            continue
        place = "cpu" if kind is DeviceKind.CPU else "gpu"
        places = {name: [place] for name in usable[kind] if name != HOST_TYPE} | {HOST_TYPE: ["cpu"]}
        try:
            chosen = plan_chain(chain, info, places, keywords=keywords, end=HOST_TYPE)
        except ContractError as error:
            problems.append(f"{kind}: {error}")
            continue
        # The cheapest one; on a GPU only if it uses the GPU at all.
        best = next((plan for plan in chosen if place in plan.device_kinds), None)
        if best is not None:
            plans.append(_plan(kind, steps, best.memory_types, best.conversions, shape, dtype))
    if not plans:
        raise StepError(f"no device here can run the chain on {dtype} {tuple(shape)}: {'; '.join(problems)}")
    return tuple(plans)


def _plan(
    kind: DeviceKind,
    steps: Sequence[ResolvedStep],
    memory_types: Sequence[str],
    conversions: Sequence[str],
    shape: tuple[int, ...],
    dtype: str,
) -> JobPlan:
    stages = _stages(steps, memory_types, shape, dtype, all_on_host=kind is DeviceKind.CPU)
    stack_bytes = nbytes_of(tuple(shape), dtype)
    # The stack that was read stays with its reader until the result is written. The first step works on it
    # directly where the memory type allows that, so only what later steps take in counts beside it.
    in_host = [
        stage.nbytes - (stage.input_bytes if number == 0 else 0)
        for number, stage in enumerate(stages)
        # Virtual device memory is a count: the arrays themselves live in host memory.
        if stage.on_host or kind is DeviceKind.VIRTUAL
    ]
    host_bytes = stack_bytes + max([*in_host, stages[-1].output_bytes])
    device_bytes = max((stage.nbytes for stage in stages if not stage.on_host), default=0)
    return JobPlan(
        name=f"{kind}:{'+'.join(dict.fromkeys(memory_types))}",
        device_kinds=(kind,),
        footprint=Footprint(device_bytes, host_bytes),
        memory_types=tuple(memory_types),
        conversions=tuple(conversions),
        cost=sum(stage.input_bytes + stage.output_bytes for stage in stages) / (1 << 20),
    )


def _stages(
    steps: Sequence[ResolvedStep],
    memory_types: Sequence[str],
    shape: tuple[int, ...],
    dtype: str,
    *,
    all_on_host: bool,
) -> list[_Stage]:
    forms = [(tuple(shape), dtype)]
    workspaces = []
    for step, memory_type in zip(steps, memory_types, strict=True):
        contract = step.step.implementation_for(memory_type).contract
        forms.append(contract.output_for(*forms[-1], **step.parameters))
        workspaces.append(contract.workspace_for(*forms[-2], **step.parameters))
    sizes = [nbytes_of(*form) for form in forms]
    return [
        _Stage(
            on_host=all_on_host or memory_type == HOST_TYPE,
            input_bytes=before,
            output_bytes=after,
            # A step that doesn't declare its workspace is taken to use one array like its larger end.
            workspace_bytes=max(before, after) if workspace is None else workspace,
        )
        for memory_type, (before, after), workspace in zip(
            memory_types, pairwise(sizes), workspaces, strict=True
        )
    ]


def step_types(steps: Iterable[FunctionStep]) -> tuple[str, ...]:
    """Every memory type that any of the steps accepts, in order of declaration."""
    return tuple(dict.fromkeys(str(name) for step in steps for name in step.memory_types))
