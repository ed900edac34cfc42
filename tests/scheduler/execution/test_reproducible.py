"""With `reproducible: true` the rest of a run is done as its first part was, or fails with the reason."""

import json
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memcore import backend_of
from pools.virtual import VirtualDeviceMemory
from scheduler.execution.resume import resume
from scheduler.execution.run import run
from scheduler.execution.status import RunStatus, RunSummary
from tests.scheduler.execution.tiny_runs import MakeConfig, stacks, tried

pytestmark = pytest.mark.skipif(not backend_of("pyclesperanto").installed(), reason="needs pyclesperanto")

TAG = f"test-reproducible-{secrets.token_hex(3)}"
CAPACITY = 1 << 20
ON_GPU = {"gpus": {"virtual": [CAPACITY], "name": TAG}, "cpu": True}
ON_CPU = {"gpus": [], "cpu": True}
JOBS = 6


@pytest.fixture
def device() -> Iterator[VirtualDeviceMemory]:
    memory = VirtualDeviceMemory(f"VIRTUAL-{TAG}-0", CAPACITY)
    yield memory
    memory.unlink()


@pytest.fixture
def first_part(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], RunSummary]:
    """Start a reproducible run with a section `devices`, and interrupt it after its first job."""
    monkeypatch.setattr("scheduler.execution.devices.usable_cores", lambda: 1)
    gate = tmp_path / "gate"
    (tmp_path / "gated.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def step(stack, *, context):\n"
        "    deadline = time.monotonic() + 60\n"
        f"    while context.job_id != 'name-n00' and not Path({str(gate)!r}).exists():\n"
        "        assert time.monotonic() < deadline, 'nobody opened the gate'\n"
        "        time.sleep(0.01)\n"
        "    return stack\n"
    )
    stop = threading.Event()

    def stop_after_the_first(status: RunStatus) -> None:
        if status.done:
            stop.set()
        if status.state == "stopping":
            gate.touch()

    def start(devices: dict[str, Any]) -> RunSummary:
        config = make_config(
            input={"path": str(stacks(tmp_path / "in", JOBS)), "pattern": "{name}.tif"},
            steps=[{"use": "gated:step", "declare": {"input": ["pyclesperanto", "numpy"]}}],
            output={"path": "out", "name": "{name}"},
            devices=devices,
            memory={"on_pressure": "cpu", "reproducible": True},
        )
        summary = run(config, on_status=stop_after_the_first, stop=stop)
        assert summary.interrupted
        assert 1 <= summary.done < JOBS
        return summary

    return start


def move_to(devices: dict[str, Any], summary: RunSummary) -> None:
    """Have the rest of a run find other devices, as on another machine."""
    with closing(sqlite3.connect(Path(summary.run_dir, "journal.sqlite"))) as journal, journal:
        (text,) = journal.execute("SELECT config FROM run").fetchone()
        config = json.loads(text)
        config["devices"] |= devices
        journal.execute("UPDATE run SET config = ?", (json.dumps(config),))


def ways(summary: RunSummary) -> set[tuple[str, str, str]]:
    """By which plan, on which model of device, and where the run's jobs were done, in both parts."""
    done = [each for each in tried(summary) if each.outcome == "done"]
    assert len({each.job for each in done}) == len(done)
    return {(each.plan["name"], each.plan["model"], each.device) for each in done}


def test_the_rest_waits_for_the_device_of_the_first_part_though_the_cpu_is_free(
    first_part: Callable[[dict[str, Any]], RunSummary], device: VirtualDeviceMemory
) -> None:
    first = first_part(ON_GPU)
    held = [device.charge(CAPACITY, "somebody else")]
    reasons: list[str] = []

    def end_the_hog(status: RunStatus) -> None:
        free = {each.name: each.free_bytes for each in status.devices}
        if held and status.waiting and free.get("virtual0") == 0:
            assert status.running == 0
            reasons.append(status.waiting[0].reason)
            held.pop().release()

    second = resume(first.run_dir, on_status=end_the_hog)
    assert (second.done, second.failed) == (JOBS, 0)
    assert "reproducible fixes it to virtual:pyclesperanto on such devices" in reasons[0]
    assert ways(second) == {("virtual:pyclesperanto", "virtual", "virtual0")}


def test_the_rest_stays_on_the_cpu_though_a_gpu_has_come(
    first_part: Callable[[dict[str, Any]], RunSummary], device: VirtualDeviceMemory
) -> None:
    first = first_part(ON_CPU)
    move_to(ON_GPU, first)
    second = resume(first.run_dir)
    assert (second.done, second.failed) == (JOBS, 0)
    ((plan, _, where),) = ways(second)
    assert (plan, where) == ("cpu:numpy", "cpu")
    assert second.devices["virtual0"]["jobs"] == 0
    assert device.used() == 0


def test_without_such_a_device_the_rest_fails_with_the_reason(
    first_part: Callable[[dict[str, Any]], RunSummary], device: VirtualDeviceMemory
) -> None:
    first = first_part(ON_GPU)
    move_to(ON_CPU, first)
    second = resume(first.run_dir)
    assert (second.done, second.failed) == (first.done, JOBS - first.done)
    assert {failure.reason for failure in second.failures} == {
        "memory.reproducible: the run's first part did jobs like it by virtual:pyclesperanto on virtual, and "
        "no such device can take it here"
    }
    assert ways(second) == {("virtual:pyclesperanto", "virtual", "virtual0")}
    assert device.used() == 0
