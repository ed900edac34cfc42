"""Workers that die, hang or run out of memory cost their own attempts and nobody else's."""

import os
import signal
from pathlib import Path

import pytest
import tifffile

from memcore import backend_of
from scheduler.execution.fleet import READY
from scheduler.execution.run import run
from scheduler.execution.status import RunStatus
from tests.scheduler.execution.tiny_runs import MakeConfig, decided, outcomes, stacks, step_config, tried

INNOCENTS = 50


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.execution.devices.usable_cores", lambda: 1)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Thirty tiny stacks, n00 to n29."""
    return stacks(tmp_path / "many", 30)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), 9)", "ctypes.string_at(0)"], ids=["kill -9", "segfault"]
)
def test_one_poison_takes_no_innocent_with_it(tmp_path: Path, make_config: MakeConfig, end: str) -> None:
    (tmp_path / "poison.py").write_text(
        "import ctypes, os\n"
        "def step(stack, *, context):\n"
        "    if context.job_id == 'name-n03':\n"
        f"        {end}\n"
        "    return stack\n"
    )
    summary = run(step_config(make_config, stacks(tmp_path / "in", INNOCENTS + 1), "poison"))
    assert (summary.done, summary.failed, summary.lost) == (INNOCENTS, 1, 0)
    (failure,) = summary.failures
    assert failure.job == "name-n03"
    assert failure.reason == (
        "set aside: its worker process died on cpu, which has now happened 2 times under this job"
    )
    ends = outcomes(summary)
    assert ends.pop("name-n03") == ("worker_died", "worker_died")
    # Those that were ready behind the poison in its process are tried again; only the next ones, which may
    # have begun beside it, are suspects, and not for long.
    again = [job for job, tries in ends.items() if tries != ("done",)]
    assert len(again) <= READY + 1
    assert all(ends[job] == ("worker_died", "done") for job in again)
    suspects = {job for job in again if "it runs alone" in decided(summary, job)}
    assert len(suspects) <= 2
    assert "it runs alone" in decided(summary, "name-n03")
    written = {path.name: int(tifffile.imread(path).max()) for path in (tmp_path / "out").glob("*.tif")}
    assert written == {f"n{number:02}.ome.tif": number for number in range(INNOCENTS + 1) if number != 3}


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
    summary = run(step_config(make_config, many, "hungry"))
    assert (summary.done, summary.failed, summary.oom_attempts) == (30, 0, 1)
    assert outcomes(summary)["name-n05"] == ("out_of_memory", "done")


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
    config = step_config(
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
    assert outcomes(summary)["name-n00"][-1] == "done"
    assert set(outcomes(summary)["name-n00"][:-1]) == {"out_of_memory"}
    assert summary.oom_attempts == len(outcomes(summary)["name-n00"]) - 1


@pytest.mark.usefixtures("one_core")
def test_a_job_runs_again_in_the_process_that_takes_the_place_of_one_that_was_killed(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "waits.py").write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        f"seen = Path({str(tmp_path)!r}, 'seen')\n"
        "def step(stack):\n"
        "    if not seen.exists():\n"
        "        seen.with_suffix('.part').write_text(str(os.getpid()))\n"
        "        seen.with_suffix('.part').rename(seen)\n"
        "        time.sleep(3600)\n"
        "    return stack\n"
    )
    killed: list[int] = []

    def kill_the_worker(_status: RunStatus) -> None:
        if not killed and (tmp_path / "seen").exists():
            killed.append(int((tmp_path / "seen").read_text()))
            os.kill(killed[0], signal.SIGKILL)

    config = step_config(make_config, stacks(tmp_path / "in", 2), "waits")
    summary = run(config, on_status=kill_the_worker)
    assert (summary.done, summary.failed, summary.lost) == (2, 0, 0)
    died, again = (each for each in tried(summary) if each.job == "name-n00")
    assert (died.outcome, again.outcome) == ("worker_died", "done")
    assert died.device == again.device == "cpu"
    assert died.began < died.ended <= again.began < again.ended
    assert again.detail["worker_pid"] != killed[0]
    print(f"worker killed, and {again.began - died.ended:.1f} s later the job was sent to the next one")


@pytest.mark.usefixtures("one_core")
def test_a_process_that_leaks_is_replaced_between_jobs(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "leaks.py").write_text(
        "import numpy as np\n"
        "kept = []\n"
        "def step(stack):\n"
        "    kept.append(np.ones(64 << 20, np.uint8))\n"
        "    return stack\n"
    )
    config = step_config(make_config, stacks(tmp_path / "in", 10), "leaks", memory={"host_limit": "2GiB"})
    summary = run(config)
    assert (summary.done, summary.failed, summary.lost) == (10, 0, 0)
    assert set(outcomes(summary).values()) == {("done",)}
    processes = {each.detail["worker_pid"] for each in tried(summary)}
    assert 2 <= len(processes) <= 4  # 64 MiB for each job, of 256 MiB that a process may grow by
    remarks = [remark for remark in summary.remarks if "its memory keeps growing: " in remark]
    assert len(processes) - 1 <= len(remarks) <= len(processes)
    assert all(remark.startswith("worker cpu-0 is replaced: ") for remark in remarks)


@pytest.mark.skipif(not backend_of("pyclesperanto").installed(), reason="needs pyclesperanto")
def test_a_process_whose_gpu_is_broken_is_replaced_and_its_neighbours_go_on(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    # A virtual GPU stands for a real one, whose context a fault in a kernel has spoilt for good.
    (tmp_path / "faulty.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "from memcore import backend_of\n"
        "from scheduler.core.model import DeviceKind\n"
        "from scheduler.execution import failures\n"
        "from scheduler.execution.runs_here import current_worker\n"
        "failures.DeviceKind = SimpleNamespace(CUDA=DeviceKind.VIRTUAL)\n"
        "def broken(*_, **__):\n"
        "    raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        f"seen = Path({str(tmp_path)!r}, 'seen')\n"
        "def step(stack, *, context):\n"
        "    if context.job_id == 'name-n03':\n"
        "        if not seen.exists():\n"
        "            seen.touch()\n"
        "            until = time.monotonic() + 20\n"
        "            while current_worker().attempts.count < 2 and time.monotonic() < until:\n"
        "                time.sleep(0.01)\n"
        "        backend = backend_of('pyclesperanto')\n"
        "        backend.from_host = broken\n"
        "        broken()\n"
        "    return stack\n"
    )
    config = step_config(
        make_config,
        stacks(tmp_path / "in", 8),
        "faulty",
        "pyclesperanto",
        devices={"gpus": {"virtual": ["8MiB"]}, "cpu": False},
    )
    summary = run(config)
    assert (summary.done, summary.failed, summary.lost) == (7, 1, 0)
    (failure,) = summary.failures
    assert failure.job == "name-n03"
    broken = "pyclesperanto can't use virtual0 any more: RuntimeError: CUDA error: an illegal memory access"
    assert failure.reason.startswith(f"set aside: {broken}")
    ends = outcomes(summary)
    assert ends.pop("name-n03") == ("worker_died", "worker_died")
    assert {tries[-1] for tries in ends.values()} == {"done"}
    beside = [name for name, tries in ends.items() if tries != ("done",)]
    assert beside
    assert all("through no fault of its own" in decided(summary, name) for name in beside)
    assert any(f"virtual0 is replaced: {broken}" in remark for remark in summary.remarks)
