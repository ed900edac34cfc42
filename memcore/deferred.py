"""A stack with steps still to come: nothing is converted or computed before the value is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from memcore.chain import ChainPlan, DeviceKind, plan_chain
from memcore.conversion import convert_memory
from memcore.errors import ContractError
from memcore.info import ArrayInfo
from memcore.memory_type import Array, GpuId
from memcore.registry import backend_for, backend_of
from memcore.steps import FunctionStep

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Deferred:
    """A [Z, Y, X] stack and the steps to be applied to it, carried out together by the cheapest plan.

    `then` returns a new Deferred; `value` runs the pending steps, converting only where no plan avoids it,
    and keeps the result. Steps run once, in order, however often the value is asked for.

    Parameters
    ----------
    stack : a plain 3-D array
    gpu_id : the accelerator that steps may use beside the CPU; by default the one that the stack is on

    Raises
    ------
    ContractError
        The stack isn't 3-D.

    Notes
    -----
    Not thread-safe: give each thread its own. The stack is read when a value is asked for: leave it as it is
    until then.
    """

    __slots__ = ("_gpu_id", "_stack", "_steps")

    def __init__(self, stack: Array, *, gpu_id: GpuId | None = None) -> None:
        backend = backend_for(stack)
        shape = backend.shape_of(stack)
        if len(shape) != 3:
            raise ContractError(f"a stack is [Z, Y, X], not a {backend.memory_type} {backend.noun} {shape}")
        place = backend.device_of(stack)
        self._stack = stack
        self._gpu_id: GpuId | None = place if gpu_id is None and place != "cpu" else gpu_id
        self._steps: tuple[tuple[FunctionStep, Mapping[str, Any]], ...] = ()

    def then(self, step: FunctionStep | Callable[..., Any], /, **with_: Any) -> Deferred:
        """The same stack with one more step to come, called as `step(stack, **with_)`."""
        more = Deferred(self._stack, gpu_id=self._gpu_id)
        declared = step if isinstance(step, FunctionStep) else FunctionStep(step)
        more._steps = (*self._steps, (declared, with_))
        return more

    @property
    def pending(self) -> tuple[FunctionStep, ...]:
        """Steps that haven't run."""
        return tuple(step for step, _ in self._steps)

    @property
    def info(self) -> ArrayInfo:
        """The stack as it is now, before the pending steps."""
        return backend_for(self._stack).describe(self._stack)

    def plan(self, memory_type: str | None = None) -> ChainPlan:
        """The plan that `value` will carry out. Raises ContractError if nothing here can run a step."""
        steps = [step for step, _ in self._steps]
        keywords = [with_ for _, with_ in self._steps]
        return plan_chain(steps, self.info, self._places(), keywords=keywords, end=memory_type)[0]

    def value(self, memory_type: str | None = None, gpu_id: GpuId | None = None) -> Array:
        """The stack after the pending steps, as `memory_type` if given, else as the last step left it.

        `gpu_id` says where it is to be; by default host memory if the type lives there, else the Deferred's
        own device.
        """
        if self._steps:
            plan = self.plan(memory_type)
            stack = self._stack
            placed = zip(self._steps, plan.memory_types, plan.device_kinds, strict=True)
            for (step, with_), wanted, kind in placed:
                stack = step(self._converted(stack, wanted, kind), **with_)
                # kept at once: a step that has run doesn't run again because a later one fails
                self._stack, self._steps = stack, self._steps[1:]
        if memory_type is None:
            return self._stack
        target = backend_of(memory_type)
        place = (
            gpu_id if gpu_id is not None else self._place(memory_type, "cpu" if target.host_memory else "gpu")
        )
        return convert_memory(self._stack, backend_for(self._stack).memory_type, memory_type, place)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        import numpy as np

        return np.asarray(self.value("numpy"), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        steps = "".join(f".then({step.name})" for step in self.pending)
        return f"Deferred({self.info}){steps}"

    def _places(self) -> dict[str, frozenset[DeviceKind]]:
        """Where steps may run: what is installed, in host memory and on the accelerator if there is one."""
        places: dict[str, frozenset[DeviceKind]] = {}
        for step, _ in self._steps:
            for name in step.memory_types:
                backend = backend_of(name)
                kinds = set(backend.device_kinds) if backend.installed() else set()
                if self._gpu_id is None:
                    kinds.discard("gpu")
                places[name] = frozenset(kinds)
        return places

    def _converted(self, stack: Array, memory_type: str, kind: str) -> Array:
        source = backend_for(stack).memory_type
        return convert_memory(stack, source, memory_type, self._place(memory_type, kind))

    def _place(self, memory_type: str, kind: str) -> GpuId:
        if kind == "cpu" and backend_of(memory_type).host_memory:
            return "cpu"
        if self._gpu_id is None:
            raise ContractError(f"{memory_type} needs a device: give Deferred a gpu_id")
        return self._gpu_id
