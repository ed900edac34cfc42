"""Where jobs run: this machine, a Dask cluster that runs already, or Slurm."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ByteSize, Discriminator, Field, Strict, model_validator

from scheduler.config.fields import ByteCount, NotNegative, Positive, Section, StrictBool, StrictInt, problem

_WALLTIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)")


def seconds_of(walltime: object) -> int:
    """The seconds in a time limit such as 12:00:00 or 2-00:00:00; 0 if it is none."""
    match = _WALLTIME.fullmatch(walltime) if isinstance(walltime, str) else None
    if match is None:
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _walltime(value: object) -> object:
    # Slurm takes 90 for minutes and 1:30 for minutes and seconds, which too many people read otherwise.
    if not seconds_of(value):
        raise problem("expected hours:minutes:seconds such as 12:00:00, or days before them as in 2-00:00:00")
    return value


def _word(text: str) -> str:
    if not re.fullmatch(r"[^\s'\"$`\\]+", text):
        raise problem("expected one word")
    return text


def _line(text: str) -> str:
    if not text.strip() or re.search(r"[\n\r\0]", text):
        raise problem("expected one line of text")
    return text


def _directive(text: str) -> str:
    if not re.match(r"--?[A-Za-z]", _line(text)):
        raise problem("expected an option of sbatch, such as --qos=long")
    return text


def _address(text: str) -> str:
    if not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://[^\s/]+:\d{1,5}", text):
        raise problem("expected the address of a Dask scheduler, such as tcp://10.0.0.1:8786")
    return text


def _lines(value: object) -> object:
    return value.splitlines() if isinstance(value, str) else value


Seconds = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Walltime = Annotated[str, BeforeValidator(_walltime)]
Word = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_line)]
Directive = Annotated[str, AfterValidator(_directive)]
Lines = Annotated[tuple[Line, ...], BeforeValidator(_lines)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class LocalCluster(Section):
    """Worker processes on this machine, for as long as the run takes.

    `metrics_port` is where programs of this machine find the run's figures; None is any free port.
    """

    kind: Literal["local"] = "local"
    metrics_port: Annotated[StrictInt, Field(ge=1, le=65535)] | None = None


class AddressCluster(Section):
    """A Dask cluster that runs already; `address` is its scheduler's."""

    kind: Literal["address"] = "address"
    address: Annotated[str, AfterValidator(_address)]


class SlurmDriver(Section):
    """The Slurm job that `stackyard submit` starts the driver in; it computes nothing itself.

    Each key becomes the directive that it becomes in the jobs of the workers; a `partition` or `walltime`
    that is left out is theirs. When `walltime` is nearly over the run ends as interrupted, to be resumed.
    """

    partition: Word | None = None
    cores: Positive = 2
    memory: Annotated[ByteCount, Field(gt=0)] = ByteSize(4 << 30)
    walltime: Walltime | None = None
    directives: tuple[Directive, ...] = ()


class SlurmCluster(Section):
    """Worker processes in Slurm jobs of one node each; with `inside`, on the nodes of one allocation.

    Attributes
    ----------
    inside
        The driver runs in an allocation (of `salloc`, `sbatch` or `stackyard submit`) and starts its workers
        there with `srun`, instead of submitting jobs for them.
    nodes
        How many jobs are kept queued or running; inside, --nodes of the allocation that `submit` asks for.
    cores, memory, gpus
        Of each job, or of each node inside: --cpus-per-task, --mem, --gres=gpu:N (not given if 0).
        An allocation that is there already may do without them.
    walltime
        --time, as [days-]hours:minutes:seconds. A job that has ended is replaced while the run needs it.
    drain_s
        Workers take no more work this many seconds before their time is over.
    partition, account
        --partition, --account.
    processes
        CPU worker processes for each node, one for each core if it isn't given. Each GPU has one of its own.
    interface, driver_interface
        The network that the workers and the driver talk over, such as ib0; the driver's is the workers' one
        if it isn't given.
    encrypt
        Workers and driver talk by TLS, with keys made for this run. Without, whoever reaches the scheduler's
        port on the cluster's network can run programs in your name.
    python
        The Python of the nodes, where it isn't the driver's: `PYTHON -m …` starts a node's workers.
    env, prologue
        `export NAME=VALUE` for each, as it stands, and then lines of shell, before anything starts.
    directives, skip_directives
        Further options of sbatch, each an #SBATCH line of its own; and words: an #SBATCH line that has one in
        it is left out, other than those of `directives`.
    driver
        The job of the driver itself; unused inside, where the driver is in the workers' allocation.
    """

    kind: Literal["slurm"] = "slurm"
    inside: StrictBool = False
    nodes: Positive = 1
    cores: Positive | None = None
    memory: Annotated[ByteCount, Field(gt=0)] | None = None
    gpus: NotNegative = 0
    walltime: Walltime = "01:00:00"
    drain_s: Seconds = 120.0
    partition: Word | None = None
    account: Word | None = None
    processes: NotNegative | None = None
    interface: Word | None = None
    driver_interface: Word | None = None
    encrypt: StrictBool = True
    python: Line | None = None
    env: dict[VariableName, Line] = Field(default_factory=dict)
    prologue: Lines = ()
    directives: tuple[Directive, ...] = ()
    skip_directives: tuple[Line, ...] = ()
    driver: SlurmDriver = SlurmDriver()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.inside and (self.cores is None or self.memory is None):
            missing = "cores" if self.cores is None else "memory"
            raise problem("missing; a job for workers needs cores and memory", at=missing)
        if self.drain_s >= seconds_of(self.walltime):
            raise problem(f"{self.drain_s:g} seconds leave nothing of walltime {self.walltime}", at="drain_s")
        return self


ClusterConfig = Annotated[LocalCluster | AddressCluster | SlurmCluster, Discriminator("kind")]
