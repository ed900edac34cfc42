"""A step of a chain: one function, or one for each memory type, with its declaration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from memcore.contracts import SAME, Contract, Implementation, implementations_of, output_name, type_names
from memcore.errors import ContractError
from memcore.memory_type import Array


class FunctionStep:
    """A step function with the memory types that it is declared for.

    Parameters
    ----------
    function : decorated with `memory_types`, whose implementations are taken over, or any `fn(stack, **with)`
    input : memory types that an undecorated function accepts; for a decorated one it restricts its
        implementations
    output : memory type of an undecorated function's result, or "same"
    name : for messages and journals; the function's own by default
    keywords : the remaining fields of `Contract`, for an undecorated function

    Raises
    ------
    ContractError
        An undecorated function without `input`, or a restriction that leaves no implementation.
    """

    __slots__ = ("_declaration", "function", "implementations", "name")

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        input: str | Iterable[str] | None = None,
        output: str = SAME,
        name: str | None = None,
        **keywords: Any,
    ) -> None:
        self.function = function
        self._declaration = {"input": input, "output": output, "name": name, **keywords}
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        declared = implementations_of(function)
        if declared:
            if keywords or output != SAME:
                raise ContractError(f"{self.name} is declared by its decorator; only input may restrict it")
            wanted = None if input is None else type_names(input)
            self.implementations = declared if wanted is None else _restricted(declared, wanted, self.name)
        elif input is None:
            raise ContractError(
                f"{self.name} isn't decorated with memory_types: say which memory types it takes, as in "
                "FunctionStep(function, input='numpy')"
            )
        else:
            contract = Contract(type_names(input), output_name(output), **keywords)
            self.implementations = (Implementation(function, contract),)

    @property
    def memory_types(self) -> tuple[str, ...]:
        """Accepted input types in the order of declaration."""
        return tuple(name for each in self.implementations for name in each.contract.input)

    def implementation_for(self, memory_type: str) -> Implementation:
        """The implementation that accepts a memory type. Raises ContractError naming what is accepted."""
        for implementation in self.implementations:
            if memory_type in implementation.contract.input:
                return implementation
        raise ContractError(f"{self.name} accepts {', '.join(self.memory_types)}, not {memory_type}")

    def __call__(self, stack: Array, /, *rest: Any, **with_: Any) -> Any:
        """Run the implementation for the type of `stack`, checking what goes in and comes out."""
        from memcore.registry import memory_type_of

        return self.implementation_for(memory_type_of(stack))(stack, *rest, **with_)

    # A decorated function's implementations can't be pickled by name: the name is the decorated one's.
    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.function, self._declaration)

    def __repr__(self) -> str:
        return f"FunctionStep({self.name}, {', '.join(self.memory_types)})"


def _restored(function: Callable[..., Any], declaration: dict[str, Any]) -> FunctionStep:
    return FunctionStep(function, **declaration)


def _restricted(
    declared: tuple[Implementation, ...], wanted: tuple[str, ...], name: str
) -> tuple[Implementation, ...]:
    """The implementations with their inputs cut down to `wanted`, in its order."""
    from dataclasses import replace

    kept = []
    for memory_type in wanted:
        for each in declared:
            if memory_type in each.contract.input:
                kept.append(Implementation(each.function, replace(each.contract, input=(memory_type,))))
    if not kept:
        accepted = ", ".join(t for each in declared for t in each.contract.input)
        raise ContractError(f"{name} accepts {accepted}, none of {', '.join(wanted)}")
    return tuple(kept)
