"""What a config file may say: one frozen model for each of its sections."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Discriminator,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    Strict,
    Tag,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)

from scheduler.config.cluster import ClusterConfig, LocalCluster
from scheduler.config.fields import ByteCount, NotNegative, Section, StrictBool, StrictInt, problem
from scheduler.config.stacks import check_flow, chosen_inputs, fields_chosen_by
from scheduler.images.errors import InputError, OutputError
from scheduler.images.layout import FILE_FIELDS
from scheduler.images.naming import STACK_FIELD, suffix_of, template_fields
from scheduler.images.options import WriteOptions, check_options
from scheduler.images.patterns import nearest, parse_pattern

OnPressure = Literal["earliest-finish", "cpu", "wait", "fail"]


def _size_or_share(value: Any) -> int | str:
    if not (isinstance(value, str) and value.strip().endswith("%")):
        return _BYTE_COUNT.validate_python(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)
    if match is None or not 0 < float(match[1]) <= 100:
        raise problem("expected a share of host memory from above 0% to 100%")
    return f"{match[1]}%"


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _not_empty(value: Any) -> Any:
    if isinstance(value, list | tuple) and not value:
        raise problem("needs at least one entry")
    return value


def _field_value(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise problem("expected text or a whole number; put it in quotes if it looks like something else")
    return value


def _resolved(path: Any, info: ValidationInfo) -> Any:
    """Relative paths count from the config file's folder; from the working directory where there is none."""
    if not isinstance(path, str | Path) or not str(path):
        raise problem("expected a path")
    if "\0" in str(path):
        raise problem("a path can't hold a NUL character")
    folder = (info.context or {}).get("folder", Path.cwd())
    try:
        return (Path(folder) / Path(path).expanduser()).resolve()
    except (OSError, RuntimeError) as error:  # no such user's home, a loop of links
        raise problem(str(error)) from error


def _pattern(text: str) -> str:
    try:
        parse_pattern(text)
    except InputError as error:
        raise problem(str(error).removeprefix(f"pattern {text!r}: ")) from error
    return text


def _template(text: str) -> str:
    try:
        template_fields(text)
    except OutputError as error:
        raise problem(str(error).removeprefix(f"output name {text!r}: ")) from error
    return text


def _format(text: str) -> str:
    try:
        suffix_of(text)
    except OutputError as error:
        raise problem(str(error)) from error
    return text


def _named_inputs(value: Any) -> Any:
    """A list of names stands for stacks that go to parameters of their own names."""
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        if len(set(value)) < len(value):
            raise problem("names a stack twice")
        return {name: name for name in value}
    return value


def _stack_choice(value: Any) -> str:
    return "fields" if isinstance(value, dict) else "name"


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise problem("names a stack twice")
    return names


_BYTE_COUNT: TypeAdapter[ByteSize] = TypeAdapter(ByteCount)
# The number 1 stands for the texts "1" and "01" of a file name, the text "01" only for itself.
FieldValue = Annotated[int | str, BeforeValidator(_field_value)]
FieldValues = Annotated[tuple[FieldValue, ...], BeforeValidator(_one_or_more), BeforeValidator(_not_empty)]
MemoryTypes = Annotated[tuple[str, ...], BeforeValidator(_one_or_more), BeforeValidator(_not_empty)]
ConfigPath = Annotated[Path, BeforeValidator(_resolved), PlainSerializer(str, when_used="json")]
# It is a parameter's name, and part of a file's.
StackName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,60}$")]
StackNames = Annotated[tuple[StackName, ...], BeforeValidator(_one_or_more), AfterValidator(_different)]
StackChoice = Annotated[
    Annotated[str, Tag("name")] | Annotated[dict[str, FieldValues], Tag("fields")],
    Discriminator(_stack_choice),
]
StepInputs = Annotated[dict[StackName, StackChoice], BeforeValidator(_named_inputs)]
FilePattern = Annotated[str, Field(min_length=1), AfterValidator(_pattern)]
OutputFormat = Annotated[str, AfterValidator(_format)]
Template = Annotated[str, Field(min_length=1), AfterValidator(_template)]


class InputConfig(Section):
    """Where the slices are and how they make stacks."""

    path: ConfigPath
    pattern: FilePattern
    stack_along: str = "z"
    select: dict[str, FieldValues] = Field(default_factory=dict)


class DeclareConfig(Section):
    """The contract of a function that nobody decorated, in the words of `memcore.memory_types`."""

    input: MemoryTypes
    output: str = "same"
    slice_by_slice: StrictBool = False
    splittable: Literal["z", "zyx"] | None = None
    halo: tuple[NotNegative, NotNegative, NotNegative] = (0, 0, 0)
    workspace: ByteCount | None = None


class StepConfig(Section):
    """One step: a built-in's name, `package.module:function` or `package.module:StepClass`.

    `inputs` has for each parameter the fields that choose its stack among the input's, or, in a later step,
    the name of one that the step before gave; a list of names is short for parameters of these names.
    `outputs` are the names of the stacks in the dict that the step gives. `arrays` are keywords whose values
    are in files.
    """

    use: Annotated[str, Field(min_length=1)]
    with_: dict[str, JsonValue] = Field(alias="with", default_factory=dict)
    inputs: StepInputs = Field(default_factory=dict)
    outputs: StackNames = ()
    arrays: dict[str, ConfigPath] = Field(default_factory=dict)
    memory: MemoryTypes | None = None
    declare: DeclareConfig | None = None


_ZARR_ONLY = ("chunks", "levels", "downsample", "zarr_version")


class OutputConfig(Section):
    """Where results go, and how they are stored (see `WriteOptions`).

    `name` is a template of the pattern's fields, and of `{stack}`, a result's name. Where `chunks`, `levels`,
    `downsample` and `zarr_version` are left out they are the format's own.
    """

    path: ConfigPath
    format: OutputFormat = "ome-tiff"
    name: Template
    compression: str = "default"
    chunks: tuple[StrictInt, StrictInt, StrictInt] | None = None
    levels: StrictInt | None = None
    downsample: str | None = None
    zarr_version: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format != "ome-zarr":
            for name in _ZARR_ONLY:
                if getattr(self, name) is not None:
                    raise problem(f"only ome-zarr has it, and format is {self.format}", at=name)
        for name in ("compression", *_ZARR_ONLY):
            value = getattr(self, name)
            try:
                if value is not None:
                    check_options(self.format, **{name: value})
            except OutputError as error:
                raise problem(str(error), at=name) from error
        return self

    @property
    def options(self) -> WriteOptions:
        """How the results are stored."""
        given = {name: getattr(self, name) for name in ("compression", *_ZARR_ONLY)}
        return WriteOptions(**{name: value for name, value in given.items() if value is not None})


class VirtualGpus(Section):
    """Devices that are only accounts of bytes: multi-GPU runs on a laptop.

    Runs of this host whose virtual GPUs have the same `name` share them; without one they are the run's own.
    """

    virtual: Annotated[tuple[Annotated[ByteCount, Field(gt=0)], ...], BeforeValidator(_not_empty)]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")] | None = None


def _gpus_kind(value: Any) -> str:
    if isinstance(value, dict | VirtualGpus):
        return "mapping"
    return "list" if isinstance(value, list | tuple) else "word"


Gpus = Annotated[
    Annotated[Literal["auto"], Tag("word")]
    | Annotated[tuple[NotNegative, ...], Tag("list")]
    | Annotated[VirtualGpus, Tag("mapping")],
    Discriminator(_gpus_kind),
]


class DevicesConfig(Section):
    """Which devices to use. Numbers are NVML indices among the devices that CUDA_VISIBLE_DEVICES allows."""

    gpus: Gpus = "auto"
    cpu: StrictBool = True
    headroom: ByteCount = ByteSize(512 << 20)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpus == () and not self.cpu:
            raise problem("no GPUs and cpu: false leave nothing to run on", at="cpu")
        if isinstance(self.gpus, tuple) and len(set(self.gpus)) < len(self.gpus):
            raise problem("names a device twice", at="gpus")
        return self


class MemoryConfig(Section):
    """What to do under memory pressure, and how much of the host's memory a run may take."""

    on_pressure: OnPressure = "earliest-finish"
    host_limit: Annotated[int | str, PlainValidator(_size_or_share)] = "75%"
    reproducible: StrictBool = False

    def host_limit_bytes(self, total: int) -> int:
        """The limit in bytes on a host with `total` bytes of memory."""
        if isinstance(self.host_limit, str):
            return int(total * float(self.host_limit.removesuffix("%")) / 100)
        return self.host_limit


class JobsConfig(Section):
    """Limits for each job, and how many equal failures before any success stop the run."""

    timeout_s: Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)] | None = 3600.0
    priority: StrictInt = 0
    max_failures: Annotated[StrictInt, Field(ge=1)] = 10


class RunConfig(Section):
    """A whole run. It pickles, and `model_validate` takes what `model_dump(mode="json")` gives."""

    input: InputConfig
    steps: Annotated[tuple[StepConfig, ...], BeforeValidator(_not_empty)]
    output: OutputConfig
    devices: DevicesConfig = DevicesConfig()
    memory: MemoryConfig = MemoryConfig()
    jobs: JobsConfig = JobsConfig()
    cluster: ClusterConfig = LocalCluster()
    config_file: ConfigPath | None = None
    """The file that this was read from. Modules beside it can be named in `use`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        along = self.input.stack_along
        # The axes inside of a file add fields to those of its name.
        known = list(dict.fromkeys((*parse_pattern(self.input.pattern).fields, *FILE_FIELDS)))
        chosen_by = fields_chosen_by(self.steps)
        shared = [name for name in known if name != along]
        left = [name for name in shared if name not in chosen_by]
        wanted = template_fields(self.output.name)
        for at, names, allowed in (
            ("input.stack_along", [along], known),
            ("input.select", self.input.select, known),
            *((f"steps.{at}", [name], shared) for name, at in chosen_by.items()),
            ("output.name", wanted, [*left, STACK_FIELD]),
        ):
            for name in names:
                if name not in allowed:
                    hint = nearest(name, allowed)
                    if at == "output.name" and name in chosen_by:
                        hint = ": the stacks of a job differ in it, by the inputs of a step"
                    raise problem(f"there is no field {name!r}{hint}", at=at)
        results = check_flow(self.steps)
        if len(results) > 1 and (STACK_FIELD not in wanted or STACK_FIELD in known):
            what = (
                f"a job gives {', '.join(results)}: put {{{STACK_FIELD}}} into the name, to keep them apart"
            )
            if STACK_FIELD in known:
                what = f"a job gives {', '.join(results)}, and the pattern has a field {{stack}}: rename that"
            raise problem(what, at="output.name")
        return self

    @property
    def chosen_inputs(self) -> dict[str, dict[str, tuple[int | str, ...]]]:
        """By what fields each named stack of a job is chosen; empty where a job has the one stack."""
        return chosen_inputs(self.steps)
