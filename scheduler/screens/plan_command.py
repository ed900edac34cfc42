"""`stackyard plan`: what `run` would do, without doing it."""

from pathlib import Path

from scheduler.config import ConfigError, load_config
from scheduler.execution.devices import DevicesError
from scheduler.host.estimates import EstimatesError
from scheduler.images.errors import InputError, OutputError
from scheduler.screens.check import check_steps
from scheduler.screens.consoles import output_console
from scheduler.screens.exits import errors_as_messages, print_json
from scheduler.steps.errors import StepError


def plan_command(path: Path, *, as_json: bool, debug: bool) -> None:
    """Print the forecast for the config at `path`."""
    with errors_as_messages(debug=debug, unusable=(ConfigError,)):
        config = load_config(path)
        check_steps(config)
    from scheduler.execution.forecast import forecast
    from scheduler.screens.plan import draw_forecast, forecast_json

    with errors_as_messages(
        debug=debug, unusable=(InputError, OutputError, StepError, DevicesError, EstimatesError)
    ):
        found = forecast(config)
    if as_json:
        print_json(forecast_json(found))
    else:
        output_console().print(draw_forecast(found))
