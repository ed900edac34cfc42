"""The stress step: exact arithmetic, the bytes that it should take, and whether they stayed its own."""

import contextlib
import importlib
import uuid
from types import SimpleNamespace

import numpy as np
import pytest

from memcore import OutOfDeviceMemoryError, convert_memory
from pools import PoolSet
from pools.virtual import VirtualDeviceMemory
from scheduler.core.model import Device, DeviceKind
from scheduler.steps.context import StepContext
from scheduler.steps.resolve import resolve_step
from scheduler.stress import steps
from scheduler.stress.diary import read_diaries
from scheduler.stress.expected import difference, expected_result, mixed_at_once
from scheduler.stress.workload import MODULI, input_stack, make_workload

MIB = 1 << 20
JOBS = make_workload(40, capacity=256 * MIB, under_estimate=50.0, seed=5)
SLY = next(job for job in JOBS if job.under_estimates and not job.family.turned)
HONEST = next(job for job in JOBS if not job.under_estimates and not job.family.turned)


class Worker:
    """A stand-in for the process of a virtual device; what is charged beyond its reservation is real."""

    def __init__(self, run_dir, memory: VirtualDeviceMemory) -> None:
        self.run_dir = run_dir
        self.memory = memory
        uuid = memory.path.name.split("-", 2)[2]
        self.device = Device(uuid, "virtual0", DeviceKind.VIRTUAL, memory.capacity)
        self.extra: list[int] = []

    @contextlib.contextmanager
    def charged(self, nbytes, what):
        self.extra.append(nbytes)
        with self.memory.charge(nbytes, what):
            yield


@pytest.fixture
def worker(tmp_path, monkeypatch):
    memory = VirtualDeviceMemory(f"steps-test-{uuid.uuid4().hex}", 256 * MIB)
    worker = Worker(tmp_path, memory)
    monkeypatch.setattr(steps, "current_worker", lambda: worker)
    monkeypatch.setattr(steps, "make_disk_slow", lambda: None)
    yield worker
    memory.unlink()


@pytest.fixture
def pool():
    with contextlib.closing(PoolSet(host_limit=64 * MIB)) as pools:
        yield pools.pool("numpy", "cpu")


def keywords(job):
    mixing = job.family.mixing
    return {
        "bytes_per_voxel": job.family.bytes_per_voxel,
        "rounds": mixing.rounds,
        "weights": list(mixing.weights),
        "offset": mixing.offset,
        "hold_s": 0.0,
    }


def strain(job, pool, reserved: int, worker):
    """As an attempt runs it on a virtual device, whose reservation is charged already."""
    torch = pytest.importorskip("torch")
    assert torch
    stack = convert_memory(input_stack(job), "numpy", "torch", "cpu")
    context = StepContext("torch", "cpu", pool, job.name)
    with worker.memory.charge(reserved, job.name):
        result = steps.strain(stack, **keywords(job), context=context)
    return convert_memory(result, "torch", "numpy", "cpu")


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", MODULI)
def test_the_arithmetic_is_exact_everywhere(framework, dtype):
    pytest.importorskip(framework)
    for job in (job for job in JOBS if job.dtype == dtype):
        mixing = job.family.mixing
        stack = convert_memory(input_stack(job), "numpy", framework, "cpu", copy=True)
        mixed = steps._mixed(stack, mixing.rounds, mixing.weights, mixing.offset)
        result = convert_memory(mixed, framework, "numpy", "cpu")
        assert difference(result, mixed_at_once(input_stack(job), mixing)) == ""


def test_turn_reverses_planes_and_swaps_rows_and_columns():
    job = next(job for job in JOBS if job.family.turned)
    mixed = mixed_at_once(input_stack(job), job.family.mixing)
    turned = steps.turn(mixed)
    assert difference(turned, expected_result(job)) == ""
    contract = resolve_step("scheduler.stress.steps:turn").step.implementations[0].contract
    assert contract.output_for(job.shape, job.dtype) == (turned.shape, job.dtype)


def test_a_job_that_declares_what_it_needs_takes_no_more(worker, pool):
    result = strain(HONEST, pool, HONEST.declared_bytes, worker)
    assert difference(result, expected_result(HONEST)) == ""
    assert worker.extra == [0]
    (run,) = read_diaries(worker.run_dir)
    assert (run.job, run.charged_bytes, run.ended) == (HONEST.name, HONEST.declared_bytes, True)
    assert run.touched_bytes * 100 >= run.charged_bytes
    assert worker.memory.used() == 0


def test_a_job_that_under_estimates_takes_what_its_reservation_lacks(worker, pool):
    need = SLY.declared_bytes * SLY.need_percent // 100
    reserved = SLY.declared_bytes * 5 // 4
    strain(SLY, pool, reserved, worker)
    assert worker.extra == [need - reserved]
    (run,) = read_diaries(worker.run_dir)
    assert run.charged_bytes == need


def test_a_margin_that_covers_an_under_estimate_is_enough(worker, pool):
    strain(SLY, pool, 2 * SLY.declared_bytes, worker)
    assert worker.extra == [0]


def test_a_job_that_under_estimates_runs_out_of_memory_on_a_full_device(worker, pool):
    with (
        worker.memory.charge(worker.memory.capacity - SLY.declared_bytes, "hog"),
        pytest.raises(OutOfDeviceMemoryError),
    ):
        strain(SLY, pool, SLY.declared_bytes, worker)
    (run,) = read_diaries(worker.run_dir)
    assert (run.charged_bytes, run.touched_bytes, run.ended) == (0, 0, False)


def test_memory_that_somebody_else_writes_to_is_noticed(worker):
    memory = np.zeros(SLY.declared_bytes, np.uint8)

    class SharedPool:
        @contextlib.contextmanager
        def acquire(self, shape, dtype):
            yield memory[: shape[0]]

    context = SimpleNamespace(pool=SharedPool(), job_id=HONEST.name)
    with steps._step_run(HONEST.name) as run, steps._held(1000, context, run):
        memory[10] ^= 1
        memory[10] ^= 1
    with (
        pytest.raises(steps.CorruptMemoryError, match=HONEST.name),
        steps._step_run(HONEST.name) as run,
        steps._held(1000, context, run),
    ):
        memory[10] ^= 1


def test_declared_bytes_are_those_of_the_workload():
    step = resolve_step("scheduler.stress.steps:strain", with_=keywords(SLY)).step
    contract = step.implementation_for("torch").contract
    assert contract.workspace_for(SLY.shape, SLY.dtype, **keywords(SLY)) == SLY.declared_bytes
    # The share of host memory covers the largest under-estimate too.
    on_cpu = step.implementation_for("numpy").contract.workspace_for(SLY.shape, SLY.dtype, **keywords(SLY))
    assert on_cpu == int(SLY.declared_bytes * 0.025) + 40 * int(np.prod(SLY.shape))


def test_importing_the_steps_changes_nothing():
    import os

    before = os.fsync
    importlib.reload(steps)
    assert os.fsync is before
