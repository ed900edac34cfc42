"""Steps that are classes: something is set up once, used for every stack, and put away."""

import inspect
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pools.sizes import parse_size
from scheduler.steps.context import StepContext
from scheduler.steps.errors import StepError
from scheduler.steps.parameters import CONTEXT, check_parameters, keywords_of, unknown_keyword

Place = tuple[str, int | str]
"""A memory type and a device."""


class ClassCall:
    """Stands for a step class in a chain; keeps an instance for each memory type and device.

    A step class says what it takes in a class attribute `declare`, a mapping with the keywords of
    `memcore.memory_types` (a step's own `declare` goes before it)::

        class Segment:
            declare = {"input": "torch", "output": "same"}
            resident_bytes = "2GiB"             # optional: what `setup` keeps

            def __init__(self, *, model="nuclei"): ...
            def setup(self, context): ...       # optional: once for each worker and device
            def __call__(self, stack, *, threshold=0.5): ...
            def teardown(self): ...             # optional: when the worker ends or the step is evicted

    A keyword goes to the constructor, to `__call__`, or to both, wherever a parameter has its name.

    `resident_bytes` are the bytes that `setup` keeps until `teardown`: an int, a text like "2GiB", or a
    function (a static method) of the constructor's keywords, of which it takes those that it names, and
    `memory_type` if it names that. They are reserved before `setup`, once for each worker and device.

    The context of `setup` is that of the job that came first; what it leases from the pool stays out until
    `teardown`.

    Notes
    -----
    Thread-safe: of threads that want an instance at once, one sets it up and the others wait. Nothing is torn
    down while a call of it runs. An instance whose `setup` raised is forgotten, without `teardown`.
    """

    __slots__ = ("_changed", "_class", "_kept", "_keywords", "_wants_context")

    def __init__(self, step_class: type, keywords: Mapping[str, Any], *, wants_context: bool) -> None:
        self._class = step_class
        self._keywords = dict(keywords)
        self._wants_context = wants_context
        self._kept: dict[Place, _Kept] = {}
        self._changed = threading.Condition()

    @classmethod
    def of(
        cls, name: str, step_class: type, given: Mapping[str, Any], arrays: Collection[str] = ()
    ) -> tuple["ClassCall", dict[str, Any]]:
        """The step for a class, and those of the keywords that go to its call.

        `arrays` are further keywords of the call, with stacks or arrays as their values.

        Raises
        ------
        StepError
            The class can't be called with a stack, or a keyword is unknown, missing or of the wrong type.
        """
        call = inspect.getattr_static(step_class, "__call__", None)
        if not inspect.isfunction(call):
            raise StepError(f"{name} is a class without a method __call__(self, stack)")
        constructor = inspect.getattr_static(step_class, "__init__")
        made_with = keywords_of(step_class, skip=0) or {}
        called_with = keywords_of(call, skip=2) or {}
        if CONTEXT in given:
            raise StepError(f"{name}: context is given by the scheduler, not under with")
        if not _takes_any(made_with) and not _takes_any(called_with):
            for key in given:
                if key not in made_with and key not in called_with:
                    raise StepError(unknown_keyword(name, key, {**made_with, **called_with}))
        to_make = _taken(given, made_with)
        to_call = _taken(given, called_with)
        check_parameters(name, constructor, to_make)
        check_parameters(name, call, to_call, skip=2, arrays=arrays)
        wants_context = CONTEXT in inspect.signature(call).parameters
        return cls(step_class, to_make, wants_context=wants_context), to_call

    @property
    def keeps_state(self) -> bool:
        """True if the class has something to set up, or says that it keeps bytes."""
        return any(getattr(self._class, name, None) is not None for name in ("setup", "resident_bytes"))

    def resident_bytes(self, memory_type: str) -> int | None:
        """What `setup` keeps for a memory type, as the class declares it; None if it doesn't.

        Raises
        ------
        StepError
            What it declares is no size, or its function raised.
        """
        declared = getattr(self._class, "resident_bytes", None)
        if declared is None:
            return None
        try:
            if callable(declared):
                declared = declared(**self._known_to(declared, memory_type))
            return parse_size(declared)
        except (TypeError, ValueError, LookupError, OSError) as error:
            raise StepError(
                f"{self._class.__name__}: resident_bytes tells no size: {type(error).__name__}: {error}"
            ) from error

    def _known_to(self, function: Callable[..., Any], memory_type: str) -> dict[str, Any]:
        """Those of the constructor's keywords, defaults included, that a function of them takes."""
        parameters = keywords_of(self._class, skip=0) or {}
        known = {key: each.default for key, each in parameters.items() if each.default is not each.empty}
        known |= self._keywords | {"memory_type": memory_type}
        return _taken(known, keywords_of(function, skip=0) or {})

    def __call__(self, stack: Any, *, context: StepContext, **keywords: Any) -> Any:
        """Call the instance for `context`'s memory type and device.

        Where nobody has set it up, this call does, and it stays until `close`.
        """
        if self._wants_context:
            keywords[CONTEXT] = context
        kept = self._take(context, to_call=True)
        try:
            return kept.instance(stack, **keywords)
        finally:
            self._let_go(kept, calls=1)

    def set_up(self, context: StepContext) -> Callable[[], None]:
        """See that the instance for `context`'s memory type and device is there, and keep it.

        Returns a function that gives it up again, to be called once: the last to give it up, or the last call
        that runs by then, tears it down, and raises what `teardown` raises.
        """
        kept = self._take(context, to_call=False)
        return lambda: self._let_go(kept, holders=1)

    def close(self) -> None:
        """Tear every instance down, the last made first, whoever keeps it; a later call sets up anew.

        One that a thread is calling now is torn down when that call ends. What `teardown` raises is raised
        when all are through.
        """
        errors: list[Exception] = []
        with self._changed:
            found = [(kept, kept.holders) for kept in reversed(self._kept.values())]
        for kept, holders in found:
            try:
                self._let_go(kept, holders=holders)
            except Exception as error:  # noqa: BLE001  raised below, when the others are torn down too
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup(f"{self._class.__name__}: {len(errors)} teardowns failed", errors)

    def _take(self, context: StepContext, *, to_call: bool) -> "_Kept":
        """The instance, counted as called or as kept; made and set up if it isn't there."""
        place = (context.memory_type, context.gpu_id)
        with self._changed:
            self._changed.wait_for(lambda: place not in self._kept or self._kept[place].ready)
            kept = self._kept.get(place)
            if kept is not None:
                kept.calls += to_call
                kept.holders += not to_call
                return kept
            kept = self._kept[place] = _Kept(place)
        try:
            instance = self._class(**self._keywords)
            setup = getattr(instance, "setup", None)
            if setup is not None:
                setup(context)
        except BaseException:
            self._forget(kept)
            raise
        with self._changed:
            # Made by a call alone, it is kept by nobody but `close`.
            kept.instance, kept.ready, kept.calls, kept.holders = instance, True, int(to_call), 1
            self._changed.notify_all()
        return kept

    def _let_go(self, kept: "_Kept", *, calls: int = 0, holders: int = 0) -> None:
        with self._changed:
            kept.calls -= calls
            kept.holders = max(0, kept.holders - holders)  # `close` doesn't ask those who keep it
            if not kept.ready or kept.calls or kept.holders:
                return
            kept.ready = False
        try:
            teardown = getattr(kept.instance, "teardown", None)
            if teardown is not None:
                teardown()
        finally:
            kept.instance = None
            self._forget(kept)

    def _forget(self, kept: "_Kept") -> None:
        with self._changed:
            del self._kept[kept.place]
            self._changed.notify_all()


@dataclass(slots=True, eq=False)
class _Kept:
    """An instance, and how many keep it and how many calls of it run; not `ready` before and after them."""

    place: Place
    instance: Any = None
    ready: bool = False
    calls: int = 0
    holders: int = 0


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())


def _taken(given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    any_other = _takes_any(parameters)
    return {key: value for key, value in given.items() if any_other or key in parameters}
