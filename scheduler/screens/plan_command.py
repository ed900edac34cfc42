"""`stackyard plan`: what `run` would do, without doing it."""

from pathlib import Path

from scheduler.config import ConfigError, load_config
from scheduler.execution.devices import DevicesError
from scheduler.execution.errors import ClusterError
from scheduler.execution.slurm_commands import SlurmError
from scheduler.host.estimates import EstimatesError
from scheduler.images.errors import InputError, OutputError
from scheduler.screens.check import check_steps
from scheduler.screens.consoles import output_console
from scheduler.screens.exits import errors_as_messages, print_json
from scheduler.screens.words import printable
from scheduler.steps.errors import StepError

_SCRIPTS = {
    "driver": "Slurm runs the driver by this, if it is started by stackyard submit:",
    "workers": "Slurm starts the workers by this, which the driver asks for:",
}


def plan_command(path: Path, *, as_json: bool, debug: bool) -> None:
    """Print the forecast for the config at `path`."""
    with errors_as_messages(debug=debug, unusable=(ConfigError,)):
        config = load_config(path)
        check_steps(config)
    from scheduler.execution.forecast import forecast
    from scheduler.screens.plan import draw_forecast, forecast_json

    with errors_as_messages(
        debug=debug,
        unusable=(
            InputError,
            OutputError,
            StepError,
            DevicesError,
            EstimatesError,
            ClusterError,
            SlurmError,
        ),
    ):
        found = forecast(config)
    if as_json:
        print_json(forecast_json(found))
    else:
        output_console().print(draw_forecast(found))
        # Lines of a script stay as they are, for whoever copies them.
        for whose, script in found.scripts.items():
            print(f"\n{_SCRIPTS[whose]}\n\n{printable(script)}", end="")
