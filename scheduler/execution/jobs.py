"""Jobs as the driver is given them, and as the dispatcher knows them: with plans, and what they learn as."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from scheduler.core.model import Job, JobPlan
from scheduler.execution.task import OutputTarget, Source, Stack, named_stacks
from scheduler.images.arrays import ArrayFile
from scheduler.images.stack import StackSource
from scheduler.steps.carried import STACK
from scheduler.steps.resolve import ResolvedStep, StepSpec

Form = tuple[tuple[int, int, int], str]
Forms = tuple[tuple[str, Form], ...]
"""The stacks of a job, by name."""
# A stack that can't be read has no form: any will do to have its problem told.
NO_FORM: Form = ((1, 1, 1), "uint8")


@dataclass(frozen=True)
class Chain:
    """The steps of a job, described and resolved."""

    specs: tuple[StepSpec, ...]
    steps: tuple[ResolvedStep, ...]

    @classmethod
    def of(cls, specs: Sequence[StepSpec]) -> "Chain":
        """Resolve the steps. Raises StepError for one that can't be used."""
        return cls(tuple(specs), tuple(spec.resolve() for spec in specs))

    @property
    def array_files(self) -> list[ArrayFile]:
        """What its steps take from files."""
        return [file for step in self.steps for file in step.arrays.values()]

    @cached_property
    def digest(self) -> str:
        """Tells chains apart whose jobs have other footprints and durations."""
        chain = [
            # What keeps state has plans of its own for each description.
            [step.use, dict(step.given), step.step.memory_types, step.key if step.keeps_state else ""]
            # Another flat field gives other results.
            + [
                part
                for part in (
                    dict(step.inputs),
                    step.outputs,
                    {name: file.digest for name, file in step.arrays.items()},
                )
                if part
            ]
            for step in self.steps
        ]
        return hashlib.sha256(json.dumps(chain, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class JobRequest:
    """One job: its stack or stacks, by which steps, where the results go, and on what terms."""

    job_id: str
    chain: Chain
    source: Source
    output: OutputTarget | None = None
    returns_array: bool = False
    priority: int = 0
    timeout_s: float | None = None

    @property
    def form(self) -> Form:
        """Shape and dtype of the stack that goes in, the first one of several."""
        return self.forms[0][1]

    @cached_property
    def forms(self) -> Forms:
        """Shape and dtype of each stack that goes in."""
        return tuple((name, _form(stack)) for name, stack in named_stacks(self.source).items())

    @cached_property
    def kind(self) -> str:
        """What jobs of equal plans and footprints have in common."""
        shapes = "+".join("x".join(map(str, shape)) for _, (shape, _) in self.forms)
        return f"{self.family}:{shapes}{':returned' if self.returns_array else ''}"

    @cached_property
    def family(self) -> str:
        """What jobs that learn from one another share: chain, parameters, names and dtypes of stacks."""
        stacks = (dtype if name == STACK else f"{name} {dtype}" for name, (_, dtype) in self.forms)
        return f"{self.chain.digest}:{'+'.join(stacks)}"


def _form(stack: Stack) -> Form:
    if isinstance(stack, StackSource) and stack.problem:
        return NO_FORM
    z, y, x = stack.shape
    return (z, y, x), str(stack.dtype)


def chains_of(requests: Iterable[JobRequest]) -> Iterable[Chain]:
    """Each chain once: there are many jobs, and few chains."""
    return {id(request.chain): request.chain for request in requests}.values()


def dispatcher_job(request: JobRequest, plans: tuple[JobPlan, ...], *, batch: int = 0) -> Job:
    """One job as the dispatcher knows it."""
    return Job(
        request.job_id,
        kind=request.kind,
        family=request.family,
        plans=plans,
        priority=request.priority,
        batch=batch,
        timeout_s=request.timeout_s,
    )
