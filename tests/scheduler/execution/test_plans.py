"""What the plans for a chain say of the state that its steps keep."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.core.model import DeviceKind, JobPlan
from scheduler.execution.plans import job_plans
from scheduler.execution.residents import UNDECLARED_BYTES, chain_state
from scheduler.steps.resolve import ResolvedStep, resolve_step

NAME = "stackyard_planned_steps"
MODULE = """
class Model:
    declare = {"input": "torch", "splittable": "z", "workspace": 0}

    def __init__(self, *, nbytes: int | None = None):
        pass

    @staticmethod
    def resident_bytes(nbytes):
        return nbytes or 0

    def setup(self, context):
        pass

    def __call__(self, stack):
        return stack

class OnHost(Model):
    declare = {"input": "numpy", "splittable": "z", "workspace": 0}

class Undeclared(Model):
    resident_bytes = None
"""

USABLE: dict[DeviceKind, tuple[str, ...]] = {
    DeviceKind.CUDA: ("torch", "numpy"),
    DeviceKind.VIRTUAL: ("torch",),
    DeviceKind.CPU: ("torch", "numpy"),
}
MIB = 1 << 20
Resolve = Callable[..., ResolvedStep]


@pytest.fixture
def resolve(tmp_path: Path) -> Iterator[Resolve]:
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    path = list(sys.path)

    def make(name: str, **given: Any) -> ResolvedStep:
        return resolve_step(f"{NAME}:{name}", with_=given, search_path=[str(tmp_path)])

    yield make
    sys.path[:] = path
    sys.modules.pop(NAME, None)


def plans_on(kind: DeviceKind, *steps: ResolvedStep) -> list[JobPlan]:
    return [plan for plan in job_plans(steps, (16, 5, 7), "uint16", USABLE) if kind in plan.device_kinds]


@pytest.mark.parametrize(
    ("kind", "resident", "in_host"),
    [(DeviceKind.CUDA, 11, 5), (DeviceKind.VIRTUAL, 11, 16), (DeviceKind.CPU, None, 16)],
)
def test_each_kind_of_device_reserves_the_state_where_it_lies(
    resolve: Resolve, kind: DeviceKind, resident: int | None, in_host: int
) -> None:
    stateful = [
        resolve("Model", nbytes=4 * MIB),
        resolve("OnHost", nbytes=5 * MIB),
        resolve("Model", nbytes=7 * MIB),
    ]
    stateless = [resolve("Model", nbytes=0), resolve("OnHost", nbytes=0), resolve("Model", nbytes=0)]
    found, plain = plans_on(kind, *stateful), plans_on(kind, *stateless)
    assert len(found) > 1, "plans in blocks keep the same state"
    for plan, without in zip(found, plain, strict=True):
        assert (plan.resident and plan.resident.nbytes) == (resident and resident * MIB)
        assert plan.footprint.device_bytes == without.footprint.device_bytes
        assert plan.footprint.host_bytes == without.footprint.host_bytes + in_host * MIB
    assert len({plan.resident for plan in found}) == 1


def test_a_plan_names_its_state_as_the_worker_does(resolve: Resolve) -> None:
    step = resolve("Model", nbytes=3)
    plan = plans_on(DeviceKind.CUDA, step)[0]
    in_worker = chain_state([(resolve("Model", nbytes=3), "torch")], on_gpu=True)
    assert plan.resident is not None
    assert in_worker is not None
    assert (plan.resident.name, plan.resident.nbytes) == (in_worker.name, in_worker.device_bytes)


def test_nothing_is_resident_where_nothing_is_kept_on_the_device(resolve: Resolve) -> None:
    assert plans_on(DeviceKind.CUDA, resolve("Model", nbytes=0))[0].resident is None
    gaussian = resolve_step("gaussian", with_={"sigma": 1.0})
    assert plans_on(DeviceKind.CUDA, gaussian)[0].resident is None


def test_state_of_unknown_size_is_resident_too(resolve: Resolve) -> None:
    (plan, *_) = plans_on(DeviceKind.CUDA, resolve("Undeclared"))
    assert plan.resident is not None
    assert plan.resident.nbytes == UNDECLARED_BYTES
