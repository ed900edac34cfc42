"""What the plans for a chain say of the state that its steps keep, and of several stacks."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memcore import FunctionStep
from scheduler.core.model import DeviceKind, JobPlan
from scheduler.execution.plans import BASE_BYTES, job_plans, named_job_plans
from scheduler.execution.residents import UNDECLARED_BYTES, chain_state
from scheduler.images.arrays import ArrayFile
from scheduler.steps.errors import StepError
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


# several stacks


def declared(name: str, **contract: Any) -> ResolvedStep:
    """A step of nothing but a contract; `stacks` are what the config says of its stacks."""
    stacks = contract.pop("stacks", {})
    step = FunctionStep(lambda stack: stack, name=name, **{"input": "numpy", "workspace": 0, **contract})
    return ResolvedStep(name, name, step, {}, **stacks)


IMAGE, NUCLEI = 3 * 5 * 7 * 2, 2 * 5 * 11  # bytes
FORMS = (("image", ((3, 5, 7), "uint16")), ("nuclei", ((2, 5, 11), "uint8")))
BOTH = {"inputs": {"image": "image", "nuclei": "nuclei"}, "first": "image"}
ON_CPU: dict[DeviceKind, tuple[str, ...]] = {DeviceKind.CPU: ("numpy",)}


def to(dtype: str) -> Any:
    return lambda shape, _: (shape, dtype)


def test_every_named_stack_counts_in_primes() -> None:
    segment = declared("segment", workspace=17, output_like=to("float64"), stacks=BOTH)
    (plan,) = named_job_plans([segment], FORMS, ON_CPU)
    # Read, and worked on where they are; the result has the first one's shape.
    assert plan.footprint.host_bytes == BASE_BYTES + IMAGE + NUCLEI + 3 * 5 * 7 * 8 + 17


def test_what_is_done_to_each_stack_counts_with_the_others_beside_it() -> None:
    wide = declared("wide", workspace=19, output_like=to("float32"))
    segment = declared("segment", output_like=to("uint8"), stacks=BOTH)
    (plan,) = named_job_plans([wide, segment], FORMS, ON_CPU)
    wide_image, wide_nuclei, labels = 2 * IMAGE, 4 * NUCLEI, 3 * 5 * 7
    while_wide = wide_image + wide_nuclei + 19  # beside what was read
    while_segmenting = wide_image + wide_nuclei + labels  # all of it beside what was read
    assert plan.footprint.host_bytes == BASE_BYTES + IMAGE + NUCLEI + max(while_wide, while_segmenting)


def test_the_results_of_the_first_step_pile_up_beside_all_that_was_read() -> None:
    wide = declared("wide", workspace=1009, output_like=to("float32"))
    (plan,) = named_job_plans([wide], FORMS, ON_CPU)
    read, wide_image, wide_nuclei = IMAGE + NUCLEI, 2 * IMAGE, 4 * NUCLEI
    assert plan.footprint.host_bytes == BASE_BYTES + read + wide_image + wide_nuclei + 1009
    # On a device each stack goes as soon as its result is there.
    on_device = declared("wide", input="torch", workspace=1009, output_like=to("float32"))
    (plan,) = named_job_plans([on_device], FORMS, {DeviceKind.CUDA: ("torch",)})
    assert plan.footprint.device_bytes == max(
        read + wide_image + 1009, wide_image + NUCLEI + wide_nuclei + 1009
    )


def test_each_of_several_results_counts() -> None:
    stacks = BOTH | {"outputs": ("a", "b", "c")}
    (plan,) = named_job_plans([declared("split", stacks=stacks)], FORMS, ON_CPU)
    assert plan.footprint.host_bytes == BASE_BYTES + IMAGE + NUCLEI + 3 * IMAGE


def test_results_that_are_sent_back_are_copied_at_the_end() -> None:
    voxels = 64 * 5 * 7
    step = declared("step", splittable="z", workspace=17, output_like=to("float32"))
    forms = (("stack", ((64, 5, 7), "uint16")),)
    plain = named_job_plans([step], forms, ON_CPU)
    returned = named_job_plans([step], forms, ON_CPU, returned=True)
    # What was read, the result and its copy; or a block and its result, which have gone by then.
    whole = BASE_BYTES + voxels * 2 + voxels * 4 * 2
    assert [plan.footprint.host_bytes for plan in plain[:1]] == [whole - voxels * 4 + 17]
    assert [plan.footprint.host_bytes for plan in returned] == [whole] * len(plain)
    assert [plan.name for plan in returned] == [plan.name for plan in plain]


def test_several_stacks_are_never_cut() -> None:
    each = declared("each", splittable="z")
    assert len(named_job_plans([each], (("stack", ((64, 5, 7), "uint16")),), ON_CPU)) > 1
    assert (
        len(named_job_plans([each], (("a", ((64, 5, 7), "uint16")), ("b", ((64, 5, 7), "uint16"))), ON_CPU))
        == 1
    )
    split = declared("split", splittable="z", stacks={"outputs": ("a", "b")})
    assert len(named_job_plans([split], (("stack", ((64, 5, 7), "uint16")),), ON_CPU)) == 1


def test_arrays_from_files_count_in_the_host_and_as_copies_on_the_device() -> None:
    flat = ArrayFile("flat.tif", (5, 7), "float32", "digest")
    usable: dict[DeviceKind, tuple[str, ...]] = {DeviceKind.CUDA: ("torch",)}
    needs = []
    for files in ({}, {"flat": flat}, {"flat": flat, "again": flat}):
        step = declared("step", input="torch", stacks={"arrays": files})
        needs.append(named_job_plans([step], FORMS[:1], usable)[0].footprint)
    with_one, with_two = (5 * 7 * 4, 5 * 7 * 4), (2 * 5 * 7 * 4, 5 * 7 * 4)
    assert [
        (each.device_bytes - needs[0].device_bytes, each.host_bytes - needs[0].host_bytes)
        for each in needs[1:]
    ] == [with_one, with_two]


def test_a_dtype_that_is_refused_of_a_later_stack_is_told_as_of_the_first() -> None:
    gaussian = resolve_step("gaussian", with_={"sigma": 1.0})
    for dtypes in (("bool", "uint16"), ("uint16", "bool")):
        forms = [(f"{number}", ((3, 5, 7), dtype)) for number, dtype in enumerate(dtypes)]
        with pytest.raises(StepError, match=r"no device here can run the chain .* bool"):
            named_job_plans([gaussian], forms, USABLE)


def test_a_memory_type_that_cannot_hold_one_of_the_stacks_is_not_used() -> None:
    step = declared("step", input=["pyclesperanto", "numpy"], stacks=BOTH)
    wide = (FORMS[0], ("nuclei", ((2, 5, 11), "float64")))
    usable: dict[DeviceKind, tuple[str, ...]] = {DeviceKind.CPU: ("pyclesperanto", "numpy")}
    (plan,) = named_job_plans([step], wide, usable)
    assert plan.memory_types == ("numpy",)
    only = declared("step", input=["pyclesperanto"], stacks=BOTH)
    with pytest.raises(StepError, match="can't hold float64"):
        named_job_plans([only], wide, {DeviceKind.CUDA: ("pyclesperanto",)})
