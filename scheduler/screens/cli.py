"""The `stackyard` command. Each command imports what it needs when it is called: help comes at once."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from scheduler.core.policy import OnPressure
from scheduler.stress.modes import HogMode

app = typer.Typer(
    name="stackyard",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error too.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
LogJson = Annotated[
    bool,
    typer.Option("--log-json", help="Events as JSON lines on standard error, in place of the progress."),
]


def main() -> None:
    """Entry point of the `stackyard` command."""
    if sys.platform == "win32":
        sys.exit("stackyard needs Linux or macOS; on Windows, run it in WSL2")
    from scheduler.screens.exits import errors_as_messages
    from scheduler.screens.streams import open_closed_streams

    open_closed_streams()
    try:
        # What a command doesn't answer for itself, such as an import that fails.
        with errors_as_messages(debug="--debug" in sys.argv, unusable=()):
            app()
    except typer.Exit as end:
        sys.exit(end.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"stackyard {version('stackyard')}")
        raise typer.Exit


@app.callback()
def stackyard(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run microscopy image-stack jobs over GPUs and CPUs without running out of memory."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The YAML file that describes the run.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    as_json: Json = False,
    log_json: LogJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what failed.")] = False,
    debug: Debug = False,
    tell_run: Annotated[Path | None, typer.Option(hidden=True)] = None,
    run_id: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the jobs of a config file.

    Progress goes to standard error. Ctrl-C stops after what is running; results that are done are kept.

    Exit status: 0 all done; 1 some jobs failed; 2 nothing could start; 130 interrupted.

    Example: stackyard run configs/quickstart.yaml
    """
    from scheduler.screens.run_command import run_command

    raise typer.Exit(
        run_command(
            config,
            overwrite=overwrite,
            as_json=as_json,
            log_json=log_json,
            quiet=quiet,
            debug=debug,
            tell=tell_run,
            run_id=run_id,
        )
    )


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="The YAML file that describes the run.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    as_json: Json = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="The process's log holds the run's events as JSON lines.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run a config by a process of its own, which outlives the terminal, and print the run's folder.

    With cluster.kind slurm it is a Slurm job, which may have to wait for its turn. `stackyard status` and
    `stackyard cancel` reach it from any shell.

    Example: stackyard submit configs/quickstart.yaml
    """
    from scheduler.screens.submit_command import submit_command

    submit_command(config, overwrite=overwrite, as_json=as_json, log_json=log_json, debug=debug)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="The YAML file that describes the run.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a run would do: jobs, footprints, conversions, devices, and the time it may take.

    Nothing is started or written.

    Example: stackyard plan configs/quickstart.yaml
    """
    from scheduler.screens.plan_command import plan_command

    plan_command(config, as_json=as_json, debug=debug)


@app.command()
def devices(as_json: Json = False, debug: Debug = False) -> None:
    """Show devices with their memory, the array libraries, and why one can't be used.

    Example: stackyard devices
    """
    from scheduler.screens.devices_command import devices_command

    devices_command(as_json=as_json, debug=debug)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where the images are, or a folder above.")] = Path("."),
    config: Annotated[Path, typer.Option(help="The file to write.")] = Path("stackyard.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a commented config for a folder of images; it runs as it is.

    Example: stackyard init data/plate1
    """
    from scheduler.screens.init_command import init_command

    init_command(folder, config, overwrite=overwrite, as_json=as_json, debug=debug)


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Where to write the files.")],
    wells: Annotated[int, typer.Option(help="Wells of a 96-well plate.", min=1, max=96)] = 4,
    sites: Annotated[int, typer.Option(help="Sites in each well.", min=1)] = 2,
    channels: Annotated[int, typer.Option(help="Channels of each site.", min=1)] = 2,
    planes: Annotated[int, typer.Option(help="Planes of each stack.", min=1)] = 12,
    size: Annotated[int, typer.Option(help="Pixels along each side of a plane.", min=1)] = 512,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.", min=0)] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace other files of these names.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a small realistic data set: 16-bit TIFF planes of cells, about 100 MB by default.

    Example: stackyard sample data/sample --wells 2 --size 256
    """
    from scheduler.screens.sample_command import sample_command

    sample_command(
        folder,
        sizes={"sites": sites, "channels": channels, "planes": planes, "size": size},
        wells=wells,
        seed=seed,
        overwrite=overwrite,
        as_json=as_json,
        debug=debug,
    )


@app.command()
def status(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or an output folder for its newest run.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how a run stands, while it runs or afterwards.

    Example: stackyard status out/quickstart
    """
    from scheduler.screens.status_command import status_command

    status_command(run_folder, as_json=as_json, debug=debug)


@app.command()
def cancel(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or an output folder for its newest run.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a run to stop, from any shell that sees its folder; what is done is kept.

    Example: stackyard cancel out/quickstart
    """
    from scheduler.screens.cancel_command import cancel_command

    cancel_command(run_folder, as_json=as_json, debug=debug)


@app.command()
def resume(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or an output folder for its newest run.")
    ],
    as_json: Json = False,
    log_json: LogJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what failed.")] = False,
    debug: Debug = False,
) -> None:
    """Finish a run that was interrupted: what isn't done, what failed, and what is no longer there.

    Exit status: as of `stackyard run`.

    Example: stackyard resume out/quickstart
    """
    from scheduler.screens.resume_command import resume_command

    raise typer.Exit(
        resume_command(run_folder, as_json=as_json, log_json=log_json, quiet=quiet, debug=debug)
    )


@app.command()
def report(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or an output folder for its newest run.")
    ],
    output: Annotated[Path | None, typer.Option(help="Where to write the page.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page about a run: who ran what when, memory, waits, failures, pictures.

    Example: stackyard report out/quickstart
    """
    from scheduler.screens.report.command import report_command

    report_command(run_folder, output, as_json=as_json, debug=debug)


@app.command()
def simulate(
    trace: Annotated[
        Path, typer.Argument(help="A trace (.json), a mix (.yaml), or the folder of a run that has been.")
    ],
    seed: Annotated[int, typer.Option(help="The same seed draws the same jobs from a mix.", min=0)] = 0,
    jobs: Annotated[int | None, typer.Option(help="How many jobs to draw.", min=1)] = None,
    hogs: Annotated[bool, typer.Option(help="Programs of others come and go on the GPUs.")] = False,
    exact: Annotated[bool, typer.Option(help="Declared footprints are the true ones.")] = False,
    on_pressure: Annotated[OnPressure, typer.Option()] = OnPressure.EARLIEST_FINISH,
    baselines: Annotated[bool, typer.Option(help="Run the simple schedulers too.")] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Replay a workload on a described cluster of any size, in virtual time.

    The dispatcher is the one that runs jobs for real.

    Example: stackyard simulate configs/simulation/mixed.yaml --jobs 500 --hogs
    """
    from scheduler.screens.simulate_command import simulate_command

    simulate_command(
        trace,
        seed=seed,
        jobs=jobs,
        hogs=hogs,
        exact=exact,
        on_pressure=on_pressure,
        baselines=baselines,
        as_json=as_json,
        debug=debug,
    )


@app.command()
def stress(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file with these options, which those given here replace.")
    ] = None,
    virtual: Annotated[
        str | None, typer.Option(metavar="NxSIZE", help="Virtual devices, as 2x8GiB; else this host's GPUs.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="How many jobs.", show_default="200")] = None,
    hog: Annotated[
        HogMode | None,
        typer.Option(help="Other programs that take device memory meanwhile.", show_default="none"),
    ] = None,
    kill_workers: Annotated[
        int | None, typer.Option(metavar="N", help="Kill so many busy workers.", show_default="0")
    ] = None,
    under_estimate: Annotated[
        str | None,
        typer.Option(metavar="P%", help="Jobs that need more than they declare.", show_default="0%"),
    ] = None,
    faults: Annotated[
        bool | None,
        typer.Option("--faults/--no-faults", help="Failing probes, a slow disk.", show_default="faults"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed makes the same jobs.", show_default="0")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Work here, and keep everything. Else a temporary folder.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Put the scheduler under memory pressure, kills and faults, and check that it keeps its promises.

    Random jobs with known results run for real; what they declare is charged to the devices. Each result is
    compared value by value, and each promise of memory is watched from outside.

    Exit status: 0 all is well; 1 a job is lost, wrong, done twice or failed, or a promise was broken;
    2 nothing could start; 130 interrupted.

    Example: stackyard stress --virtual 2x8GiB --jobs 200 --hog random --kill-workers 1 --under-estimate 20%
    """
    from scheduler.screens.stress_command import stress_command

    given = {
        "virtual": virtual,
        "jobs": jobs,
        "hog": hog,
        "kill_workers": kill_workers,
        "under_estimate": under_estimate,
        "faults": faults,
        "seed": seed,
    }
    raise typer.Exit(stress_command(config, given, folder=folder, as_json=as_json, debug=debug))
