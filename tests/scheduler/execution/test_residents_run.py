"""Steps with state in whole runs: set up once for each device, evicted when another job needs the room."""

import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pools.virtual import VirtualDeviceMemory
from scheduler.config.model import DevicesConfig, MemoryConfig
from scheduler.core.instructions import JobOutcome
from scheduler.execution.devices import run_label
from scheduler.execution.local import local_scheduler
from scheduler.execution.stack_scheduler import StackJob, StackScheduler
from scheduler.host.reservations import Reservations
from scheduler.steps.resolve import StepSpec
from tests.scheduler.execution.tiny_runs import decided

MODULE = """
import os
import numpy as np
from memcore import memory_types

class Model:
    declare = {"input": "torch"}
    resident_bytes = "24MiB"

    def __init__(self, *, log: str):
        self.log = log

    def note(self, what):
        with open(self.log, "a") as file:
            file.write(f"{what} {os.environ['STACKYARD_DEVICE']}\\n")

    def setup(self, context):
        self.note("setup")
        self.added = 7

    def __call__(self, stack):
        return stack + self.added

    def teardown(self):
        self.note("teardown")

class OnHost:
    declare = {"input": "numpy"}
    resident_bytes = "300MiB"

    def setup(self, context):
        self.kept = np.ones(300 << 20, np.uint8)

    def __call__(self, stack):
        return stack + self.kept[0]

@memory_types("torch", workspace=45 << 20)
def hungry(stack):
    return stack
"""
STACK = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)

pytest.importorskip("torch", reason="needs torch")

On = Callable[[], AbstractContextManager["Bench"]]


class Bench:
    """A scheduler on two virtual devices of 64 MiB, and jobs for it."""

    def __init__(self, folder: Path, scheduler: StackScheduler) -> None:
        self.scheduler = scheduler
        self._path = (str(folder),)
        self._log = scheduler.run_dir.with_suffix(".log")

    def run(self, use: str, count: int) -> set[str]:
        """The devices on which so many jobs have run."""
        keywords = {"log": str(self._log)} if use == "Model" else {}
        spec = StepSpec(f"stackyard_stateful:{use}", keywords, search_path=self._path)
        futures = self.scheduler.map([StackJob(STACK, [spec])] * count, returns="array")
        results = [future.result(timeout=200) for future in futures]
        added = 7 if use == "Model" else 0
        for result in results:
            assert result.outcome is JobOutcome.DONE, result.reason
            np.testing.assert_array_equal(result.arrays["stack"], STACK + added)
        return {result.device for result in results}

    def notes(self) -> Counter[str]:
        """How often each device has set up and torn down."""
        return Counter(self._log.read_text().splitlines())

    def set_up(self) -> int:
        return sum(count for note, count in self.notes().items() if note.startswith("setup"))


def whose(bench: Bench, run_dir: Path) -> set[bool]:
    """Whether processes on the two devices are of the run in that folder."""
    with Reservations(run=run_label(run_dir)) as table:
        return {
            process.ours
            for uuid in {note.split()[1] for note in bench.notes()}
            for process in table.processes(uuid)
        }


@pytest.fixture
def two_devices(tmp_path: Path) -> On:
    """Start worker processes for two virtual devices."""
    (tmp_path / "stackyard_stateful.py").write_text(MODULE)

    return lambda: started(tmp_path, {"virtual": ["64MiB", "64MiB"]})


@contextmanager
def started(folder: Path, gpus: dict[str, Any], name: str = "run") -> Iterator[Bench]:
    """The same with the GPUs given; the module is in the folder."""
    with local_scheduler(
        run_dir=folder / name,
        devices=DevicesConfig.model_validate({"gpus": gpus, "cpu": False}),
        memory=MemoryConfig(on_pressure="wait"),
    ) as scheduler:
        yield Bench(folder, scheduler)


def test_two_hundred_jobs_set_up_once_for_each_device(two_devices: On) -> None:
    with two_devices() as bench:
        assert len(bench.run("Model", 200)) == 2
        assert sorted(bench.notes().values()) == [1, 1]
        assert bench.set_up() == 2
        # What is kept there is this run's, and no other one's with a folder of the same name.
        assert whose(bench, bench.scheduler.run_dir) == {True}
        assert whose(bench, Path("elsewhere", bench.scheduler.run_dir.name).absolute()) == {False}
    notes = bench.notes()
    assert len(notes) == 4
    assert set(notes.values()) == {1}, "what was set up is torn down at the end"


def test_after_one_eviction_it_is_set_up_a_third_time(two_devices: On) -> None:
    with two_devices() as bench:
        assert len(bench.run("Model", 100)) == 2
        assert bench.set_up() == 2
        # 45 MiB don't fit beside the 24 MiB that a device's state holds.
        assert len(bench.run("hungry", 1)) == 1
        assert [count for note, count in bench.notes().items() if note.startswith("teardown")] == [1]
        assert len(bench.run("Model", 100)) == 2
        assert bench.set_up() == 3
    assert sum(bench.notes().values()) == 6


def test_two_runs_that_share_a_device_give_each_other_what_they_do_not_use(tmp_path: Path) -> None:
    # Each keeps 24 MiB of 64 there. 45 MiB don't fit beside the other one's, even without its own.
    (tmp_path / "stackyard_stateful.py").write_text(MODULE)
    shared = {"virtual": ["64MiB"], "name": f"shared-{secrets.token_hex(4)}"}
    with started(tmp_path, shared, "one") as one, started(tmp_path, shared, "other") as other:
        for bench in (one, other):
            one.run("Model", 2)
            other.run("Model", 2)
            bench.run("hungry", 1)
        assert [one.set_up(), other.set_up()] == [2, 2]
    VirtualDeviceMemory(f"VIRTUAL-{shared['name']}-0").unlink()
    needs = r"Model\(torch\) \w+ is put away: another run needs .* MiB on virtual0"
    for bench, hungry in ((one, "job-000003"), (other, "job-000005")):
        summary = bench.scheduler.summary
        assert summary is not None
        assert "other runs are asked for 24 MiB of state" in decided(summary, hungry)
        assert [remark for remark in summary.remarks if re.fullmatch(needs, remark)]


def test_state_in_host_memory_has_room_beside_the_jobs_that_use_it(tmp_path: Path) -> None:
    (tmp_path / "stackyard_on_host.py").write_text(MODULE)
    step = StepSpec("stackyard_on_host:OnHost", search_path=(str(tmp_path),))
    with local_scheduler(
        run_dir=tmp_path / "run",
        devices=DevicesConfig(gpus=[], cpu=True),
        memory=MemoryConfig.model_validate({"host_limit": "650MiB"}),
        expected_jobs=1,
    ) as scheduler:
        futures = scheduler.map([StackJob(STACK, [step]) for _ in range(3)], returns="array")
        # Were what the first one leaves there counted again, no other one would be admitted.
        for result in [future.result(timeout=60) for future in futures]:
            np.testing.assert_array_equal(result.check().arrays["stack"], STACK + 1)
