"""Steps that are classes: something is set up once, used for every stack, and put away."""

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

from scheduler.steps.context import StepContext
from scheduler.steps.errors import StepError
from scheduler.steps.parameters import CONTEXT, check_parameters, keywords_of, unknown_keyword


class ClassCall:
    """Stands for a step class in a chain; makes an instance for each memory type and device.

    A step class says what it takes in a class attribute `declare`, a mapping with the keywords of
    `memcore.memory_types` (a step's own `declare` goes before it)::

        class Segment:
            declare = {"input": "torch", "output": "same"}

            def __init__(self, *, model="nuclei"): ...
            def setup(self, context): ...       # optional: once for each worker and device
            def __call__(self, stack, *, threshold=0.5): ...
            def teardown(self): ...             # optional: when the worker ends or the step is evicted

    A keyword goes to the constructor, to `__call__`, or to both, wherever a parameter has its name.

    Notes
    -----
    Thread-safe: `setup` runs under a lock, and an instance whose `setup` raised is forgotten.
    """

    __slots__ = ("_instances", "_lock", "_make", "_wants_context")

    def __init__(self, make: Callable[[], Any], *, wants_context: bool) -> None:
        self._make = make
        self._wants_context = wants_context
        self._instances: dict[tuple[str, int | str], Any] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, name: str, step_class: type, given: Mapping[str, Any]) -> tuple["ClassCall", dict[str, Any]]:
        """The step for a class, and those of the keywords that go to its call.

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
        check_parameters(name, call, to_call, skip=2)
        wants_context = CONTEXT in inspect.signature(call).parameters
        return cls(lambda: step_class(**to_make), wants_context=wants_context), to_call

    def __call__(self, stack: Any, *, context: StepContext, **keywords: Any) -> Any:
        """Call the instance for `context`'s memory type and device, made and set up by its first call."""
        if self._wants_context:
            keywords[CONTEXT] = context
        return self._instance(context)(stack, **keywords)

    def close(self) -> None:
        """Tear every instance down, the last made first; a later call sets up anew."""
        with self._lock:
            while self._instances:
                _, instance = self._instances.popitem()
                teardown = getattr(instance, "teardown", None)
                if teardown is not None:
                    teardown()

    def _instance(self, context: StepContext) -> Any:
        key = (context.memory_type, context.gpu_id)
        with self._lock:
            if key not in self._instances:
                instance = self._make()
                setup = getattr(instance, "setup", None)
                if setup is not None:
                    setup(context)
                self._instances[key] = instance
            return self._instances[key]


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())


def _taken(given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    any_other = _takes_any(parameters)
    return {key: value for key, value in given.items() if any_other or key in parameters}
