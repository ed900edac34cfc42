"""From a step's plain description to something that runs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memcore import ContractError, FunctionStep
from memcore.contracts import implementations_of
from scheduler.images.arrays import ArrayFile
from scheduler.steps.context import StepContext
from scheduler.steps.errors import StepError as StepError
from scheduler.steps.locate import locate
from scheduler.steps.parameters import check_parameters, first_parameter, nearest
from scheduler.steps.step_class import ClassCall

BUILT_IN = {
    "convert_dtype": "scheduler.steps.change_dtype:convert_dtype",
    "flat_field": "scheduler.steps.flat_field:flat_field",
    "gaussian": "scheduler.steps.gaussian:gaussian",
    "max_projection": "scheduler.steps.max_projection:max_projection",
    "rescale_intensity": "scheduler.steps.rescale_intensity:rescale_intensity",
    "richardson_lucy": "scheduler.steps.richardson_lucy:richardson_lucy",
    "subtract_background": "scheduler.steps.subtract_background:subtract_background",
}

DECLARATION = ("input", "output", "slice_by_slice", "splittable", "halo", "workspace", "output_like")


@dataclass(frozen=True, slots=True)
class ResolvedStep:
    """A step that was found and may be called with `parameters`.

    `step.implementation_for(memory_type)` gives the function and its contract; what a class's `setup` made is
    kept in it until `close`.

    Attributes
    ----------
    given
        Every keyword under `with`. Of a class's some go to the constructor; `parameters` are those of a call.
    key
        Short, and the same in every process for equal descriptions only.
    inputs, outputs, arrays
        As in its `StepSpec`.
    first
        That of `inputs` which is the first argument of a call; the others go by their names. "" without any.
    """

    name: str
    use: str
    step: FunctionStep
    parameters: dict[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    arrays: Mapping[str, ArrayFile] = field(default_factory=dict)
    first: str = ""

    @property
    def declared_with(self) -> dict[str, Any]:
        """The keywords for what a contract declares as functions: an `ArrayFile` stands for its array."""
        return {**self.parameters, **self.arrays}

    @property
    def keeps_state(self) -> bool:
        """True for a class with a `setup`."""
        call = self._class_call()
        return call is not None and call.keeps_state

    def resident_bytes(self, memory_type: str) -> int | None:
        """The bytes that `setup` keeps for a memory type; None if the step doesn't say, 0 if it has none."""
        call = self._class_call()
        return call.resident_bytes(memory_type) if call is not None and call.keeps_state else 0

    def set_up(self, context: StepContext) -> Callable[[], None]:
        """Call `setup`, once for each memory type and device; gives a function that gives it up again.

        Raises what `setup` raises, and leaves nothing behind then. The function is to be called once; the
        last one calls `teardown`, as soon as no call of the step is running.
        """
        call = self._class_call()
        return _nothing if call is None else call.set_up(context)

    def close(self) -> None:
        """Call `teardown` on what `setup` was called on; a step that is a function has nothing to close."""
        call = self._class_call()
        if call is not None:
            call.close()

    def _class_call(self) -> ClassCall | None:
        # A class has one implementation, which serves all its memory types.
        function = self.step.implementations[0].function
        return function if isinstance(function, ClassCall) else None


@dataclass(frozen=True, slots=True)
class StepSpec:
    """The plain description of a step, from which any process finds it again: picklable and hashable.

    Attributes
    ----------
    use
        A built-in's name, `package.module:function` or `package.module:StepClass`.
    with_
        The step's keywords, of plain values as in JSON.
    memory
        Memory types to which the step is restricted, best first.
    declare
        The contract of a function that nobody decorated: the keywords of `memcore.memory_types`.
    search_path
        Folders that go last on `sys.path`.
    inputs
        For a step that takes several stacks: which of those that the chain carries each parameter gets. The
        one that the first parameter is named like, or else the first of them, is the first argument.
    outputs
        The names of the stacks that the step gives, as a dict, where it gives several.
    arrays
        Keywords whose values are arrays in files. What the contract declares as functions (`halo`,
        `workspace`) gets the `ArrayFile` for them, with shape, dtype and `read`.
    """

    use: str
    with_: Mapping[str, Any] = field(default_factory=dict)
    memory: tuple[str, ...] | None = None
    declare: Mapping[str, Any] | None = None
    search_path: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    arrays: Mapping[str, ArrayFile] = field(default_factory=dict)

    def __hash__(self) -> int:
        plain = [dict(self.with_), None if self.declare is None else dict(self.declare), dict(self.inputs)]
        files = tuple(sorted((keyword, file.digest) for keyword, file in self.arrays.items()))
        described = self.use, self.memory, self.search_path, self.outputs, files
        return hash((*described, json.dumps(plain, sort_keys=True)))

    def resolve(self) -> ResolvedStep:
        """Find the step and check its keywords. Imports the step's module, and no framework by itself.

        Raises
        ------
        StepError
            An unknown or hidden name, a module that fails, a keyword that is unknown, missing or of the wrong
            type, a value that the step refuses before it has seen a stack, a declaration that is missing or
            superfluous, or a restriction to memory types that leaves nothing.
        """
        found = locate(_reference(self.use), self.search_path)
        name = self.use if self.use in BUILT_IN else self.use.rpartition(":")[2]
        first = self._first(name, found)
        arrays = tuple(each for each in (*self.inputs, *self.arrays) if each != first)
        called = dict(self.with_)
        declare = self.declare
        if isinstance(found, type):
            declare = declare if declare is not None else getattr(found, "declare", None)
            found, called = ClassCall.of(name, found, called, arrays)
        if not callable(found):
            raise StepError(f"{self.use} is of type {type(found).__name__}, which can't be called")
        step = _function_step(name, found, declare, self.memory)
        for implementation in step.implementations:
            check_parameters(name, implementation.function, called, arrays=arrays)
        resolved = ResolvedStep(
            name,
            self.use,
            step,
            called,
            dict(self.with_),
            self._key(),
            dict(self.inputs),
            self.outputs,
            dict(self.arrays),
            first,
        )
        _check_values(resolved)
        return resolved

    def _first(self, name: str, found: object) -> str:
        """Which of `inputs` is the first argument."""
        twice = [
            each for each in (*self.inputs, *self.arrays) if each in self.with_ or each == "context"
        ] or sorted(set(self.inputs) & set(self.arrays))
        if twice:
            raise StepError(
                f"{name}: {twice[0]!r} is given twice, as a stack or an array and as something else"
            )
        if not self.inputs:
            return ""
        own = (
            first_parameter(name, found.__call__, skip=1)
            if isinstance(found, type)
            else first_parameter(name, found)
        )
        return own if own in self.inputs else next(iter(self.inputs))

    def _key(self) -> str:
        declared = None if self.declare is None else dict(self.declare)
        plain = [self.use, dict(self.with_), self.memory, declared, self.search_path]
        return hashlib.sha256(json.dumps(plain, sort_keys=True, default=_named).encode()).hexdigest()[:12]


def resolve_step(
    use: str,
    *,
    with_: Mapping[str, Any] | None = None,
    memory: Sequence[str] | None = None,
    declare: Mapping[str, Any] | None = None,
    search_path: Sequence[str] | None = None,
    arrays: Mapping[str, ArrayFile] | None = None,
) -> ResolvedStep:
    """Resolve a step from its description, as in a config file; see `StepSpec`."""
    return StepSpec(
        use,
        dict(with_ or {}),
        None if memory is None else tuple(memory),
        declare,
        tuple(map(str, search_path or ())),
        arrays=dict(arrays or {}),
    ).resolve()


def _reference(use: str) -> str:
    if ":" in use:
        return use
    if use in BUILT_IN:
        return BUILT_IN[use]
    raise StepError(
        f"no step {use!r}{nearest(use, BUILT_IN)}. Built in are {', '.join(BUILT_IN)}; "
        "a function of your own is written package.module:function"
    )


def _function_step(
    name: str,
    function: Callable[..., Any],
    declare: Mapping[str, Any] | None,
    memory: tuple[str, ...] | None,
) -> FunctionStep:
    try:
        if implementations_of(function):
            if declare is not None:
                raise StepError(f"{name} is declared by its decorator memory_types: leave out declare")
            return FunctionStep(function, input=memory, name=name)
        if declare is None:
            own = (
                "give the class an attribute declare = {'input': 'numpy'}"
                if isinstance(function, ClassCall)
                else "decorate it with memcore.memory_types"
            )
            raise StepError(
                f"{name} doesn't say which memory types it takes: {own}, "
                "or add to the step, for example, declare: {input: numpy, output: numpy}"
            )
        return FunctionStep(function, name=name, **_declared(name, declare, memory))
    except ContractError as error:
        raise StepError(_told(name, error)) from error


def _declared(name: str, declare: Mapping[str, Any], memory: tuple[str, ...] | None) -> dict[str, Any]:
    for key in declare:
        if key not in DECLARATION:
            raise StepError(f"{name}: declare has no {key!r}{nearest(key, DECLARATION)}")
    if "input" not in declare:
        raise StepError(f"{name}: declare needs input, the memory types that the function takes")
    keywords = dict(declare)
    if memory is not None:
        given = declare["input"]
        declared = (given,) if isinstance(given, str) else tuple(given)
        keywords["input"] = tuple(each for each in memory if each in declared)
        if not keywords["input"]:
            raise StepError(f"{name} accepts {', '.join(declared)}, none of {', '.join(memory)}")
    return keywords


def _check_values(resolved: ResolvedStep) -> None:
    """Let the contracts look at the values: a negative sigma is found before the first image is read."""
    for implementation in resolved.step.implementations:
        try:
            implementation.contract.splittable_for(**resolved.declared_with)
            implementation.contract.halo_for(**resolved.declared_with)
        except (ValueError, TypeError) as error:
            raise StepError(_told(resolved.name, error)) from error
    for memory_type in resolved.step.memory_types:
        resolved.resident_bytes(memory_type)


def _named(value: Any) -> str:
    """A function in a declaration, by its name."""
    return str(getattr(value, "__qualname__", value))


def _nothing() -> None:
    """A function has nothing to give up."""


def _told(name: str, error: Exception) -> str:
    return str(error) if str(error).startswith(name) else f"{name}: {error}"
