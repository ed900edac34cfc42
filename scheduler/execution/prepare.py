"""Everything about a run that can be found out before anything starts: stacks, steps, outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from scheduler.config.model import RunConfig, StepConfig
from scheduler.config.stacks import step_inputs
from scheduler.execution.jobs import Chain, JobRequest
from scheduler.execution.task import OutputTarget
from scheduler.images.arrays import ArrayFile
from scheduler.images.errors import ImageError, OutputError
from scheduler.images.groups import StackGroup, group_stacks
from scheduler.images.naming import STACK_FIELD, table_path
from scheduler.images.outputs import (
    Destination,
    check_output_folder,
    output_path,
    plan_outputs,
    planes_of,
    prepare_output,
    refuse_inputs,
    template_fields,
)
from scheduler.images.sources import StackSource, find_stacks
from scheduler.steps.carried import STACK, carried_through, table_labels
from scheduler.steps.errors import StepError
from scheduler.steps.resolve import StepSpec

NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """The stacks to be processed together, where each result goes, and where the tables of steps would go.

    `outputs` and `tables` are by the names of the results and the labels of the tables.
    """

    group: StackGroup
    outputs: Mapping[str, Destination]
    tables: Mapping[str, Path]

    @property
    def job_id(self) -> str:
        """The fields of the job as one word."""
        return self.group.name

    @property
    def output(self) -> Path:
        """Where the first result goes."""
        return next(iter(self.outputs.values())).path

    @property
    def paths(self) -> list[Path]:
        """Where its results go."""
        return [place.path for place in self.outputs.values()]

    @property
    def problem(self) -> str:
        """Why one of its stacks can't be read, where that is known already."""
        return next((source.problem for _, source in self.group.stacks if source.problem), "")

    @property
    def folders(self) -> set[Path]:
        """Where its unfinished files would be."""
        return {place.folder for place in self.outputs.values()} | {
            path.parent for path in self.tables.values()
        }


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
            options=self.config.output.options,
            stacks=job.outputs,
            tables={label: str(path) for label, path in job.tables.items()},
            fields=job.group.fields,
        )
        terms = self.config.jobs
        stacks = dict(job.group.stacks)
        source = stacks[STACK] if stacks.keys() == {STACK} else stacks
        return JobRequest(
            job.job_id, self.chain, source, target, priority=terms.priority, timeout_s=terms.timeout_s
        )

    def folders(self) -> set[Path]:
        """Where unfinished files of its jobs would be."""
        return {folder for job in self.jobs for folder in job.folders}


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
        refuse_existing_outputs(prepared.jobs)
    return prepared


def write_plates(
    prepared: PreparedRun, *, overwrite: bool, jobs: Sequence[PreparedJob] | None = None
) -> None:
    """Write the metadata of the plates that the jobs fill, before the first of them begins.

    With `jobs` the images of the others are left as they are.

    Raises
    ------
    OutputError
        A plate of that name is there that has other channels or levels, or without these wells and images if
        `overwrite` is False; or the folder can't be written.
    """
    only = None if jobs is None else {path for job in jobs for path in job.paths}
    target = prepared.config.output
    results = [
        result for job in prepared.jobs for result in _results(job.group, tuple(job.outputs), target.name)
    ]
    try:
        prepare_output(
            target.path,
            target.name,
            results,
            target.format,
            options=target.options,
            overwrite=overwrite,
            only=only,
        )
    except FileExistsError as error:
        raise OutputError(str(error)) from error


def look(config: RunConfig) -> PreparedRun:
    """The part of `prepare` that changes nothing: stacks, steps and the names of the results.

    Raises
    ------
    InputError, StepError, OutputError
        As `prepare`, but for the state of the output folder.
    """
    chain = Chain.of([step_spec(step, config_folder(config)) for step in config.steps])
    groups = find_groups(config)
    given = [name for name, _ in groups[0].stacks]
    names = carried_through(chain.steps, given)
    results = [result for group in groups for result in _results(group, names, config.output.name)]
    target = config.output
    places = iter(plan_outputs(target.path, target.name, results, target.format))
    labels = table_labels(chain.steps, [step.name for step in chain.steps], given)
    jobs = []
    for group in groups:
        outputs = {name: next(places) for name in names}
        tables = {label: _table_path(config, group, label, outputs) for label in labels}
        jobs.append(PreparedJob(group, outputs, tables))
    arrays = {Path(file.path) for file in chain.array_files}
    planes = planes_of(source for group in groups for _, source in group.stacks)
    refuse_inputs([path for job in jobs for path in job.paths], arrays)
    refuse_inputs([path for job in jobs for path in job.tables.values()], arrays | planes)
    return PreparedRun(config, chain, tuple(jobs))


def find_groups(config: RunConfig) -> list[StackGroup]:
    """The stacks of each job of a config, in natural order; the one of a plain job is called "stack".

    Raises
    ------
    InputError
        As `find_stacks` and `group_stacks`.
    """
    chosen = config.input
    sources = find_stacks(
        chosen.path, chosen.pattern, stack_along=chosen.stack_along, select={**chosen.select} or None
    )
    inputs = config.chosen_inputs
    if inputs:
        return group_stacks(sources, inputs)
    return [StackGroup(source.fields, ((STACK, source),)) for source in sources]


def _results(group: StackGroup, names: Sequence[str], template: str) -> list[StackSource]:
    """What is known of a job's results before they are made, in the words for stacks that are there."""
    first = group.stacks[0][1]
    told_apart = len(names) > 1 or STACK_FIELD in template_fields(template)
    if len(group.stacks) == 1 and names == (STACK,) and not told_apart:
        return [first]
    planes = tuple(plane for _, source in group.stacks for plane in source.planes)
    problem = next((source.problem for _, source in group.stacks if source.problem), "")
    named = replace(first, fields=group.fields, planes=planes, problem=problem)
    stacks = dict(group.stacks)
    return [
        replace(
            named,
            fields=_with_stack(group.fields, name) if told_apart else group.fields,
            channel_name=(stacks[name].channel_name if name in stacks else None) or name,
        )
        for name in names
    ]


def _with_stack(fields: tuple[tuple[str, str], ...], name: str) -> tuple[tuple[str, str], ...]:
    return fields if STACK_FIELD in dict(fields) else (*fields, (STACK_FIELD, name))


def _table_path(config: RunConfig, group: StackGroup, label: str, outputs: Mapping[str, Destination]) -> Path:
    """Where a table goes: named as the stacks are, or beside the plate that they are in."""
    target = config.output
    first = next(iter(outputs.values()))
    if first.channel is None and STACK_FIELD not in template_fields(target.name):
        return table_path(first.path, target.format)
    if first.channel is None:
        fields = dict(_with_stack(group.fields, label))
        path = output_path(target.path, target.name, fields, target.format)
        return table_path(path, target.format)
    plate = target.name.partition("/")[0].partition(".")[0]
    return target.path / f"{plate}_{group.name}_{label}.csv"


def config_folder(config: RunConfig) -> Path:
    """Where modules beside the config are; the working directory for a config that came from no file."""
    return config.config_file.parent if config.config_file is not None else Path.cwd()


def step_spec(step: StepConfig, folder: Path) -> StepSpec:
    """The plain description of a step from which any process can resolve it, modules in `folder` included.

    Raises
    ------
    StepError
        A file that it takes an array from isn't there or can't be read.
    """
    return StepSpec(
        use=step.use,
        with_=dict(step.with_),
        memory=step.memory,
        declare=step.declare.model_dump() if step.declare is not None else None,
        search_path=(str(folder),),
        inputs=step_inputs(step.inputs),
        outputs=step.outputs,
        arrays={keyword: _array_file(step.use, keyword, path) for keyword, path in step.arrays.items()},
    )


def _array_file(use: str, keyword: str, path: Path) -> ArrayFile:
    try:
        return ArrayFile.of(path)
    except ImageError as error:
        raise StepError(f"{use}: arrays.{keyword}: {error}") from error


def refuse_existing_outputs(jobs: Sequence[PreparedJob]) -> None:
    """OutputError naming outputs, or else tables that steps may give, that are there already."""
    outputs = [place for job in jobs for place in job.outputs.values()]
    tables = dict.fromkeys(path for job in jobs for path in job.tables.values())
    existing = [place.path for place in outputs if place.taken]
    what = f"{len(existing)} of {len(outputs)} outputs"
    if not existing:
        existing = [path for path in tables if path.exists()]
        what = f"{len(existing)} tables"
    if existing:
        names = ", ".join(path.name for path in existing[:NAMED_AT_MOST])
        more = f" and {len(existing) - NAMED_AT_MOST} more" if len(existing) > NAMED_AT_MOST else ""
        raise OutputError(
            f"{what} exist already in {existing[0].parent}: "
            f"{names}{more}; pass --overwrite to replace them, or give the run another output folder"
        )
