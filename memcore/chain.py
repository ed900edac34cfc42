"""The chain planner: which memory type and device kind each step should run on, to move the fewest bytes.

A chain whose steps accept several memory types is a shortest path through (step, memory type, device kind).
An edge costs the bytes that its conversion moves, a node the step's known cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from memcore.backend import nbytes_of
from memcore.contracts import implementations_of
from memcore.errors import ContractError
from memcore.info import ArrayInfo, DeviceInfo, bytes_text
from memcore.memory_type import MemoryType
from memcore.registry import backend_of, memory_type_names
from memcore.status import BackendStatus
from memcore.steps import FunctionStep

DeviceKind: TypeAlias = Literal["cpu", "gpu"]
StepCost: TypeAlias = Callable[[FunctionStep, str, DeviceKind, int], float]
Devices: TypeAlias = Iterable[str | DeviceInfo] | Mapping[str, Iterable[str | DeviceInfo] | BackendStatus]


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """One way through a chain.

    Attributes
    ----------
    memory_types, device_kinds : one for each step
    bytes_moved : bytes that the conversions copy
    cost : `bytes_moved` and the known costs of the steps, in bytes
    conversions : each change of memory type or device kind, in words
    """

    memory_types: tuple[str, ...]
    device_kinds: tuple[DeviceKind, ...]
    bytes_moved: int
    cost: float
    conversions: tuple[str, ...]


def plan_chain(
    steps: Sequence[FunctionStep | Callable[..., Any]],
    info: ArrayInfo,
    devices: Devices,
    *,
    keywords: Sequence[Mapping[str, object]] | None = None,
    step_cost: StepCost | None = None,
    end: str | None = None,
) -> list[ChainPlan]:
    """The few plans worth having, cheapest first.

    For each set of device kinds that can carry the whole chain (the CPU alone, a GPU alone, both) the
    cheapest plan, and for each memory type that can run every step the plan that stays in it.

    Parameters
    ----------
    steps : in order; functions decorated with `memory_types` count as steps
    info : the stack that goes in
    devices : devices or device kinds that are there ("cpu", "gpu"), or for each memory type those that it can
        use, as in `{"numpy": ["cpu"], "torch": ["cpu", "gpu"]}` or `backend_status()`
    keywords : each step's own keywords, for those whose result's form depends on them
    step_cost : (step, memory type, device kind, bytes of its input) -> what the step itself costs, in bytes
        moved
    end : memory type that the result must have, in host memory if it is numpy; None leaves it where it is

    Raises
    ------
    ContractError
        No plan: the text names the first step that nothing available can run.
    """
    chain = [step if isinstance(step, FunctionStep) else _as_step(step) for step in steps]
    given = list(keywords) if keywords is not None else [{} for _ in chain]
    if len(given) != len(chain):
        raise ContractError(f"{len(chain)} steps, but keywords for {len(given)}")
    places = _places(devices)
    graph = _Graph(chain, given, info, step_cost, end)
    found = []
    for allowed in _selections(places):
        plan = graph.cheapest(allowed)
        if plan is not None and plan not in found:
            found.append(plan)
    if not found:
        raise ContractError(graph.why_none(places))
    return sorted(found, key=lambda plan: plan.cost)


def conversion_bytes(
    source: str, source_kind: DeviceKind, target: str, target_kind: DeviceKind, nbytes: int
) -> int:
    """Bytes that a conversion copies, by what the libraries can share; the arrays needn't exist.

    Assumes the worst of what isn't known before: that a step's result can still be written to.
    """
    if source == target:
        return 0 if source_kind == target_kind else nbytes
    giver, taker = backend_of(source), backend_of(target)
    shared = giver.shares_with(taker, source_kind) if source_kind == target_kind else False
    if shared:
        lend = giver.immutable or not taker.immutable
        keep = not giver.immutable or taker.keeps_read_only
        return 0 if lend and keep else nbytes
    # Through the host: one copy for each end that isn't host memory.
    ends = (giver.host_memory and source_kind == "cpu", taker.host_memory and target_kind == "cpu")
    return nbytes * max(1, 2 - sum(ends))


_State: TypeAlias = tuple[str, DeviceKind]
# What is compared: cost in bytes, fewer changes of device kind, then of memory type, then the declared order.
_Rank: TypeAlias = tuple[float, int, int, int]


@dataclass(frozen=True, slots=True)
class _Path:
    rank: _Rank
    bytes_moved: int
    states: tuple[_State, ...]
    conversions: tuple[str, ...]


class _Graph:
    """The layers of one chain. The stack's form at each step doesn't depend on the way there."""

    def __init__(
        self,
        steps: Sequence[FunctionStep],
        keywords: Sequence[Mapping[str, object]],
        info: ArrayInfo,
        step_cost: StepCost | None,
        end: str | None,
    ) -> None:
        self.steps = steps
        self.keywords = keywords
        self.step_cost = step_cost
        self.end = end
        kind: DeviceKind = "cpu" if info.device == "cpu" else "gpu"
        self.start: _State = (info.memory_type, kind)
        self.form = (info.shape, info.dtype)

    def cheapest(self, allowed: Mapping[str, frozenset[DeviceKind]]) -> ChainPlan | None:
        """The cheapest plan whose steps use only the allowed places, or None."""
        paths = {self.start: _Path((0.0, 0, 0, 0), 0, (), ())}
        shape, dtype = self.form
        for step, given in zip(self.steps, self.keywords, strict=True):
            paths, shape, dtype = self._advance(paths, step, given, shape, dtype, allowed)
            if not paths:
                return None
        if self.end is not None:
            kind: DeviceKind = "cpu" if backend_of(self.end).host_memory else "gpu"
            goal = (self.end, kind)
            nbytes = nbytes_of(shape, dtype)
            paths = {goal: min((self._extend(p, s, goal, nbytes) for s, p in paths.items()), key=_rank)}
        best = min(paths.values(), key=_rank)
        return ChainPlan(
            tuple(memory_type for memory_type, _ in best.states),
            tuple(kind for _, kind in best.states),
            best.bytes_moved,
            best.rank[0],
            best.conversions,
        )

    def _advance(
        self,
        paths: Mapping[_State, _Path],
        step: FunctionStep,
        given: Mapping[str, object],
        shape: tuple[int, ...],
        dtype: str,
        allowed: Mapping[str, frozenset[DeviceKind]],
    ) -> tuple[dict[_State, _Path], tuple[int, ...], str]:
        nbytes = nbytes_of(shape, dtype)
        reached: dict[_State, _Path] = {}
        form = (shape, dtype)
        for order, memory_type in enumerate(step.memory_types):
            backend = backend_of(memory_type)
            if backend.dtype_refusal(dtype) is not None or backend.shape_refusal(shape) is not None:
                continue
            contract = step.implementation_for(memory_type).contract
            form = contract.output_for(shape, dtype, **given)
            for kind in sorted(allowed.get(memory_type, ())):
                node = (memory_type, kind)
                path = min((self._extend(p, s, node, nbytes) for s, p in paths.items()), key=_rank)
                cost = self.step_cost(step, memory_type, kind, nbytes) if self.step_cost else 0.0
                total, switches, conversions, declared = path.rank
                rank = (total + cost, switches, conversions, declared + order)
                path = replace(path, rank=rank, states=(*path.states, node))
                result = contract.output_type(memory_type)
                state = _result_state(result, kind)
                if state not in reached or rank < reached[state].rank:
                    reached[state] = path
        return reached, *form

    def _extend(self, path: _Path, state: _State, node: _State, nbytes: int) -> _Path:
        """The path with the conversion from where it ends to where the next step wants the stack."""
        if state == node:
            return path
        moved = conversion_bytes(*state, *node, nbytes)
        total, switches, conversions, declared = path.rank
        rank = (total + moved, switches + (state[1] != node[1]), conversions + 1, declared)
        text = f"{state[0]} ({state[1]}) to {node[0]} ({node[1]}), {bytes_text(moved)}"
        return replace(
            path, rank=rank, bytes_moved=path.bytes_moved + moved, conversions=(*path.conversions, text)
        )

    def why_none(self, places: Mapping[str, frozenset[DeviceKind]]) -> str:
        """The first step that can't run on anything available."""
        shape, dtype = self.form
        for step, given in zip(self.steps, self.keywords, strict=True):
            reasons = []
            for memory_type in step.memory_types:
                backend = backend_of(memory_type)
                refusal = backend.dtype_refusal(dtype) or backend.shape_refusal(shape)
                if refusal is None and places.get(memory_type):
                    contract = step.implementation_for(memory_type).contract
                    shape, dtype = contract.output_for(shape, dtype, **given)
                    break
                if refusal is None and not backend.installed():
                    refusal = f"{backend.module} isn't installed; install it with: {backend.install_hint}"
                reasons.append(refusal or f"no device for {memory_type} is available")
            else:
                return f"nothing available can run {step.name} on {dtype} {shape}: {'; '.join(reasons)}"
        return "no memory type is available"


def _rank(path: _Path) -> _Rank:
    return path.rank


def _result_state(memory_type: str, kind: DeviceKind) -> _State:
    """Where a step's result is: on the step's device, or in host memory if its type can't be there."""
    if kind == "gpu" and "gpu" not in backend_of(memory_type).device_kinds:
        return memory_type, "cpu"
    return memory_type, kind


def _selections(places: Mapping[str, frozenset[DeviceKind]]) -> Iterable[Mapping[str, frozenset[DeviceKind]]]:
    """The restrictions under which a plan is worth having."""
    yield places
    kinds: tuple[DeviceKind, ...] = ("gpu", "cpu")
    for kind in kinds:
        yield {name: have & {kind} for name, have in places.items()}
    for kind in kinds:
        for name, have in places.items():
            yield {name: have & {kind}}


def _places(devices: Devices) -> dict[str, frozenset[DeviceKind]]:
    """Device kinds that each memory type can use."""
    if isinstance(devices, Mapping):
        return {
            str(MemoryType(n) if n in MemoryType.__members__.values() else n): _kinds(have)
            for n, have in devices.items()
        }
    kinds = _kinds(devices)
    return {name: kinds & frozenset(backend_of(name).device_kinds) for name in memory_type_names()}


def _kinds(have: Iterable[str | DeviceInfo] | BackendStatus) -> frozenset[DeviceKind]:
    devices = have.devices if isinstance(have, BackendStatus) else have
    kinds: set[DeviceKind] = set()
    for device in devices:
        kind = device.kind if isinstance(device, DeviceInfo) else device
        if kind == "cpu":
            kinds.add("cpu")
        elif kind == "gpu":
            kinds.add("gpu")
        else:
            raise ContractError(f"a device kind is 'cpu' or 'gpu', not {kind!r}")
    return frozenset(kinds)


def _as_step(function: Callable[..., Any]) -> FunctionStep:
    if not implementations_of(function):
        raise ContractError(
            f"{function!r} isn't declared: decorate it with memory_types, or wrap it in FunctionStep"
        )
    return FunctionStep(function)
