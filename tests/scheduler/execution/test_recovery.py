"""Workers that die, hang or run out of memory cost their own attempts and nobody else's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from memcore import backend_of
from scheduler.config import RunConfig
from scheduler.execution.journal import Journal
from scheduler.execution.run import run
from scheduler.execution.status import RunSummary

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.devices.usable_cores", lambda: 2)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Thirty tiny stacks, each a file of its own, named n00 to n29 and holding its number."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(30):
        tifffile.imwrite(folder / f"n{number:02}.tif", np.full((2, 5, 7), number, np.uint8))
    return folder


def config_for(make_config: MakeConfig, folder: Path, module: str, **sections: Any) -> RunConfig:
    declare = {"input": sections.pop("memory_type", "numpy")}
    return make_config(
        input={"path": str(folder), "pattern": "{name}.tif"},
        steps=[{"use": f"{module}:step", "declare": declare}],
        output={"path": "out", "name": "{name}"},
        **sections,
    )


def outcomes(summary: RunSummary, job: str) -> list[str]:
    journal = Journal.open_readonly(Path(summary.run_dir, "journal.sqlite"))
    return journal.outcomes(job)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), 9)", "ctypes.string_at(0)"], ids=["kill -9", "segfault"]
)
def test_one_poison_takes_no_innocent_with_it(
    tmp_path: Path, many: Path, make_config: MakeConfig, end: str
) -> None:
    (tmp_path / "poison.py").write_text(
        "import ctypes, os\n"
        "def step(stack, *, context):\n"
        "    if context.job_id == 'name-n03':\n"
        f"        {end}\n"
        "    return stack\n"
    )
    summary = run(config_for(make_config, many, "poison"))
    assert (summary.done, summary.failed, summary.lost) == (29, 1, 0)
    (failure,) = summary.failures
    assert failure.job == "name-n03"
    assert "set aside" in failure.reason
    assert outcomes(summary, "name-n03") == ["worker_died", "worker_died"]
    innocents = [f"name-n{number:02}" for number in range(30) if number != 3]
    assert {job for job in innocents if outcomes(summary, job) != ["done"]} == set()
    written = {path.name: int(tifffile.imread(path).max()) for path in (tmp_path / "out").glob("*.tif")}
    assert written == {f"n{number:02}.ome.tif": number for number in range(30) if number != 3}


def test_a_step_that_hangs_is_stopped_and_the_others_go_on(
    tmp_path: Path, many: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "hang.py").write_text(
        "import threading\n"
        "def step(stack, *, context):\n"
        "    if context.job_id == 'name-n00':\n"
        "        threading.Event().wait()\n"
        "    return stack\n"
    )
    summary = run(config_for(make_config, many, "hang", jobs={"timeout_s": 8.0}))
    assert (summary.done, summary.failed, summary.lost) == (29, 1, 0)
    (failure,) = summary.failures
    assert failure.job == "name-n00"
    assert "its timeout_s is 8" in failure.reason
    assert outcomes(summary, "name-n00") == ["timed_out"]


def test_host_memory_that_runs_out_is_asked_for_anew(
    tmp_path: Path, many: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "hungry.py").write_text(
        "from pathlib import Path\n"
        f"seen = Path({str(tmp_path)!r}, 'seen')\n"
        "def step(stack, *, context):\n"
        "    if context.job_id == 'name-n05' and not seen.exists():\n"
        "        seen.touch()\n"
        "        raise MemoryError('a first try')\n"
        "    return stack\n"
    )
    summary = run(config_for(make_config, many, "hungry"))
    assert (summary.done, summary.failed, summary.oom_attempts) == (30, 0, 1)
    assert outcomes(summary, "name-n05") == ["out_of_memory", "done"]


@pytest.mark.skipif(not backend_of("torch").installed(), reason="needs torch")
def test_a_device_that_runs_out_of_memory_hands_its_job_to_the_cpu(
    tmp_path: Path, many: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "too_much.py").write_text(
        "import os\n"
        "from memcore import OutOfDeviceMemoryError\n"
        "def step(stack):\n"
        "    if os.environ['STACKYARD_DEVICE'].startswith('VIRTUAL'):\n"
        "        raise OutOfDeviceMemoryError('full', device='virtual', requested=1, free=0, capacity=1)\n"
        "    return stack\n"
    )
    for path in sorted(many.iterdir())[1:]:
        path.unlink()
    devices = {"gpus": {"virtual": ["1MiB"]}}
    config = config_for(
        make_config,
        many,
        "too_much",
        memory_type="torch",
        devices=devices,
        memory={"on_pressure": "wait"},
    )
    summary = run(config)
    assert (summary.done, summary.failed) == (1, 0)
    assert summary.devices["cpu"]["jobs"] == 1
    assert outcomes(summary, "name-n00")[-1] == "done"
    assert set(outcomes(summary, "name-n00")[:-1]) == {"out_of_memory"}
    assert summary.oom_attempts == len(outcomes(summary, "name-n00")) - 1
