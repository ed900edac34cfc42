"""How a function declares the memory types it takes and gives, and what else a scheduler must know.

A declaration lives in the wrapper's `__dict__`, where `functools.wraps` and pickling by name both keep it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, cast

from memcore.errors import ContractError
from memcore.info import place_text
from memcore.memory_type import Array, GpuId, MemoryType

Halo: TypeAlias = tuple[int, int, int]
Form: TypeAlias = tuple[tuple[int, ...], str]
Split: TypeAlias = Literal["z", "zyx"] | None

SAME = "same"
ATTRIBUTE = "__memory_types__"


@dataclass(frozen=True, slots=True)
class Contract:
    """What one implementation takes and gives.

    Attributes
    ----------
    input : memory types that it accepts, best first
    output : memory type of the result, or "same" as the input's
    slice_by_slice : it works on each plane alone
    splittable : None, "z" or "zyx", the axes along which the stack may be cut into blocks, or a callable of
        the step's keywords giving that
    halo : planes and pixels (z, y, x) that a block needs around it, or a callable of the step's keywords
        giving them
    workspace : bytes used beside input and result, or a callable (shape, dtype, **keywords) giving them; None
        if unknown
    output_like : None for a result of the input's shape and dtype, or a callable (shape, dtype, **keywords)
        giving both
    """

    input: tuple[str, ...]
    output: str = SAME
    slice_by_slice: bool = False
    splittable: Split | Callable[..., Split] = None
    halo: Halo | Callable[..., Halo] = (0, 0, 0)
    workspace: int | Callable[..., int] | None = None
    output_like: Callable[..., Form] | None = None

    def __post_init__(self) -> None:
        if not self.input:
            raise ContractError("a step needs at least one input memory type")
        if not callable(self.splittable):
            _checked_split(self.splittable)
        if not callable(self.halo):
            _checked_halo(self.halo)

    def output_type(self, memory_type: str) -> str:
        """Memory type of the result for an input of that type."""
        return memory_type if self.output == SAME else self.output

    def splittable_for(self, **keywords: object) -> Split:
        """The axes along which the stack may be cut for these keywords of the step: None, "z" or "zyx"."""
        split = self.splittable
        return _checked_split(_call(split, (), keywords) if callable(split) else split)

    def halo_for(self, **keywords: object) -> Halo:
        """Planes and pixels (z, y, x) for these keywords of the step."""
        halo = _call(self.halo, (), keywords) if callable(self.halo) else self.halo
        return _checked_halo(halo)

    def workspace_for(self, shape: tuple[int, ...], dtype: str, /, **keywords: object) -> int | None:
        """Bytes beside input and result, or None if the step doesn't say."""
        if callable(self.workspace):
            return int(_call(self.workspace, (shape, dtype), keywords))
        return self.workspace

    def output_for(self, shape: tuple[int, ...], dtype: str, /, **keywords: object) -> Form:
        """Shape and dtype of the result."""
        if self.output_like is None:
            return shape, dtype
        out_shape, out_dtype = _call(self.output_like, (shape, dtype), keywords)
        return tuple(out_shape), str(out_dtype)


@dataclass(frozen=True, slots=True)
class Implementation:
    """A function with its contract; `takes_context` if it declares a keyword-only `context`."""

    function: Callable[..., Any]
    contract: Contract
    takes_context: bool = field(init=False)

    def __post_init__(self) -> None:
        context = _parameters(self.function).get("context")
        takes = context is not None and context.kind is inspect.Parameter.KEYWORD_ONLY
        object.__setattr__(self, "takes_context", takes)

    def __call__(self, stack: Array, /, *rest: Any, **keywords: Any) -> Any:
        """Call the function, checking type, device and [Z, Y, X] of what goes in and what comes out."""
        name = getattr(self.function, "__name__", repr(self.function))
        memory_type, device = check_stack(stack, self.contract.input, f"{name} was given")
        result = self.function(stack, *rest, **keywords)
        _refuse_table_alone(name, result)
        expected = self.contract.output_type(memory_type)
        for part in _arrays_of(result):
            given_type, given_device = check_stack(part, (expected,), f"{name} gave back")
            if given_type == memory_type and given_device != device:
                there, here = place_text(device), place_text(given_device)
                raise ContractError(f"{name} was given a stack {there} and gave one back {here}")
        return result


class StepFunction(Protocol):
    """A decorated step: called like the function it wraps, and open to further implementations."""

    __name__: str

    def __call__(self, stack: Array, /, *rest: Any, **keywords: Any) -> Any:
        """Run the implementation for the type of `stack`, checking what goes in and comes out."""

    def register(
        self, input: str | Iterable[str], output: str = SAME, **overrides: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare another implementation; what isn't given is as in the first declaration."""


def memory_types(
    input: str | Iterable[str],
    output: str = SAME,
    *,
    slice_by_slice: bool = False,
    splittable: Split | Callable[..., Split] = None,
    halo: Halo | Callable[..., Halo] = (0, 0, 0),
    workspace: int | Callable[..., int] | None = None,
    output_like: Callable[..., Form] | None = None,
) -> Callable[[Callable[..., Any]], StepFunction]:
    """Declare the memory types of a step function `fn(stack, **keywords)`, with the fields of `Contract`.

    The decorated function chooses among its implementations by the type of its first argument and checks
    type, device and shape of what goes in and comes out. Further implementations are added with
    `fn.register(input, output, …)`, which takes the same arguments and leaves what isn't given as in the
    first declaration; each stays callable by its own name.

    Raises, when called
    -------------------
    ContractError
        A memory type that no implementation accepts, a stack that isn't 3-D, or a result that breaks the
        declaration.
    """
    contract = Contract(
        type_names(input), output_name(output), slice_by_slice, splittable, halo, workspace, output_like
    )

    def decorate(function: Callable[..., Any]) -> StepFunction:
        if isinstance(function, type):
            raise ContractError(
                f"memory_types decorates functions, and {function.__name__} is a class: give it a class "
                "attribute instead, for example declare = {'input': 'numpy'}"
            )
        implementations = [Implementation(function, contract)]

        @functools.wraps(function)
        def wrapper(stack: Array, /, *rest: Any, **keywords: Any) -> Any:
            return choose(implementations, stack, function.__name__)(stack, *rest, **keywords)

        def register(
            input: str | Iterable[str],
            output: str = SAME,
            **overrides: Any,
        ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
            changed = {name: getattr(contract, name) for name in _INHERITED} | overrides
            other = Contract(type_names(input), output_name(output), **changed)

            def add(implementation: Callable[..., Any]) -> Callable[..., Any]:
                taken = {name for existing in implementations for name in existing.contract.input}
                twice = taken.intersection(other.input)
                if twice:
                    raise ContractError(f"{function.__name__} has one for {sorted(twice)} already")
                implementations.append(Implementation(implementation, other))
                return implementation

            return add

        setattr(wrapper, ATTRIBUTE, implementations)
        wrapper.register = register  # type: ignore[attr-defined]
        return cast(StepFunction, wrapper)

    return decorate


_INHERITED = ("slice_by_slice", "splittable", "halo", "workspace", "output_like")


def implementations_of(function: Callable[..., Any]) -> tuple[Implementation, ...]:
    """The implementations of a decorated function; empty if it isn't decorated."""
    return tuple(getattr(function, ATTRIBUTE, ()))


def choose(implementations: Iterable[Implementation], stack: Array, name: str) -> Implementation:
    """The implementation for the type of `stack`, or ContractError naming what is accepted."""
    from memcore.registry import memory_type_of

    memory_type = memory_type_of(stack)
    accepted: list[str] = []
    for implementation in implementations:
        if memory_type in implementation.contract.input:
            return implementation
        accepted.extend(implementation.contract.input)
    raise ContractError(f"{name} accepts {', '.join(accepted)}, but was given {memory_type}")


def check_stack(stack: Array, accepted: tuple[str, ...], story: str) -> tuple[str, GpuId]:
    """Memory type and device of a [Z, Y, X] stack of an accepted type; ContractError otherwise."""
    from memcore.registry import backend_for

    backend = backend_for(stack)
    if backend.memory_type not in accepted:
        raise ContractError(f"{story} {backend.memory_type}, where {', '.join(accepted)} is declared")
    shape = backend.shape_of(stack)
    if len(shape) != 3:
        raise ContractError(f"{story} shape {shape}, where [Z, Y, X] is declared")
    return backend.memory_type, backend.device_of(stack)


def type_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Memory types by name, each known and given once."""
    given = (names,) if isinstance(names, str) else tuple(names)
    if len(set(given)) != len(given):
        raise ContractError(f"a memory type is given twice in {given}")
    return tuple(_known(name) for name in given)


def output_name(name: str) -> str:
    """A memory type's name, or "same"."""
    return SAME if name == SAME else _known(name)


def _known(name: str) -> str:
    from memcore.registry import memory_type_names

    names = memory_type_names()
    if name not in names:
        raise ContractError(f"no memory type {name!r}; known are {', '.join(names)}")
    return MemoryType(name) if name in MemoryType.__members__.values() else str(name)


def _arrays_of(result: Any) -> tuple[Any, ...]:
    """The arrays in a step's result: one stack, a mapping of stacks, or a tuple of these and other things."""
    from memcore.registry import resembles_array

    if isinstance(result, dict):
        return tuple(part for part in result.values() if resembles_array(part))
    if isinstance(result, tuple):
        # Of the mappings in it the first is of stacks; a table's columns are arrays too, and none of them.
        first = _arrays_of(result[0]) if result and isinstance(result[0], dict) else ()
        return (*first, *(part for part in result if resembles_array(part)))
    return (result,)


def _refuse_table_alone(name: str, result: Any) -> None:
    """ContractError if a step gave a table, a mapping of columns or a data frame, where stacks are meant."""
    columns = result.values() if isinstance(result, dict) else ()
    framed = hasattr(result, "columns") and hasattr(result, "to_dict")
    if framed or (columns and all(_is_column(column) for column in columns)):
        raise ContractError(
            f"{name} gave back a table alone; a table goes with a stack, as in `return stack, table`, "
            "if need be with the one that the step was given"
        )


def _is_column(part: Any) -> bool:
    shape = getattr(part, "shape", None)
    return len(shape) == 1 if shape is not None else isinstance(part, list | tuple)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some compiled functions have none
        return {}


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, object]) -> Any:
    """Call with those of the step's keywords that the callable has parameters for."""
    parameters = _parameters(function)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return function(*arguments, **keywords)
    named = list(parameters)[len(arguments) :]
    wanted = {name: value for name, value in keywords.items() if name in named}
    return function(*arguments, **wanted)


def _checked_split(split: Any) -> Split:
    if split not in (None, "z", "zyx"):
        raise ContractError(f"splittable is None, 'z' or 'zyx', not {split!r}")
    return split  # type: ignore[no-any-return]


def _checked_halo(halo: Any) -> Halo:
    if len(halo) != 3 or any(type(n) is not int or n < 0 for n in halo):
        raise ContractError(f"halo is (planes, rows, columns), whole and not negative, not {halo!r}")
    return (halo[0], halo[1], halo[2])
