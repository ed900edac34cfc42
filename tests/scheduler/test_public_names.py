"""`from scheduler import …` gives the public names, and a clear error for others."""

import pytest

import scheduler


def test_public_names_are_those_of_their_modules():
    from scheduler.config.load import load_config
    from scheduler.execution.resume import resume
    from scheduler.execution.run import run

    assert scheduler.resume is resume
    assert scheduler.run is run
    assert scheduler.load_config is load_config
    assert set(dir(scheduler)) >= {"run", "resume", "load_config", "RunConfig", "ConfigError", "RunSummary"}


def test_other_names_are_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'scheduler' has no attribute 'rnu'"):
        scheduler.rnu  # noqa: B018
