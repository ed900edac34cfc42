"""Which backend serves which memory type, and what an object is.

Detection goes by the type's module and confirms with the library's own attributes, never importing anything:
an array can't exist before its library has been imported.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator

from memcore.backend import Backend
from memcore.errors import UnknownMemoryTypeError
from memcore.memory_type import Array, MemoryType

_CLASSES: dict[str, str | type[Backend]] = {
    MemoryType.NUMPY: "memcore.backends.numpy:NumpyBackend",
    MemoryType.CUPY: "memcore.backends.cupy:CupyBackend",
    MemoryType.TORCH: "memcore.backends.torch:TorchBackend",
    MemoryType.TENSORFLOW: "memcore.backends.tensorflow:TensorflowBackend",
    MemoryType.JAX: "memcore.backends.jax:JaxBackend",
    MemoryType.PYCLESPERANTO: "memcore.backends.pyclesperanto:PyclesperantoBackend",
}
_INSTANCES: dict[str, Backend] = {}
# Plain array types met so far. Reading a dict needs no lock; entries are only added, with one value for each
# key.
_EXACT: dict[type, Backend] = {}
_LOCK = threading.RLock()


def backend_of(memory_type: str) -> Backend:
    """The backend of a memory type, by member, string or registered name.

    Raises
    ------
    UnknownMemoryTypeError
        No backend has that name.
    """
    instance = _INSTANCES.get(memory_type)
    if instance is not None:
        return instance
    with _LOCK:
        if memory_type not in _INSTANCES:
            if not isinstance(memory_type, str) or memory_type not in _CLASSES:
                known = ", ".join(_CLASSES)
                raise UnknownMemoryTypeError(f"no memory type {memory_type!r}; known are {known}")
            found = _CLASSES[memory_type]
            if isinstance(found, str):
                module, _, name = found.partition(":")
                found = getattr(importlib.import_module(module), name)
            _INSTANCES[str(memory_type)] = found()
        return _INSTANCES[memory_type]


def register_backend(cls: type[Backend]) -> type[Backend]:
    """Add a memory type, named by `cls.memory_type`; usable as a decorator.

    Registering the same class again does nothing; another class under a taken name raises ValueError.
    """
    with _LOCK:
        taken = _CLASSES.get(cls.memory_type, cls)
        if taken is not cls:
            raise ValueError(f"memory type {cls.memory_type!r} is taken by {taken!r}")
        _CLASSES[cls.memory_type] = cls
    return cls


def unregister_backend(memory_type: str) -> None:
    """Take a registered memory type out again; the built-in ones stay."""
    if memory_type in MemoryType.__members__.values():
        raise ValueError(f"{memory_type!r} is built in")
    with _LOCK:
        _CLASSES.pop(memory_type, None)
        instance = _INSTANCES.pop(memory_type, None)
        for cls in [cls for cls, backend in _EXACT.items() if backend is instance]:
            del _EXACT[cls]


def memory_type_names() -> tuple[str, ...]:
    """Every registered memory type, the built-in ones first."""
    return tuple(str(name) for name in _CLASSES)


def memory_type_of(array: Array) -> str:
    """The memory type of a plain array: a `MemoryType` member, or the name of a registered backend.

    Raises
    ------
    UnknownMemoryTypeError
        Lists, scalars, dtypes and other objects, and arrays that mean more than their values or have none:
        masked, traced, ragged, sparse, quantized, symbolic, deleted, or a subclass. The text says what to do.
    """
    name = backend_for(array).memory_type
    return _MEMBERS.get(name, name)


_MEMBERS: dict[str, str] = {member.value: member for member in MemoryType}


def backend_for(array: Array) -> Backend:
    """The backend of a plain array; raises as `memory_type_of` does."""
    cls = type(array)
    backend = _EXACT.get(cls)
    if backend is None:
        backend = _find(cls)
        _EXACT[cls] = backend
    refusal = backend.refusal(array)
    if refusal is not None:
        raise UnknownMemoryTypeError(refusal)
    return backend


def resembles_array(thing: object) -> bool:
    """True for an object with a shape from a known library, plain array or not: no table, number or text."""
    if not hasattr(thing, "shape"):
        return False
    return any(True for cls in type(thing).__mro__ for _ in _backends_from(_root(cls)))


def _find(cls: type) -> Backend:
    for ancestor in cls.__mro__:
        for backend in _backends_from(_root(ancestor)):
            if backend.is_array_type(ancestor):
                if ancestor is cls or backend.accepts_subclass(cls):
                    return backend
                raise UnknownMemoryTypeError(
                    f"{_full_name(cls)} is a subclass of the {backend.memory_type} {backend.noun} and may "
                    f"mean more than its values; {backend.remedy_for_type(cls)}"
                )
    for ancestor in cls.__mro__:
        for backend in _backends_from(_root(ancestor)):
            raise UnknownMemoryTypeError(
                f"{_full_name(cls)} is no plain {backend.memory_type} {backend.noun}; "
                f"{backend.remedy_for_type(cls)}"
            )
    known = ", ".join(_CLASSES)
    raise UnknownMemoryTypeError(
        f"{_full_name(cls)} is no array of a known library ({known}); "
        "make one first, for example with numpy.asarray"
    )


def _backends_from(root: str) -> Iterator[Backend]:
    for name in list(_CLASSES):
        backend = backend_of(name)
        if root in backend.type_roots:
            yield backend


def _root(cls: type) -> str:
    return str(cls.__module__).partition(".")[0]


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
