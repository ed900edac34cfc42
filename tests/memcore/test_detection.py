"""What an object is, told without imports; what isn't a plain array is refused with the way out."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcore import MemoryType, UnknownMemoryTypeError, memory_type_of

torch = pytest.importorskip("torch", reason="needs torch")
jax = pytest.importorskip("jax", reason="needs jax")
tf = pytest.importorskip("tensorflow", reason="needs tensorflow")
cle = pytest.importorskip("pyclesperanto", reason="needs pyclesperanto")


class Image(np.ndarray):
    """An array with a meaning of its own."""


class TorchLookalike:
    """A type that claims to be from torch."""

    __module__ = "torch"
    shape = (2, 3)


def test_plain_arrays_have_their_memory_type() -> None:
    ones = np.ones((2, 3), np.float32)
    assert memory_type_of(ones) is MemoryType.NUMPY
    assert memory_type_of(torch.ones(2, 3)) is MemoryType.TORCH
    assert memory_type_of(jax.numpy.ones((2, 3))) is MemoryType.JAX
    assert memory_type_of(tf.ones((2, 3))) is MemoryType.TENSORFLOW
    assert memory_type_of(cle.push(ones)) is MemoryType.PYCLESPERANTO


def test_a_memory_map_is_a_plain_array_with_a_file_behind_it(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "stack.raw", np.uint16, "w+", shape=(2, 3, 4))
    mapped[...] = 7
    assert memory_type_of(mapped) is MemoryType.NUMPY


def freed_tensor() -> Any:
    """As sharded training leaves its parameters: reading one crashed the process, or gave garbage."""
    tensor = torch.ones(2, 3)
    tensor.untyped_storage().resize_(0)
    return tensor


def strangers() -> list[tuple[Any, str]]:
    """Objects that aren't plain arrays, with a word of their remedy; several libraries warn of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            ([1, 2], "numpy.asarray"),
            (3.0, "numpy.asarray"),
            (None, "numpy.asarray"),
            (np.float32(3), "numpy.asarray"),
            (np.dtype("u2"), "numpy.asarray"),
            (np.ones((2, 2)).view(Image), "numpy.asarray"),
            (np.matrix([[1]]), "numpy.asarray"),
            (np.rec.array([(1, 2.0)]), "numpy.asarray"),
            (np.ma.masked_array([1, 2], [True, False]), "filled"),
            (torch.float32, "plain torch tensor"),
            (torch.nn.Parameter(torch.ones(2)), "detach"),
            (torch.ones(2, 2).to_sparse(), "to_dense"),
            (torch.ones(2, 2).to_sparse_csr(), "to_dense"),
            (torch.ones(2, device="meta"), "meta"),
            (freed_tensor(), "allocate and fill"),
            (torch._efficientzerotensor((2, 2)), "allocate and fill"),
            (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "dequantize"),
            (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "to_padded_tensor"),
            (jax.random.key(0), "key_data"),
            (tf.Variable([1.0]), "value"),
            (tf.constant("text"), "numbers"),
            (tf.cast(tf.constant([1.0]), tf.qint8), "dequantize"),
            (tf.ragged.constant([[1], [2, 3]]), "to_tensor"),
            (tf.SparseTensor([[0, 1]], [1.0], [2, 2]), "to_dense"),
            (TorchLookalike(), "plain torch tensor"),
        ]


@pytest.mark.parametrize(
    ("thing", "remedy"),
    strangers(),
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_means_more_or_less_than_its_values_is_refused(thing: Any, remedy: str) -> None:
    with pytest.raises(UnknownMemoryTypeError, match=remedy):
        memory_type_of(thing)


def test_a_deleted_jax_array_is_refused() -> None:
    array = jax.numpy.ones((2, 3))
    array.delete()
    with pytest.raises(UnknownMemoryTypeError, match="deleted"):
        memory_type_of(array)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap], ids=["jit", "grad", "vmap"])
def test_a_jax_tracer_is_refused(transform: Any) -> None:
    def traced(x: Any) -> Any:
        with pytest.raises(UnknownMemoryTypeError, match="outside of the traced function"):
            memory_type_of(x)
        return x.sum()

    transform(traced)(jax.numpy.ones(3))


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad], ids=["vmap", "grad"])
def test_a_transformed_torch_tensor_is_refused(transform: Any) -> None:
    def transformed(x: Any) -> Any:
        with pytest.raises(UnknownMemoryTypeError, match="outside of the transformed function"):
            memory_type_of(x)
        return x.sum()

    transform(transformed)(torch.ones(3))


def test_a_symbolic_tensor_is_refused() -> None:
    @tf.function
    def traced(x: Any) -> Any:
        with pytest.raises(UnknownMemoryTypeError, match="outside of the traced function"):
            memory_type_of(x)
        return x

    traced(tf.ones(3))


def test_detection_imports_nothing() -> None:
    code = (
        "import sys, memcore, numpy\n"
        "assert memcore.memory_type_of(numpy.ones(3)) == 'numpy'\n"
        "try: memcore.memory_type_of([1])\n"
        "except memcore.UnknownMemoryTypeError: pass\n"
        "print(sorted({'torch', 'jax', 'tensorflow', 'cupy', 'pyclesperanto'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
