"""From a step's description to something that runs, or to one clear message."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcore import FunctionStep, MemoryType
from scheduler.images.arrays import ArrayFile
from scheduler.steps.resolve import BUILT_IN, ResolvedStep, StepError, StepSpec, resolve_step

REQUIRED: dict[str, dict[str, Any]] = {
    "gaussian": {"sigma": 2.0},
    "richardson_lucy": {"sigma": 2.0},
    "convert_dtype": {"dtype": "uint8", "rule": "saturate"},
}
FRAME = ArrayFile("frame.tif", (2, 3), "float32", "digest")
REQUIRED_ARRAYS = {"flat_field": {"flat": FRAME}}

DECORATED = """
from memcore import memory_types

@memory_types(["numpy", "torch"], halo=(1, 2, 3), splittable="zyx")
def brighten(stack, by: float = 1.0, *, levels: list[int] | None = None, context=None):
    return stack + by

@brighten.register("jax")
def brighten_jax(stack, by: float = 1.0, *, levels: list[int] | None = None):
    return stack + by

def plain(stack, *, factor: int):
    return stack * factor

@memory_types("numpy")
def segment(nuclei, image, *, level: float, flat=None):
    return nuclei

class Segment:
    declare = {"input": "numpy"}
    def __call__(self, first, second, *, flat=None):
        return first

def nothing(*, image):
    return image

answer = 42
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for modules beside a config; what they leave in the interpreter is put back."""
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture
def beside(folder: Path) -> Path:
    (folder / "stackyard_mylab.py").write_text(DECORATED)
    return folder


def resolve(beside: Path, use: str, **keywords: Any) -> ResolvedStep:
    return resolve_step(use, search_path=[str(beside)], **keywords)


@pytest.mark.parametrize("use", BUILT_IN)
def test_every_built_in_resolves_by_its_name(use: str) -> None:
    resolved = resolve_step(use, with_=REQUIRED.get(use), arrays=REQUIRED_ARRAYS.get(use))
    assert isinstance(resolved.step, FunctionStep)
    assert (resolved.name, resolved.use, resolved.step.name) == (use, use, use)
    assert "numpy" in resolved.step.memory_types
    for implementation in resolved.step.implementations:
        assert implementation.function.__doc__


def test_resolving_imports_no_framework() -> None:
    code = f"""
import sys
from scheduler.images.arrays import ArrayFile
from scheduler.steps.resolve import BUILT_IN, resolve_step
for use in BUILT_IN:
    resolve_step(use, with_={REQUIRED!r}.get(use), arrays={REQUIRED_ARRAYS!r}.get(use))
loaded = {{"torch", "jax", "tensorflow", "cupy", "pyclesperanto"}} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_module_beside_the_config_is_found(beside: Path) -> None:
    before = list(sys.path)
    resolved = resolve(beside, "stackyard_mylab:brighten", with_={"by": 2, "levels": [1, 2]})
    assert sys.path == [*before, str(beside)]
    assert resolved.parameters == {"by": 2, "levels": [1, 2]}
    assert resolved.step.memory_types == (MemoryType.NUMPY, MemoryType.TORCH, MemoryType.JAX)
    assert resolved.step.implementation_for("torch").contract.halo_for() == (1, 2, 3)
    np.testing.assert_array_equal(resolved.step(np.zeros((1, 2, 3)), **resolved.parameters), 2)
    resolve(beside, "stackyard_mylab:brighten")
    assert sys.path.count(str(beside)) == 1


def test_a_module_in_a_package_beside_the_config_is_found(folder: Path) -> None:
    (folder / "stackyard_lab").mkdir()
    (folder / "stackyard_lab" / "cells.py").write_text(DECORATED)
    assert resolve(folder, "stackyard_lab.cells:brighten").name == "brighten"


def test_memory_restricts_and_orders(beside: Path) -> None:
    resolved = resolve(beside, "stackyard_mylab:brighten", memory=["jax", "cupy", "numpy"])
    assert resolved.step.memory_types == ("jax", "numpy")
    with pytest.raises(StepError, match="brighten accepts numpy, torch, jax, none of cupy"):
        resolve(beside, "stackyard_mylab:brighten", memory=["cupy"])
    with pytest.raises(StepError, match="no memory type 'nunpy'"):
        resolve(beside, "stackyard_mylab:brighten", memory=["nunpy"])


def test_an_undecorated_function_runs_by_its_declaration(beside: Path) -> None:
    resolved = resolve(
        beside,
        "stackyard_mylab:plain",
        with_={"factor": 3},
        declare={"input": ["numpy", "torch"], "output": "same", "splittable": "z", "workspace": 1 << 20},
        memory=["torch"],
    )
    contract = resolved.step.implementations[0].contract
    assert (contract.input, contract.splittable_for(), contract.workspace_for((1, 1, 1), "uint8")) == (
        ("torch",),
        "z",
        1 << 20,
    )


def test_a_function_of_another_library_runs_by_its_declaration() -> None:
    resolved = resolve_step(
        "scipy.ndimage:median_filter", with_={"size": 3}, declare={"input": "numpy", "output": "numpy"}
    )
    assert resolved.step(np.ones((3, 4, 5)), **resolved.parameters).shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("use", "keywords", "message"),
    [
        (
            "gausian",
            {},
            r"no step 'gausian' \(did you mean 'gaussian'\?\)\. Built in are convert_dtype, flat_field",
        ),
        ("zzz", {}, "no step 'zzz'. Built in are"),
        ("gaussian", {}, "gaussian needs sigma"),
        (
            "gaussian",
            {"with_": {"sigm": 2.0}},
            r"no parameter 'sigm' \(did you mean 'sigma'\?\); it takes sigma",
        ),
        ("max_projection", {"with_": {"axis": 0}}, "no parameter 'axis'; it takes none"),
        ("gaussian", {"with_": {"sigma": "2"}}, r"sigma is '2', where float \| Sequence\[float\] is wanted"),
        ("gaussian", {"with_": {"sigma": True}}, "sigma is True"),
        ("gaussian", {"with_": {"sigma": -1.0}}, "gaussian: sigma is in pixels, zero or more; got -1.0"),
        ("subtract_background", {"with_": {"radius": 2.5}}, "radius is 2.5, where int is wanted"),
        ("richardson_lucy", {}, "needs either sigma"),
        ("richardson_lucy", {"with_": {"sigma": 1.0, "psf": [[[1.0]]]}}, "not both"),
        ("rescale_intensity", {"with_": {"percentiles": [99, 1]}}, "percentiles are 0 <= low < high <= 100"),
        ("convert_dtype", {"with_": {"dtype": "uint8", "rule": "round"}}, "rule is 'round', where Literal"),
        ("gaussian", {"with_": {"sigma": np.ones(3)}}, "sigma is a ndarray, where numbers, text, lists"),
        ("max_projection", {"with_": {"context": 1}}, "context is given by the scheduler"),
        ("max_projection", {"declare": {"input": "numpy"}}, "declared by its decorator"),
        ("stackyard_mylab:plain", {"with_": {"factor": 2}}, "declare: {input: numpy, output: numpy}"),
        (
            "stackyard_mylab:plain",
            {"declare": {"inputs": "numpy"}, "with_": {"factor": 2}},
            r"declare has no 'inputs' \(did you mean 'input'\?\)",
        ),
        ("stackyard_mylab:plain", {"declare": {"output": "numpy"}}, "declare needs input"),
        (
            "stackyard_mylab:plain",
            {"declare": {"input": "numpy"}, "memory": ["torch"]},
            "plain accepts numpy, none of torch",
        ),
        ("stackyard_mylab:plain", {"declare": {"input": "numpi"}}, "no memory type 'numpi'"),
        ("stackyard_mylab:brigthen", {}, r"has no 'brigthen' \(did you mean 'brighten'\?\)"),
        ("stackyard_mylab:answer", {}, "is of type int, which can't be called"),
        ("stackyard_mylab.more:f", {}, "no module 'stackyard_mylab.more'"),
        (
            "stackyard_nothing.here:f",
            {},
            "no module 'stackyard_nothing' for the step stackyard_nothing.here:f",
        ),
        ("not a module:f", {}, "not of the form package.module:function"),
        ("stackyard_mylab:", {}, "not of the form package.module:function"),
    ],
)
def test_what_cannot_be_is_refused(beside: Path, use: str, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError, match=message):
        resolve(beside, use, **keywords)


def test_a_failing_import_is_explained_with_its_causes(folder: Path) -> None:
    (folder / "stackyard_broken.py").write_text(
        "try:\n    import stackyard_absent\nexcept ImportError as error:\n"
        "    raise RuntimeError('install the lab package') from error\n"
    )
    with pytest.raises(StepError) as caught:
        resolve(folder, "stackyard_broken:f")
    assert "\n" not in str(caught.value)
    assert "RuntimeError: install the lab package, caused by ModuleNotFoundError" in str(caught.value)
    assert "stackyard_absent" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_module_that_lacks_something_is_not_taken_for_missing(folder: Path) -> None:
    (folder / "stackyard_lacks.py").write_text("import stackyard_absent\n")
    with pytest.raises(StepError, match=r"importing the step stackyard_lacks:f failed.*'stackyard_absent'"):
        resolve(folder, "stackyard_lacks:f")


def test_a_script_that_exits_does_not_end_the_run(folder: Path) -> None:
    (folder / "stackyard_script.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(StepError, match="SystemExit: 3"):
        resolve(folder, "stackyard_script:f")


@pytest.mark.parametrize("name", ["json", "scipy", "sys"])
def test_a_file_hides_no_installed_module_and_is_not_hidden_silently(folder: Path, name: str) -> None:
    (folder / f"{name}.py").write_text("def f(stack):\n    return stack\n")
    with pytest.raises(StepError, match=rf"{name}.py is hidden by another module .*rename"):
        resolve(folder, f"{name}:f", declare={"input": "numpy"})
    # A file that happens to be there doesn't keep a run from the module of that name.
    (folder / f"{name}.py").unlink()
    (folder / name).mkdir()
    with pytest.raises(StepError, match=f"{name} has no 'f'"):
        resolve(folder, f"{name}:f", declare={"input": "numpy"})


def test_a_spec_is_enough_for_another_process(beside: Path) -> None:
    spec = StepSpec("stackyard_mylab:brighten", {"by": 2.5}, ("numpy",), None, (str(beside),))
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert hash(again) == hash(spec)
    assert len({spec, again, StepSpec("gaussian", {"sigma": [1, 2, 3]})}) == 2
    code = (
        "import pickle, sys, numpy as np\n"
        "resolved = pickle.load(sys.stdin.buffer).resolve()\n"
        "print(resolved.step(np.zeros((1, 1, 1)), **resolved.parameters).item(), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(spec), capture_output=True, check=True, timeout=120
    )
    assert done.stdout.split() == [b"2.5", b"False"]


def test_a_function_without_a_signature_is_taken_as_it_is() -> None:
    resolved = resolve_step("numpy:maximum.reduce", with_={"axis": 0}, declare={"input": "numpy"})
    assert resolved.parameters == {"axis": 0}


def test_an_implementation_that_lacks_a_parameter_is_found_before_it_runs(folder: Path) -> None:
    (folder / "stackyard_uneven.py").write_text(
        "from memcore import memory_types\n"
        "@memory_types('numpy')\ndef step(stack, *, gain=1):\n    return stack\n"
        "@step.register('torch')\ndef step_torch(stack):\n    return stack\n"
    )
    assert resolve(folder, "stackyard_uneven:step", with_={"gain": 2}, memory=["numpy"]).name == "step"
    with pytest.raises(StepError, match="no parameter 'gain'"):
        resolve(folder, "stackyard_uneven:step", with_={"gain": 2})


TWO = {"image": "raw", "nuclei": "nuclei"}


def several(beside: Path, name: str, **rest: Any) -> ResolvedStep:
    return StepSpec(f"stackyard_mylab:{name}", search_path=(str(beside),), **rest).resolve()


def test_the_first_argument_is_the_input_that_the_first_parameter_is_named_like(beside: Path) -> None:
    assert several(beside, "segment", inputs=TWO, with_={"level": 1}).first == "nuclei"
    assert several(beside, "Segment", inputs={"one": "one", "second": "two"}).first == "one"
    assert (
        several(beside, "segment", inputs={"first": "a", "image": "b"}, with_={"level": 1}).first == "first"
    )


@pytest.mark.parametrize(
    ("name", "rest", "match"),
    [
        (
            "segment",
            {"inputs": {"nuclei": "a", "imag": "b"}, "with_": {"level": 1}},
            "no parameter 'imag'.*'image'",
        ),
        (
            "segment",
            {"inputs": {"nuclei": "a"}, "with_": {"level": 1}},
            "needs image: .*another stack under inputs",
        ),
        ("segment", {"inputs": TWO, "with_": {"level": 1, "image": 2}}, "'image' is given twice"),
        (
            "segment",
            {"inputs": TWO, "with_": {"level": 1}, "arrays": {"image": FRAME}},
            "'image' is given twice",
        ),
        (
            "segment",
            {"inputs": TWO, "with_": {"level": 1}, "arrays": {"flt": FRAME}},
            "no parameter 'flt'.*'flat'",
        ),
        ("Segment", {"inputs": {"first": "a", "third": "b"}}, "no parameter 'third'"),
        (
            "Segment",
            {"inputs": {"first": "a", "second": "b"}, "arrays": {"dark": FRAME}},
            "no parameter 'dark'",
        ),
        ("nothing", {"inputs": TWO, "declare": {"input": "numpy"}}, "takes no stack"),
    ],
)
def test_stacks_and_arrays_have_parameters_of_their_names(
    beside: Path, name: str, rest: dict[str, Any], match: str
) -> None:
    with pytest.raises(StepError, match=match):
        several(beside, name, **rest)


def test_other_values_in_a_file_are_another_step() -> None:
    specs = [
        StepSpec("flat_field", arrays={"flat": ArrayFile("f.tif", (2, 3), "uint8", digest)})
        for digest in "ab"
    ]
    assert len({*specs, *pickle.loads(pickle.dumps(specs))}) == 2
