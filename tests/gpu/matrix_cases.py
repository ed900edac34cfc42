"""The strict matrix in device memory: arrays by each library's own means, and what must come of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.memcore.matrix_cases import DTYPES, READERS, WIDE, numpy_type, values

LIBRARIES = ("numpy", "torch", "cupy", "jax", "tensorflow")
LAYOUTS = ("C", "F", "strided", "negative", "zero_size", "scalar", "requires_grad", "conj", "neg")
COPIES = (None, True, False)
Place = int | str


@dataclass(frozen=True)
class Case:
    """One conversion; `place` is where every library but NumPy has its arrays."""

    source: str
    target: str
    dtype: str
    layout: str
    copy: bool | None
    place: Place

    @property
    def goal(self) -> Place:
        """Where the result is to live."""
        return "cpu" if self.target == "numpy" else self.place


def all_cases(libraries: tuple[str, ...], place: Place, dtypes: tuple[str, ...] = DTYPES) -> list[Case]:
    """Every combination, in an order that is the same in every process."""
    product = itertools.product(libraries, libraries, dtypes, LAYOUTS, COPIES)
    return [Case(*combination, place) for combination in product]


def expected_error(case: Case, x64: bool) -> str | None:
    """The error that the case must raise with copy=None, or None where the result must be exact."""
    if case.source == case.target:
        return None
    if case.target == "jax" and case.dtype in WIDE and not x64:
        return "ConversionDtypeError"
    if case.target == "cupy" and case.dtype == "bfloat16":
        return "ConversionDtypeError"
    return "MemoryConversionError" if case.layout == "requires_grad" else None


def build(case: Case, x64: bool) -> Any:
    """The source array, or None where the library has no such array."""
    return _BUILDERS[case.source](case.dtype, case.layout, case.place, x64)


def bits(array: Any, library: str) -> tuple[str, tuple[int, ...], bytes]:
    """dtype name, shape and the bytes of the values in C order, read by the library's own means."""
    host = array.get() if library == "cupy" else READERS[library](_on_host(array, library))
    return host.dtype.name, host.shape, np.ascontiguousarray(host).tobytes()


def _on_host(array: Any, library: str) -> Any:
    return array.cpu() if library == "torch" else array


def _base(dtype: str, layout: str) -> np.ndarray | None:
    """The host array to upload before the layout is made on the device."""
    if layout in ("C", "F"):
        return values(dtype)
    if layout in ("strided", "negative"):
        return values(dtype, (4, 3, 8))
    return {"zero_size": values(dtype, (0, 3, 4)), "scalar": values(dtype, ())}.get(layout)


def _numpy(dtype: str, layout: str, place: Place, x64: bool) -> Any:
    base = _base(dtype, layout)
    return None if base is None else _shaped(base, layout)


def _shaped(base: Any, layout: str) -> Any:
    if layout == "F":
        return base.transpose(2, 1, 0)
    if layout == "strided":
        return base[::2, :, ::2]
    return base[::-1, :, ::-1] if layout == "negative" else base


def _torch(dtype: str, layout: str, place: Place, x64: bool) -> Any:
    import torch

    device = "cpu" if place == "cpu" else f"cuda:{place}"
    base = _base(dtype, layout)
    if base is None:
        base = values(dtype)
    plain = torch.from_numpy(base.view(np.int16) if dtype == "bfloat16" else base)
    tensor = (plain.view(torch.bfloat16) if dtype == "bfloat16" else plain).to(device)
    if layout == "F":
        return tensor.permute(2, 1, 0)
    if layout == "strided":
        return tensor[::2, :, ::2]
    if layout == "requires_grad":
        return tensor.requires_grad_() if tensor.is_floating_point() or tensor.is_complex() else None
    if layout == "conj":
        return tensor.conj() if tensor.is_complex() else None
    if layout == "neg":
        wide = dtype in ("float32", "float64")
        return torch.complex(tensor, tensor).conj().imag if wide else None
    return None if layout == "negative" else tensor


def _cupy(dtype: str, layout: str, place: Place, x64: bool) -> Any:
    import cupy

    base = _base(dtype, layout)
    if base is None or dtype == "bfloat16":
        return None
    with cupy.cuda.Device(place):
        return _shaped(cupy.asarray(base), layout)


def _jax(dtype: str, layout: str, place: Place, x64: bool) -> Any:
    import jax

    base = _base(dtype, layout)
    if base is None or layout in ("strided", "negative") or (dtype in WIDE and not x64):
        return None
    # device_put may share host memory, which is this case's alone.
    array = jax.device_put(base, jax.devices("cpu" if place == "cpu" else "gpu")[0])
    return array.transpose(2, 1, 0) if layout == "F" else array


def _tensorflow(dtype: str, layout: str, place: Place, x64: bool) -> Any:
    import tensorflow

    base = _base(dtype, layout)
    if base is None or layout not in ("C", "zero_size", "scalar"):
        return None
    with tensorflow.device("CPU:0" if place == "cpu" else f"GPU:{place}"):
        return tensorflow.identity(tensorflow.constant(base))


_BUILDERS = {"numpy": _numpy, "torch": _torch, "cupy": _cupy, "jax": _jax, "tensorflow": _tensorflow}

__all__ = ["LIBRARIES", "Case", "Place", "all_cases", "bits", "build", "expected_error", "numpy_type"]
