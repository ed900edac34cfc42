"""`stackyard sample`: a data set to try things on."""

from collections.abc import Mapping
from pathlib import Path

from memcore.info import bytes_text
from scheduler.images.sample import write_sample
from scheduler.screens.exits import errors_as_messages, print_json


def sample_command(
    folder: Path,
    *,
    sizes: Mapping[str, int],
    wells: int,
    seed: int,
    overwrite: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Write the sample and say what was written."""
    with errors_as_messages(debug=debug, unusable=(ValueError,)):
        paths = write_sample(folder, wells=wells, seed=seed, overwrite=overwrite, **sizes)
        nbytes = sum(path.stat().st_size for path in paths)
    if as_json:
        print_json({"folder": str(folder), "files": len(paths), "bytes": nbytes})
    else:
        print(f"{len(paths)} files, {bytes_text(nbytes)}, in {folder}: {paths[0].name} to {paths[-1].name}")
