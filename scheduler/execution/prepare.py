"""Everything about a run that can be found out before anything starts: stacks, steps, outputs."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from scheduler.config.model import RunConfig, StepConfig
from scheduler.execution.jobs import Chain, JobRequest
from scheduler.execution.task import OutputTarget
from scheduler.images.errors import OutputError
from scheduler.images.outputs import check_output_folder, output_paths, refuse_inputs
from scheduler.images.sources import StackSource, find_stacks
from scheduler.steps.resolve import StepSpec

NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """One stack to be processed and where its result goes."""

    job_id: str
    source: StackSource
    output: Path


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A config that can be run: its steps resolved, its stacks found, its outputs free."""

    config: RunConfig
    chain: Chain
    jobs: tuple[PreparedJob, ...]

    def request(self, job: PreparedJob, *, run_id: str, overwrite: bool) -> JobRequest:
        """The job as the driver is given it."""
        target = OutputTarget(
            path=str(job.output),
            format=self.config.output.format,
            overwrite=overwrite,
            provenance={"stackyard": version("stackyard"), "run": run_id},
        )
        terms = self.config.jobs
        return JobRequest(
            job.job_id, self.chain, job.source, target, priority=terms.priority, timeout_s=terms.timeout_s
        )


def prepare(config: RunConfig, *, overwrite: bool) -> PreparedRun:
    """Find the stacks, resolve the steps, and see that the results have a place.

    Raises
    ------
    InputError, StepError, OutputError
        What can't be used, and what to do about it.
    """
    prepared = look(config)
    check_output_folder(config.output.path)
    if not overwrite:
        refuse_existing_outputs([job.output for job in prepared.jobs])
    return prepared


def look(config: RunConfig) -> PreparedRun:
    """The part of `prepare` that changes nothing: stacks, steps and the names of the results.

    Raises
    ------
    InputError, StepError, OutputError
        As `prepare`, but for the state of the output folder.
    """
    chain = Chain.of([step_spec(step, config_folder(config)) for step in config.steps])
    chosen = config.input
    sources = find_stacks(
        chosen.path, chosen.pattern, stack_along=chosen.stack_along, select={**chosen.select} or None
    )
    target = config.output
    outputs = output_paths(
        target.path, target.name, [dict(source.fields) for source in sources], target.format
    )
    refuse_inputs(outputs, sources)
    jobs = tuple(
        PreparedJob(source.name, source, output) for source, output in zip(sources, outputs, strict=True)
    )
    return PreparedRun(config, chain, jobs)


def config_folder(config: RunConfig) -> Path:
    """Where modules beside the config are; the working directory for a config that came from no file."""
    return config.config_file.parent if config.config_file is not None else Path.cwd()


def step_spec(step: StepConfig, folder: Path) -> StepSpec:
    """The plain description of a step from which any process can resolve it, modules in `folder` included."""
    return StepSpec(
        use=step.use,
        with_=dict(step.with_),
        memory=step.memory,
        declare=step.declare.model_dump() if step.declare is not None else None,
        search_path=(str(folder),),
    )


def refuse_existing_outputs(outputs: list[Path]) -> None:
    """OutputError naming outputs that are there already."""
    existing = [path for path in outputs if path.exists()]
    if existing:
        names = ", ".join(path.name for path in existing[:NAMED_AT_MOST])
        more = f" and {len(existing) - NAMED_AT_MOST} more" if len(existing) > NAMED_AT_MOST else ""
        raise OutputError(
            f"{len(existing)} of {len(outputs)} outputs exist already in {existing[0].parent}: "
            f"{names}{more}; pass --overwrite to replace them, or give the run another output folder"
        )
