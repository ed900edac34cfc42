"""CuPy's interface over NumPy arrays with two pretended devices, for machines without CUDA.

Stricter than CuPy in one way: an operation on an array of a device that isn't entered raises, so that a
forgotten `Device` shows.
"""

from __future__ import annotations

import threading
import weakref
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

DEVICES = 2
_current = threading.local()


def current() -> int:
    return getattr(_current, "device", 0)


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class OutOfMemoryError(MemoryError):
    """`cupy.cuda.memory.OutOfMemoryError`."""


class ndarray(np.ndarray):
    """A device array: remembers its device, and can't be read by NumPy behind CuPy's back."""

    _device: int = 0

    def __array_finalize__(self, origin: Any) -> None:
        self._device = getattr(origin, "_device", current())

    @property
    def device(self) -> SimpleNamespace:
        return SimpleNamespace(id=self._device)

    def get(self, out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
        assert blocking, "the caller reads the values next"
        _check(self)
        host = np.empty(self.shape, self.dtype) if out is None else out
        np.copyto(host, self.view(np.ndarray), casting="no")
        return host

    def set(self, source: np.ndarray) -> None:
        _check(self)
        if self.shape != source.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {source.shape}")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        assert source.flags.c_contiguous
        POOL.pending.append((self.view(np.ndarray), source))

    def copy(self, order: str = "C") -> ndarray:
        return _on_current(np.array(self.view(np.ndarray), order=order))


class Device:
    def __init__(self, index: int) -> None:
        if not 0 <= index < DEVICES:
            raise CUDARuntimeError(101)
        self.id = index

    def __enter__(self) -> Device:
        self._before = current()
        _current.device = self.id
        return self

    def __exit__(self, *ended: object) -> None:
        _current.device = self._before

    def synchronize(self) -> None:
        POOL.flush()


class Pool:
    """The default memory pool, and the copies that a stream has still to do."""

    def __init__(self) -> None:
        self.pending: list[tuple[np.ndarray, np.ndarray]] = []
        self.free = [1 << 20, 0]

    def flush(self) -> None:
        for destination, source in self.pending:
            np.copyto(destination, source, casting="no")
        self.pending.clear()

    def total_bytes(self) -> int:
        return 5 << 20 if self.free[current()] else 4 << 20

    def free_bytes(self) -> int:
        return self.free[current()]

    def free_all_blocks(self) -> None:
        self.free[current()] = 0


POOL = Pool()


def _check(array: ndarray) -> None:
    assert array._device == current(), f"array of device {array._device} used with {current()} entered"
    POOL.flush() if not POOL.pending or POOL.pending[-1][0] is not array else None


class MemoryHook:
    """Called before and after what its thread takes from the pool and gives back, while it is entered."""

    name = "MemoryHook"

    def __enter__(self) -> MemoryHook:
        hooks = _hooks()
        if self.name in hooks:
            raise KeyError(f"memory hook {self.name} already exists")
        hooks[self.name] = self
        return self

    def __exit__(self, *ended: object) -> None:
        del _hooks()[self.name]

    def malloc_postprocess(self, **told: int) -> None:
        pass

    def free_postprocess(self, **told: int) -> None:
        pass


def _hooks() -> dict[str, MemoryHook]:
    found: dict[str, MemoryHook] = _current.__dict__.setdefault("hooks", {})
    return found


def _on_current(array: np.ndarray) -> ndarray:
    made = array.view(ndarray)
    made._device = current()
    nbytes = -(-made.nbytes // 512) * 512
    chunk = {"device_id": current(), "mem_size": nbytes, "mem_ptr": 1 + id(made), "pmem_id": id(made)}
    for hook in _hooks().values():
        hook.malloc_postprocess(size=made.nbytes, **chunk)
    weakref.finalize(made, _freed, chunk)
    return made


def _freed(chunk: dict[str, int]) -> None:
    for hook in _hooks().values():
        hook.free_postprocess(**chunk)


def _wrapped(function: Any) -> Any:
    def call(*arguments: Any, **keywords: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, ndarray):
                _check(argument)
        out = keywords.get("out")
        result = function(*[_plain(a) for a in arguments], **{k: _plain(v) for k, v in keywords.items()})
        if out is not None:
            return out
        return _on_current(result) if isinstance(result, np.ndarray) else result

    return call


def _plain(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value.view(np.ndarray)
    return [_plain(part) for part in value] if isinstance(value, list) else value


class Module(ModuleType):
    """`cupy`: NumPy's functions, with results on the current device."""

    __version__ = "14.0 (double)"

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        return _wrapped(found) if callable(found) and not isinstance(found, type) else found


def install() -> Module:
    """A fresh `cupy` module, to be put into `sys.modules` for the time of a test."""
    module = Module("cupy")
    ndarray.__module__ = "cupy"
    module.ndarray = ndarray  # type: ignore[attr-defined]
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: DEVICES,
        getDeviceProperties=lambda index: {"name": f"double {index}".encode()},
        deviceGetPCIBusId=lambda index: f"0000:0{index + 1}:00.0",
    )
    stream = SimpleNamespace(synchronize=POOL.flush)
    module.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=Device,
        MemoryHook=MemoryHook,
        runtime=runtime,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        get_current_stream=lambda: stream,
    )
    module.get_default_memory_pool = lambda: POOL  # type: ignore[attr-defined]
    module.astype = _wrapped(lambda array, dtype: array.astype(dtype))  # type: ignore[attr-defined]
    return module
