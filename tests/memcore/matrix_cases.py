"""Every combination of the strict matrix: the arrays, what must come of them, and how a result is read.

Results are read with each library's own means, not with memcore's.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

TYPES = ("numpy", "torch", "tensorflow", "jax", "pyclesperanto")
DTYPES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
LAYOUTS = (
    "C", "F", "strided", "negative", "zero_size", "read_only", "big_endian", "unaligned", "scalar",
    "subclass", "masked", "requires_grad", "conj", "sparse", "tracer",
)  # fmt: skip
COPIES = (None, True, False)
WIDE = {"uint64", "int64", "float64", "complex128"}
OPENCL = {"uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"}
MEANINGFUL = {"subclass", "masked", "sparse", "tracer"}

# What a user can do about it, in the words of the errors.
REMEDY = re.compile(
    r"\b(call|pass|take|use|set|choose|convert it|convert outside|reshape|leave it out|leave the|decide|"
    r"read its value|make it|gather)\b"
)

@dataclass(frozen=True)
class Case:
    source: str
    target: str
    dtype: str
    layout: str
    copy: bool | None

    @property
    def gpu_id(self) -> int | str:
        return 0 if self.target == "pyclesperanto" else "cpu"


def all_cases() -> list[Case]:
    product = itertools.product(TYPES, TYPES, DTYPES, LAYOUTS, COPIES)
    return [Case(*combination) for combination in product]


def expected_error(case: Case, x64: bool) -> str | None:
    """The error class that the case must raise with copy=None, or None where the result must be exact."""
    if case.layout in MEANINGFUL:
        return "UnknownMemoryTypeError"
    if case.source == case.target:
        return None
    if case.layout == "big_endian":
        return (
            "ConversionDtypeError"
            if np.dtype(numpy_type(case.dtype)).itemsize > 1
            else _form_error(case, x64)
        )
    return _form_error(case, x64)


def _form_error(case: Case, x64: bool) -> str | None:
    if case.target == "jax" and case.dtype in WIDE and not x64:
        return "ConversionDtypeError"
    if case.target == "pyclesperanto" and case.dtype not in OPENCL:
        return "ConversionDtypeError"
    if case.target == "pyclesperanto" and case.layout in ("zero_size", "scalar"):
        return "MemoryConversionError"
    return "MemoryConversionError" if case.layout == "requires_grad" else None


def numpy_type(name: str) -> Any:
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


def values(dtype: str, shape: tuple[int, ...] = (2, 3, 4)) -> np.ndarray:
    """The dtype's awkward values: both ends, zero with either sign, infinities, NaN, the least subnormal."""
    kind = numpy_type(dtype)
    if dtype == "bool":
        special = [True, False, True, True]
    elif dtype.startswith(("int", "uint")):
        info = np.iinfo(dtype)
        special = [info.min, info.max, 0, 1, info.max // 3, info.max - 6]
    elif dtype.startswith("complex"):
        special = [1 - 2j, complex(0.0, -0.0), complex(np.inf, np.nan), 1e-30 + 1e30j, 0.1 + 0.7j]
    else:
        info = ml_dtypes.finfo(kind)
        special = [0.1, -0.0, np.inf, -np.inf, np.nan, float(info.max), float(info.smallest_subnormal), 1 / 3]
    size = int(np.prod(shape))
    filled = np.resize(np.array(special).astype(kind), size).reshape(shape)
    # Aligned, so that what can be shared with copy=False is the same in every run.
    raw = np.empty(filled.nbytes + 64, np.uint8)
    aligned = np.ndarray(shape, filled.dtype, raw, -raw.ctypes.data % 64)
    aligned[...] = filled
    return aligned


def build(source: str, dtype: str, layout: str) -> Any:
    """The source array, or None where the library has no such array."""
    return BUILDERS[source](dtype, layout)


def bits(array: Any, source: str) -> tuple[str, tuple[int, ...], bytes]:
    """dtype name, shape and the bytes of the values in C order, read by the library's own means."""
    host = READERS[source](array)
    native = host if host.dtype.isnative else host.astype(host.dtype.newbyteorder("="))
    return native.dtype.name, host.shape, np.ascontiguousarray(native).tobytes()


class Subclass(np.ndarray):
    pass


def _numpy(dtype: str, layout: str) -> Any:
    whole = values(dtype)
    if layout == "C":
        return whole
    if layout == "F":
        return np.asfortranarray(whole)
    if layout == "strided":
        return values(dtype, (4, 3, 8))[::2, :, ::2]
    if layout == "negative":
        return whole[::-1, :, ::-1]
    if layout == "zero_size":
        return values(dtype, (0, 3, 4))
    if layout == "scalar":
        return values(dtype, ())
    if layout == "read_only":
        whole.flags.writeable = False
        return whole
    if layout == "big_endian":
        return None if dtype == "bfloat16" else whole.astype(whole.dtype.newbyteorder(">"))
    if layout == "unaligned":
        raw = np.zeros(whole.nbytes + 1, np.uint8)
        shifted = raw[1:].view(whole.dtype).reshape(whole.shape)
        shifted[...] = whole
        return shifted
    if layout == "subclass":
        return whole.view(Subclass)
    if layout == "masked":
        return np.ma.masked_array(whole, np.zeros(whole.shape, bool))
    return None


def _torch(dtype: str, layout: str) -> Any:
    import torch

    kind = getattr(torch, dtype)

    def tensor(array: np.ndarray) -> Any:
        if dtype == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    whole = tensor(values(dtype))
    floating = kind.is_floating_point or kind.is_complex
    if layout == "C":
        return whole
    if layout == "F":
        return tensor(np.ascontiguousarray(values(dtype).T)).permute(2, 1, 0)
    if layout == "strided":
        return tensor(values(dtype, (4, 3, 8)))[::2, :, ::2]
    if layout == "zero_size":
        return tensor(values(dtype, (0, 3, 4)))
    if layout == "scalar":
        return tensor(values(dtype, (1,)))[0]
    if layout == "unaligned":
        return None if dtype == "bfloat16" else tensor(_numpy(dtype, "unaligned"))
    if layout == "requires_grad":
        return whole.requires_grad_() if floating else None
    if layout == "conj":
        return whole.conj() if kind.is_complex else None
    if layout == "negative":
        # torch has no negative strides; its lazy negation is the imaginary part of a conjugate view.
        wide = {"float32": torch.complex64, "float64": torch.complex128}.get(dtype)
        return None if wide is None else torch.complex(whole, whole).conj().imag
    if layout == "sparse":
        return torch.sparse_coo_tensor([[0, 1]], torch.ones(2).to(kind), (3,))
    if layout == "subclass":
        return torch.nn.Parameter(whole, requires_grad=False)
    if layout == "masked":
        if dtype not in ("float32", "float64"):
            return None
        return torch.masked.masked_tensor(whole, torch.ones(2, 3, 4, dtype=torch.bool))
    if layout == "tracer":
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            return torch.empty(2, 3, 4, dtype=kind)
    return None


def _tensorflow(dtype: str, layout: str) -> Any:
    import tensorflow as tf

    if layout == "C":
        return tf.constant(values(dtype))
    if layout == "zero_size":
        return tf.constant(values(dtype, (0, 3, 4)))
    if layout == "scalar":
        return tf.constant(values(dtype, ()))
    if layout == "unaligned":
        return None  # an import of unaligned memory aborts at the first kernel; test_traps has it
    if layout == "subclass":
        return tf.Variable(tf.constant(values(dtype)))
    if layout == "masked":
        return tf.ragged.constant([[1], [2, 3]]) if dtype == "int32" else None
    if layout == "sparse":
        return tf.SparseTensor([[0, 1]], tf.constant(values(dtype, (1,))), [2, 2])
    if layout == "tracer":
        found = []

        @tf.function
        def traced(x: Any) -> Any:
            found.append(x)
            return x

        traced(tf.constant(values(dtype)))
        return found[0]
    return None


def _jax(dtype: str, layout: str) -> Any:
    import jax
    import jax.numpy as jnp

    if dtype in WIDE and not jax.config.jax_enable_x64:
        return None
    if layout == "C":
        return jnp.asarray(values(dtype))
    if layout == "F":
        return jnp.asarray(values(dtype)).T.T
    if layout == "zero_size":
        return jnp.asarray(values(dtype, (0, 3, 4)))
    if layout == "scalar":
        return jnp.asarray(values(dtype, ()))
    if layout == "subclass":
        return jax.random.key(0) if dtype == "uint32" else None
    if layout == "sparse":
        from jax.experimental import sparse

        return sparse.BCOO.fromdense(jnp.ones((2, 3), numpy_type(dtype)))
    if layout == "tracer":
        found = []
        jax.jit(lambda x: found.append(x) or x)(jnp.asarray(values(dtype)))
        return found[0]
    return None


def _pyclesperanto(dtype: str, layout: str) -> Any:
    import pyclesperanto as cle

    return cle.push(values(dtype)) if layout == "C" and dtype in OPENCL else None


BUILDERS = {
    "numpy": _numpy,
    "torch": _torch,
    "tensorflow": _tensorflow,
    "jax": _jax,
    "pyclesperanto": _pyclesperanto,
}


def _read_torch(tensor: Any) -> np.ndarray:
    import torch

    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if plain.dtype is torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return plain.numpy()


READERS = {
    "numpy": lambda array: array,
    "torch": _read_torch,
    "tensorflow": lambda tensor: np.asarray(tensor.numpy()),
    "jax": np.asarray,
    "pyclesperanto": lambda array: array.get(),
}
