"""configs/dask_cluster.yaml on a scheduler and workers started by hand, by the commands of a terminal."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.images.sample import write_sample
from scheduler.screens.run_folder import read_status
from tests.scheduler.dask_programs import DaskPrograms, kill_with_children, names_of, wait_for
from tests.scheduler.execution.gated_runs import STEP, ended, release, wait_until_begun

YAML = Path(__file__).parents[3] / "configs/dask_cluster.yaml"
JOBS = [f"well-A01_site-{site}_channel-{channel}" for site in (1, 2, 3) for channel in (1, 2)]


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[DaskPrograms]:
    (tmp_path / "programs").mkdir()
    with DaskPrograms(tmp_path / "programs") as programs:
        programs.scheduler()
        yield programs


@pytest.fixture
def config(tmp_path: Path, dask: DaskPrograms) -> Path:
    """The config at this scheduler's address; its last step is one that waits for some jobs' sake."""
    sections = yaml.safe_load(YAML.read_text())
    assert sections["cluster"] == {"kind": "address", "address": "tcp://127.0.0.1:8786"}
    sections["cluster"]["address"] = dask.address
    sections["steps"].append({"use": "gated:step", "declare": {"input": "numpy"}})
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/gated.py").write_text(STEP)
    write_sample(tmp_path / "data/sample", wells=1, sites=3, channels=2, planes=3, size=48)
    path = tmp_path / "configs" / YAML.name
    path.write_text(yaml.safe_dump(sections))
    return path


def stackyard(*arguments: object, status: int = 0) -> Any:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "scheduler.screens", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def results(config: Path) -> list[str]:
    return sorted(path.name for path in (config.parents[1] / "out/dask_cluster").glob("*.tif"))


def submit_held(config: Path) -> Path:
    """Submit the run, and wait until its first two jobs have begun; they wait for `let_go`."""
    folder = config.parent
    (folder / "began").unlink()
    for job in JOBS[:2]:
        (folder / f"hold-{job}").touch()
    run = Path(stackyard("submit", config, "--overwrite", "--json")["run_dir"])
    for job in JOBS[:2]:
        wait_until_begun(folder, job)
    return run


def let_go(config: Path) -> None:
    for job in JOBS[:2]:
        release(config.parent, job)


def test_run_submit_status_cancel_and_resume_while_workers_die_and_come(
    config: Path, dask: DaskPrograms
) -> None:
    first = dask.worker(name="first")
    dask.worker(name="second")
    with dask.client() as client:
        wait_for("workers", lambda: names_of(client) == {"first", "second"})
    summary = stackyard("run", config, "--json")
    assert (summary["jobs"], summary["done"], summary["lost"]) == (6, 6, 0)
    assert len(results(config)) == 6

    # Again, by a driver of its own: a worker dies in the middle, and another one comes.
    run = submit_held(config)
    kill_with_children(first)
    dask.worker(name="third")
    let_go(config)
    wait_for("the end", lambda: read_status(run).state == "done")
    shown = stackyard("status", run, "--json")
    assert (shown["state"], shown["jobs"], shown["done"], shown["failed"]) == ("done", 6, 6, 0)

    # Once more: it is cancelled in the middle, and another command finishes it.
    run = submit_held(config)
    assert stackyard("status", run, "--json")["state"] == "running"
    stackyard("cancel", run)
    wait_for("stopping", lambda: read_status(run).state == "stopping")
    let_go(config)
    wait_for("the end", lambda: read_status(run).state == "interrupted")
    left = stackyard("status", run, "--json")
    assert 2 <= left["done"] < 6
    finished = stackyard("resume", run, "--json")
    assert (finished["jobs"], finished["done"], finished["failed"], finished["lost"]) == (6, 6, 0, 0)
    assert len(results(config)) == 6
    assert [ended(config.parent, job) for job in JOBS] == [3] * 6, "once for each of the three runs"
