"""The ways in which a chain can run on the kinds of device that are there, each with its declared bytes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from memcore import ContractError, DtypeError, FunctionStep, backend_of, plan_chain
from memcore.backend import nbytes_of
from memcore.info import ArrayInfo
from scheduler.core.blocks import Shape, largest_block
from scheduler.core.model import GPU_KINDS, DeviceKind, Footprint, JobPlan, Resident, Split
from scheduler.execution.chain import chain_halo
from scheduler.execution.residents import HOST_TYPE, chain_state
from scheduler.steps.carried import STACK, carried_after
from scheduler.steps.resolve import ResolvedStep, StepError

ArrayForm = tuple[tuple[int, ...], str]
SPLITS = (2, 4, 8, 16, 32)
# What decoding, encoding and Python itself take beside the arrays. Without it a measured peak, which has this
# in it, would look like hundreds of times the declared bytes of a small stack.
BASE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class _Stage:
    """One step of a plan with its bytes: all that the chain carries before and after it, and the most that is
    alive while it runs, with what it uses beside them; `beside_input` is the most beside an input that
    stays, whatever has become of its stacks."""

    on_host: bool
    input_bytes: int
    output_bytes: int
    nbytes: int
    beside_input: int


def job_plans(
    steps: Sequence[ResolvedStep],
    shape: tuple[int, ...],
    dtype: str,
    usable: Mapping[DeviceKind, Iterable[str]],
) -> tuple[JobPlan, ...]:
    """`named_job_plans` for jobs of the one stack."""
    return named_job_plans(steps, ((STACK, (shape, dtype)),), usable)


def named_job_plans(
    steps: Sequence[ResolvedStep],
    forms: Sequence[tuple[str, ArrayForm]],
    usable: Mapping[DeviceKind, Iterable[str]],
    *,
    returned: bool = False,
) -> tuple[JobPlan, ...]:
    """The plans for a job with stacks of these names and forms, GPUs' first.

    On a GPU a step that is written for NumPy only runs in host memory, between two transfers.

    Parameters
    ----------
    usable
        For each kind of device that there is, the memory types that work on it. Those that can't hold the
        dtype of one of several stacks, or of an array from a file, aren't used.
    returned
        The results are copied at the end, to be sent back.

    Raises
    ------
    StepError
        No kind of device can run the chain; the text names the step and what it lacks.
    """
    chain = [step.step for step in steps]
    keywords = [step.declared_with for step in steps]
    _, (shape, dtype) = forms[0]
    info = ArrayInfo(HOST_TYPE, tuple(shape), dtype)
    others = [other for _, (_, other) in forms[1:]]
    others += [file.dtype for step in steps for file in step.arrays.values()]
    plans: list[JobPlan] = []
    problems: list[str] = []
    for kind in (*GPU_KINDS, DeviceKind.CPU):
        if kind not in usable:
            continue
        place = "cpu" if kind is DeviceKind.CPU else "gpu"
        known = tuple(usable[kind])
        refusals = _refusals(known, others)
        problems += [f"{kind}: {refusal}" for refusal in refusals.values()]
        names = [name for name in known if name not in (HOST_TYPE, *refusals)]
        places = {name: [place] for name in names} | {HOST_TYPE: ["cpu"]}
        try:
            chosen = plan_chain(chain, info, places, keywords=keywords, end=HOST_TYPE)
            # The cheapest one; on a GPU only if it uses the GPU at all.
            best = next((plan for plan in chosen if place in plan.device_kinds), None)
            if best is not None:
                named = tuple((name, ((*shape,), dtype)) for name, (shape, dtype) in forms)
                draft = _Draft(kind, tuple(steps), best.memory_types, best.conversions, named, returned)
                # A step may take the first stack's dtype and refuse another's.
                plans += draft.plans()
        except (ContractError, DtypeError) as error:
            problems.append(f"{kind}: {error}")
    if not plans:
        stacks = ", ".join(f"{dtype} {tuple(shape)}" for _, (shape, dtype) in forms)
        raise StepError(f"no device here can run the chain on {stacks}: {'; '.join(problems)}")
    return tuple(plans)


def _refusals(memory_types: Iterable[str], dtypes: Iterable[str]) -> dict[str, str]:
    """Which of the memory types can't hold one of the dtypes, and why."""
    found = {}
    for name in memory_types:
        refused = [why for why in map(backend_of(name).dtype_refusal, dict.fromkeys(dtypes)) if why]
        if refused:
            found[name] = refused[0]
    return found


@dataclass(frozen=True, slots=True)
class _Draft:
    """A chain whose steps have their places; left open is whether the stack is taken whole or in blocks."""

    kind: DeviceKind
    steps: tuple[ResolvedStep, ...]
    memory_types: tuple[str, ...]
    conversions: tuple[str, ...]
    forms: tuple[tuple[str, ArrayForm], ...]
    returned: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the first stack, and of the only one where the stack can be cut."""
        return self.forms[0][1][0]

    def plans(self) -> list[JobPlan]:
        """The plan for the whole, then those in more and more blocks if it is one stack that can be cut."""
        found = [self._plan(None, self.shape)]
        reach = chain_halo(list(zip(self.steps, self.memory_types, strict=True)))
        if reach is None or len(self.forms) > 1:
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
        forms = dict(self.forms)
        if split is not None:
            forms = {name: (block, dtype) for name, (_, dtype) in self.forms}
        stages = _stages(self.steps, self.memory_types, forms, all_on_host=self.kind is DeviceKind.CPU)
        # The stacks that were read stay with their reader until the results are written. The first step works
        # on them directly where the memory type allows that, so only what later steps take in counts beside.
        in_host = [
            stage.beside_input if number == 0 and split is None else stage.nbytes
            for number, stage in enumerate(stages)
            # Virtual device memory is a count: the arrays themselves live in host memory.
            if stage.on_host or self.kind is DeviceKind.VIRTUAL
        ]
        read = sum(nbytes_of(*form) for _, form in self.forms)
        # What steps take from files is read once for a process, and reserved with each job that uses it.
        files = {file for step in self.steps for file in step.arrays.values()}
        output = stages[-1].output_bytes
        # Blocks are joined in an array of the stack's shape and the result's dtype.
        joined = 0 if split is None else output * prod(self.shape) // max(1, prod(block))
        at_the_end = output if split is None else 0
        copied = (joined or output) if self.returned else 0
        host_bytes = BASE_BYTES + read + joined + max([*in_host, output, at_the_end + copied])
        host_bytes += sum(file.nbytes for file in files)
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
    forms: Mapping[str, ArrayForm],
    *,
    all_on_host: bool,
) -> list[_Stage]:
    carried = dict(forms)
    stages = []
    for step, memory_type in zip(steps, memory_types, strict=True):
        before = {name: nbytes_of(*form) for name, form in carried.items()}
        # Arrays from files are the cache's own in host memory; elsewhere each call gets copies.
        copies = sum(file.nbytes for file in step.arrays.values()) if memory_type != HOST_TYPE else 0
        if step.inputs or step.outputs:
            given = carried[step.inputs[step.first]] if step.inputs else next(iter(carried.values()))
            result, workspace = _called(step, memory_type, given)
            carried = dict.fromkeys(carried_after(step, tuple(carried)), result)
            output = nbytes_of(*result) * len(carried)
            beside = output + _or_larger(workspace, sum(before.values()), output)
            most = sum(before.values()) + beside
        else:
            most, beside, alive, made = 0, 0, sum(before.values()), 0
            for name, form in carried.items():
                carried[name], workspace = _called(step, memory_type, form)
                output = nbytes_of(*carried[name])
                needs = output + _or_larger(workspace, before[name], output)
                most, beside = max(most, alive + needs), max(beside, made + needs)
                alive, made = alive + output - before[name], made + output
        stages.append(
            _Stage(
                on_host=all_on_host or memory_type == HOST_TYPE,
                input_bytes=sum(before.values()),
                output_bytes=sum(nbytes_of(*form) for form in carried.values()),
                nbytes=most + copies,
                beside_input=beside + copies,
            )
        )
    return stages


def _called(step: ResolvedStep, memory_type: str, form: ArrayForm) -> tuple[ArrayForm, int | None]:
    """The form that a call of the step gives for a (first) stack of this form, and its workspace."""
    contract = step.step.implementation_for(memory_type).contract
    return (
        contract.output_for(*form, **step.declared_with),
        contract.workspace_for(*form, **step.declared_with),
    )


def _or_larger(workspace: int | None, before: int, after: int) -> int:
    """A step that doesn't declare its workspace is taken to use as much as its larger end."""
    return max(before, after) if workspace is None else workspace


def step_types(steps: Iterable[FunctionStep]) -> tuple[str, ...]:
    """Every memory type that any of the steps accepts, in order of declaration."""
    return tuple(dict.fromkeys(str(name) for step in steps for name in step.memory_types))
