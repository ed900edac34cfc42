"""The one place that changes a dtype, by a rule that is named.

The arithmetic is elementwise and correctly rounded, so that every library gets the same result: for arrays in
host memory it is NumPy's own on their memory, for device arrays the library's array API namespace, and where
a library has no 64-bit arithmetic on its device (OpenCL, JAX without x64) the values pass through the host
and return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memcore.backend import Backend, numpy_dtype
from memcore.dtype_rules import COMPLEX, FLOATS, RULES, applies_on_device
from memcore.errors import DtypeError
from memcore.host import aligned_empty
from memcore.info import ITEM_SIZES
from memcore.memory_type import Array
from memcore.registry import backend_for
from memcore.routes import deliver_host_array

Rule: TypeAlias = Literal["exact", "saturate", "rescale"]

# Elements that one block of the host arithmetic works on: its temporaries stay in the cache.
BLOCK_ELEMENTS = 1 << 18


def convert_dtype(array: Array, dtype: object, rule: Rule) -> Array:
    """The array with another dtype, on its own device, by one of three rules.

    `exact` keeps every value, or raises. NaN and infinities pass between floating types.

    `saturate` rounds half to even and clips to the target's finite range; infinities stay what they are in a
    floating type and become the limit in an integer one. NaN has no integer: it raises.

    `rescale` maps the full range of the source linearly onto that of the target, rounding half to even:
    integers from their least to their greatest value, bool from 0 to 1, floating types from 0.0 to 1.0. A
    floating value outside of 0 to 1, or NaN, raises. Complex numbers have no full range.

    If the dtype is there already, it is the same array.

    Parameters
    ----------
    array : plain array of any memory type
    dtype : a name such as "uint8" or "bfloat16", or a NumPy or library dtype
    rule : "exact", "saturate" or "rescale"

    Raises
    ------
    DtypeError
        A value that the rule can't keep (the first is named with its index), a dtype that the library can't
        hold, or a rule or dtype that isn't known.
    """
    apply = RULES.get(rule)
    if apply is None:
        raise DtypeError(f"rule is one of {', '.join(RULES)}, not {rule!r}")
    target = dtype_name(dtype)
    backend = backend_for(array)
    source = backend.dtype_of(array)
    if source not in ITEM_SIZES:
        raise DtypeError(f"no rule for {source} values; they take part only as {', '.join(ITEM_SIZES)}")
    refusal = backend.dtype_refusal(target) or backend.refuse_to_leave(array)
    if refusal is not None:
        raise DtypeError(refusal)
    if rule == "rescale" and (source in COMPLEX or target in COMPLEX):
        raise DtypeError(f"no {source} to {target} by 'rescale': complex numbers have no range; use 'exact'")
    if source == target and (rule != "rescale" or source not in FLOATS):
        return array
    namespace = backend.array_namespace(array)
    if namespace is not None and applies_on_device(rule, source, target):
        with backend.entered(backend.device_of(array)):
            result, bad = apply(namespace, array, source, target)
            if bad is not None and bool(namespace.any(bad)):
                _refuse_first(backend.to_host(bad), backend.to_host(array), source, target, rule, 0)
        return result
    return _on_host(backend, array, source, target, rule, apply)


def dtype_name(dtype: object) -> str:
    """The name of a dtype of any library. Raises DtypeError if memcore doesn't know it."""
    if dtype is None:
        raise DtypeError("no dtype None; NumPy would take it for float64")
    name = getattr(dtype, "name", None) if not isinstance(dtype, str | type) else None
    if name is None:
        # torch.float32 prints as "torch.float32"; NumPy's scalar types have their name.
        name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype)).rpartition(".")[2]
    if name not in ITEM_SIZES:
        try:
            name = np.dtype(dtype).name  # type: ignore[call-overload]  # codes such as "u2", and Python's types
        except TypeError as error:
            raise DtypeError(f"no dtype {dtype!r}; known are {', '.join(ITEM_SIZES)}") from error
    if name not in ITEM_SIZES:
        raise DtypeError(f"no dtype {dtype!r}; known are {', '.join(ITEM_SIZES)}")
    return str(name)


def _on_host(
    backend: Backend, array: Array, source: str, target: str, rule: str, apply: Callable[..., Any]
) -> Array:
    values = backend.to_host(array)
    out = aligned_empty(values.shape, numpy_dtype(target))
    with np.errstate(over="ignore", invalid="ignore"):
        for start, block in _blocks(values):
            result, bad = apply(_NUMPY, block, source, target)
            if bad is not None and bad.any():
                _refuse_first(bad, block, source, target, rule, start)
            out[start : start + len(block)] = result
    return deliver_host_array(out, backend, backend.device_of(array))


def _blocks(values: NDArray[Any]) -> Iterator[tuple[Any, NDArray[Any]]]:
    """The array in pieces along its first axis, each with its start."""
    if values.ndim == 0 or not values.size:
        yield 0, values
        return
    rows = max(1, BLOCK_ELEMENTS * len(values) // values.size)
    for start in range(0, len(values), rows):
        yield start, values[start : start + rows]


def _refuse_first(
    bad: NDArray[Any], values: NDArray[Any], source: str, target: str, rule: str, start: int
) -> None:
    where = np.unravel_index(int(np.argmax(bad)), bad.shape)
    index = tuple(int(i) for i in where)
    place = (index[0] + start, *index[1:]) if index else index
    remedy = {
        "exact": "use rule 'saturate' or 'rescale', or a wider dtype",
        "saturate": "replace NaN first, or choose a floating dtype",
        "rescale": "bring the values into 0 to 1 first, or use rule 'saturate'",
    }[rule]
    raise DtypeError(f"{source} value {values[index]!s} at {place} has no {rule} {target}; {remedy}")


class _NumpyNamespace:
    """NumPy by the array API's names; its `astype` accepts bfloat16, which the standard lacks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def astype(values: Any, dtype: Any) -> Any:
        return values.astype(dtype)

    @staticmethod
    def dtype_named(name: str) -> Any:
        return numpy_dtype(name)


_NUMPY = _NumpyNamespace()
