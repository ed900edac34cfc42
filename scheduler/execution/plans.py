"""The ways in which a chain can run on the kinds of device that are there, each with its declared bytes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from memcore import ContractError, DtypeError, FunctionStep, plan_chain
from memcore.backend import nbytes_of
from memcore.info import ArrayInfo
from scheduler.core.blocks import Shape, largest_block
from scheduler.core.model import GPU_KINDS, DeviceKind, Footprint, JobPlan, Resident, Split
from scheduler.execution.chain import chain_halo
from scheduler.execution.residents import HOST_TYPE, chain_state
from scheduler.steps.resolve import ResolvedStep, StepError

SPLITS = (2, 4, 8, 16, 32)
# What decoding, encoding and Python itself take beside the arrays. Without it a measured peak, which has this
# in it, would look like hundreds of times the declared bytes of a small stack.
BASE_BYTES = 8 << 20


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
        except (ContractError, DtypeError) as error:
            problems.append(f"{kind}: {error}")
            continue
        # The cheapest one; on a GPU only if it uses the GPU at all.
        best = next((plan for plan in chosen if place in plan.device_kinds), None)
        if best is not None:
            draft = _Draft(kind, tuple(steps), best.memory_types, best.conversions, (*shape,), dtype)
            plans += draft.plans()
    if not plans:
        raise StepError(f"no device here can run the chain on {dtype} {tuple(shape)}: {'; '.join(problems)}")
    return tuple(plans)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A chain whose steps have their places; left open is whether the stack is taken whole or in blocks."""

    kind: DeviceKind
    steps: tuple[ResolvedStep, ...]
    memory_types: tuple[str, ...]
    conversions: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str

    def plans(self) -> list[JobPlan]:
        """The plan for the whole stack, then those in more and more blocks if the chain can be cut."""
        found = [self._plan(None, self.shape)]
        reach = chain_halo(list(zip(self.steps, self.memory_types, strict=True)))
        if reach is None:
            return found
        axes, halo = reach
        whole: Shape = (self.shape[0], self.shape[1], self.shape[2])
        largest = whole
        for blocks in SPLITS:
            smaller = largest_block(whole, axes, blocks, halo)
            if prod(smaller) < prod(largest):
                found.append(self._plan(Split(axes, blocks), smaller))
                largest = smaller
        return found

    def _plan(self, split: Split | None, block: tuple[int, ...]) -> JobPlan:
        stages = _stages(
            self.steps, self.memory_types, block, self.dtype, all_on_host=self.kind is DeviceKind.CPU
        )
        # The stack that was read stays with its reader until the result is written. The first step works on
        # it directly where the memory type allows that, so only what later steps take in counts beside it.
        in_host = [
            stage.nbytes - (stage.input_bytes if number == 0 and split is None else 0)
            for number, stage in enumerate(stages)
            # Virtual device memory is a count: the arrays themselves live in host memory.
            if stage.on_host or self.kind is DeviceKind.VIRTUAL
        ]
        arrays = nbytes_of(self.shape, self.dtype) + max([*in_host, stages[-1].output_bytes])
        host_bytes = BASE_BYTES + arrays
        kept = chain_state(
            zip(self.steps, self.memory_types, strict=True), on_gpu=self.kind is not DeviceKind.CPU
        )
        if kept is not None:
            # Resident state is the dispatcher's only where it is on a GPU. What setup keeps in host memory is
            # reserved with each job that uses it, a CPU worker process running one at a time; so is what it
            # keeps on a virtual GPU, which is host memory too.
            host_bytes += kept.host_bytes
            if self.kind is DeviceKind.VIRTUAL:
                host_bytes += kept.device_bytes
        name = f"{self.kind}:{'+'.join(dict.fromkeys(self.memory_types))}"
        cost = sum(stage.input_bytes + stage.output_bytes for stage in stages) / (1 << 20)
        if split is not None:
            # Blocks are joined in an array of the stack's shape and the result's dtype.
            voxels = prod(self.shape)
            host_bytes += stages[-1].output_bytes * voxels // max(1, prod(block))
            name += f" in {split.blocks} blocks"
            cost *= split.blocks
        return JobPlan(
            name=name,
            device_kinds=(self.kind,),
            footprint=Footprint(
                max((stage.nbytes for stage in stages if not stage.on_host), default=0), host_bytes
            ),
            memory_types=self.memory_types,
            split=split,
            conversions=self.conversions,
            cost=cost,
            resident=Resident(kept.name, kept.device_bytes) if kept and kept.device_bytes else None,
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
