"""What was learned of footprints and durations, kept between runs in one small file of this user."""

import json
import os
import tempfile
from pathlib import Path

from scheduler.core.footprint import Estimates


class EstimatesError(ValueError):
    """The file of what was learned is damaged; the message names it, so that it can be removed."""


def default_estimates_path() -> Path:
    """$XDG_CACHE_HOME/stackyard/estimates.json, or under ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "stackyard" / "estimates.json"


def load_estimates(path: Path) -> Estimates:
    """What an earlier run has learned; nothing, if there is no such file or it is of another format.

    Raises
    ------
    EstimatesError
        The file is there and damaged.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Estimates()
    try:
        return Estimates.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise EstimatesError(
            f"{path} is damaged ({error}): remove it, and footprints are learned anew"
        ) from error


def save_estimates(estimates: Estimates, path: Path) -> None:
    """Write the file whole, by a temporary name beside it: the last of several runs wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        json.dump(estimates.to_json(), file)
    os.replace(file.name, path)
