"""The libraries' traps, each with the guard that keeps a user out of it.

Every test here was seen to fail with its guard taken out. What aborts a process is tried in a child.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcore import (
    BackendUnavailableError,
    ConversionDtypeError,
    MemoryConversionError,
    aligned_empty,
    convert_memory,
    stack_slices,
)
from memcore.backends import pyclesperanto as opencl
from memcore.host import address_of
from memcore.registry import backend_of

torch = pytest.importorskip("torch", reason="needs torch")
jax = pytest.importorskip("jax", reason="needs jax")
tf = pytest.importorskip("tensorflow", reason="needs tensorflow")
cle = pytest.importorskip("pyclesperanto", reason="needs pyclesperanto")

ROOT = Path(__file__).parents[2]


def in_child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        check=False,
    )


def test_negative_strides_do_not_abort_on_the_way_to_torch() -> None:
    done = in_child("""
        import numpy as np, memcore
        values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[::-1, :, ::-1]
        tensor = memcore.convert_memory(values, "numpy", "torch", "cpu")
        assert (tensor.numpy() == values).all()
        assert memcore.plan_conversion(values, "torch", "cpu").route == "device_copy"
    """)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "complex128"])
@pytest.mark.parametrize("source", ["numpy", "torch"])
def test_jax_does_not_narrow_64_bit_values(source: str, dtype: str) -> None:
    values = np.full((1, 2, 3), 2**40 + 7).astype(dtype)
    array = values if source == "numpy" else torch.from_numpy(values)
    with pytest.raises(ConversionDtypeError, match="jax_enable_x64"):
        convert_memory(array, source, "jax", "cpu")
    with pytest.raises(TypeError, match="jax_enable_x64"):
        stack_slices(list(values), "jax", "cpu")


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint64", "float64", "complex64", "float16"])
def test_opencl_does_not_narrow(dtype: str) -> None:
    with pytest.raises(ConversionDtypeError, match=r"convert_dtype|real and imaginary"):
        convert_memory(np.ones((1, 2, 3), dtype), "numpy", "pyclesperanto", 0)


@pytest.mark.parametrize("target", ["tensorflow", "torch", "jax"])
def test_a_foreign_byte_order_is_refused_not_swapped(target: str) -> None:
    values = np.arange(6, dtype=">u2").reshape(1, 2, 3)
    with pytest.raises(ConversionDtypeError, match="newbyteorder"):
        convert_memory(values, "numpy", target, "cpu")
    with pytest.raises(TypeError, match="newbyteorder"):
        stack_slices(list(values), target, "cpu")


def test_a_read_only_array_is_not_made_writable_by_torch() -> None:
    values = np.zeros((1, 2, 3), np.uint16)
    values.flags.writeable = False
    tensor = convert_memory(values, "numpy", "torch", "cpu")
    tensor.fill_(1)
    assert not values.any()


@pytest.mark.parametrize("target", ["jax", "tensorflow"])
def test_an_aligned_buffer_is_not_aliased_by_an_immutable_array(target: str) -> None:
    # device_put aliases it even with may_alias=False (jax#37830), as DLPack imports do.
    values = aligned_empty((4, 64, 64), np.float32)
    values[...] = 1
    array = convert_memory(values, "numpy", target, "cpu")
    stack = stack_slices([values[0], values[1]], target, "cpu")
    values[...] = 7
    assert np.asarray(array).max() == 1
    assert np.asarray(stack).max() == 1


def test_unaligned_memory_does_not_abort_in_tensorflow() -> None:
    # Imported at 16 past a multiple of 64, the first kernel ends the process: "Check failed: IsAligned()".
    done = in_child("""
        import numpy as np, tensorflow as tf, memcore
        raw = memcore.aligned_empty((4096 + 16,), np.uint8)
        values = raw[16:].view(np.float64).reshape(2, 16, 16)
        values[...] = 3
        values.flags.writeable = False
        for copy in (None, True, False):
            try:
                tensor = memcore.convert_memory(values, "numpy", "tensorflow", "cpu", copy=copy)
            except memcore.MemoryConversionError as error:
                assert copy is False and "64 bytes" in str(error)
            else:
                assert float(tf.reduce_sum(tensor[0, 0])) == 48
    """)
    assert done.returncode == 0, done.stderr[-2000:]


def test_writing_to_a_torch_tensor_never_changes_a_jax_array() -> None:
    array = jax.numpy.arange(6.0).reshape(1, 2, 3)
    tensor = convert_memory(array, "jax", "torch", "cpu")
    tensor.add_(100)
    np.testing.assert_array_equal(np.asarray(array).ravel(), np.arange(6.0))


@pytest.mark.parametrize("target", ["torch", "jax", "tensorflow"])
def test_bfloat16_crosses_exactly(target: str) -> None:
    import ml_dtypes

    values = np.array([[[0.1, -0.0, np.inf, 3e38]]], ml_dtypes.bfloat16)
    array = convert_memory(values, "numpy", target, "cpu")
    back = convert_memory(array, target, "numpy", "cpu")
    assert back.dtype == values.dtype
    assert back.tobytes() == values.tobytes()


def test_a_gradient_is_not_dropped() -> None:
    tensor = torch.ones(1, 2, 3, requires_grad=True)
    for target in ("numpy", "jax", "tensorflow"):
        with pytest.raises(MemoryConversionError, match="detach"):
            convert_memory(tensor, "torch", target, "cpu")
    with pytest.raises(ValueError, match="detach"):
        stack_slices(list(tensor), "numpy", "cpu")
    assert convert_memory(tensor, "torch", "torch", "cpu") is tensor
    assert convert_memory(tensor, "torch", "torch", "cpu", copy=True).requires_grad


@pytest.mark.parametrize("target", ["numpy", "jax", "tensorflow"])
def test_a_lazy_conjugate_is_carried_out(target: str) -> None:
    lazy = torch.full((1, 2, 3), 1 + 2j, dtype=torch.complex64).conj()
    result = backend_of(target).to_host(convert_memory(lazy, "torch", target, "cpu"))
    assert (result == 1 - 2j).all()
    negative = torch.full((1, 2, 3), 1 + 2j, dtype=torch.complex64).conj().imag
    result = backend_of(target).to_host(convert_memory(negative, "torch", target, "cpu"))
    assert (result == -2).all()


def test_opencl_keeps_the_order_of_the_axes() -> None:
    values = np.arange(2 * 3 * 5, dtype=np.uint16).reshape(2, 3, 5)
    array = convert_memory(values, "numpy", "pyclesperanto", 0)
    assert tuple(array.shape) == (2, 3, 5)
    planes = [backend_of("pyclesperanto").to_host(array[z]) for z in range(2)]
    np.testing.assert_array_equal(np.stack(planes), values)
    result = convert_memory(array, "pyclesperanto", "torch", "cpu")
    np.testing.assert_array_equal(result.numpy(), values)


def test_torch_never_sees_opencl_memory_through_dlpack() -> None:
    # torch.from_dlpack of a pyclesperanto array fails an internal assertion and then crashes the process.
    done = in_child("""
        import pyclesperanto, numpy as np, memcore
        array = memcore.convert_memory(np.ones((2, 3, 5), np.float32), "numpy", "pyclesperanto", 0)
        for target in ("numpy", "torch", "jax"):
            for _ in range(3):
                memcore.convert_memory(array, "pyclesperanto", target, "cpu")
    """)
    assert done.returncode == 0, done.stderr[-2000:]


def test_pyclesperanto_after_tensorflow_is_refused_before_it_crashes() -> None:
    if not opencl.pocl_is_configured():
        pytest.skip("needs PoCL")
    done = in_child("""
        import tensorflow, numpy as np, memcore
        try:
            memcore.convert_memory(np.ones((1, 2, 3), np.float32), "numpy", "pyclesperanto", 0)
        except memcore.BackendUnavailableError as error:
            assert "before `import tensorflow`" in str(error)
            status = memcore.backend_status()
            assert "before `import tensorflow`" in status["pyclesperanto"].reason
            print("refused")
    """)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "refused"


def test_tensorflow_after_pyclesperanto_works() -> None:
    done = in_child("""
        import numpy as np, memcore
        array = memcore.convert_memory(np.ones((1, 2, 3), np.float32), "numpy", "pyclesperanto", 0)
        tensor = memcore.convert_memory(array, "pyclesperanto", "tensorflow", "cpu")
        print(float(tensor[0, 1, 2]))
    """)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "1.0"


@pytest.mark.parametrize(
    ("files", "configured"),
    [
        ({}, False),
        ({"pocl.icd": "libpocl.so"}, True),
        ({"a.icd": "/usr/lib/libpocl.so.2"}, True),
        ({"nvidia.icd": "libnvidia-opencl.so.1"}, False),
    ],
)
def test_only_pocl_makes_the_order_matter(
    files: dict[str, str], configured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("OCL_ICD_VENDORS", str(tmp_path))
    assert opencl.pocl_is_configured() is configured
    fresh = opencl.PyclesperantoBackend()
    monkeypatch.setitem(sys.modules, "tensorflow", tf)
    monkeypatch.delitem(sys.modules, "pyclesperanto")
    if configured:
        with pytest.raises(BackendUnavailableError, match="OCL_ICD_VENDORS"):
            fresh.before_import()
    else:
        fresh.before_import()


def test_numpy_memory_starts_off_the_alignment_and_ours_does_not() -> None:
    # numpy.empty of a mebibyte and more starts at 16 past a multiple of 64: lent as it is, JAX would copy it.
    for nbytes in (1, 1000, 1 << 20, 5 << 20):
        assert address_of(aligned_empty((nbytes,), np.uint8)) % 64 == 0
    stack = stack_slices([np.ones((512, 1024), np.uint16)] * 2, "jax", "cpu")
    assert stack.unsafe_buffer_pointer() % 64 == 0


@pytest.mark.parametrize(
    "thing",
    [torch.float32, torch.ones, tf.float32, jax.numpy],
    ids=["dtype", "function", "tf dtype", "module"],
)
def test_a_module_name_alone_makes_no_array(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"is no"):
        convert_memory(thing, "torch", "numpy", "cpu")


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "complex32"])
def test_a_dtype_that_only_one_library_has_is_refused(dtype: str) -> None:
    tensor = torch.ones(1, 2, 3).to(getattr(torch, dtype))
    for target in ("numpy", "jax", "tensorflow"):
        with pytest.raises(ConversionDtypeError, match="convert_dtype"):
            convert_memory(tensor, "torch", target, "cpu")
    assert convert_memory(tensor, "torch", "torch", "cpu") is tensor


def test_every_library_of_this_suite_was_really_there() -> None:
    for name in ("torch", "jax", "tensorflow", "pyclesperanto"):
        assert importlib.util.find_spec(name) is not None


def test_odd_slices_are_not_broadcast() -> None:
    planes = [np.ones((3, 3), np.uint8), np.ones((1, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"slice 1 has shape \(1, 3\), but slice 0 has \(3, 3\)"):
        stack_slices(planes, "numpy", "cpu")


def test_mixed_dtypes_are_not_promoted() -> None:
    planes = [np.ones((3, 3), np.uint8), np.ones((3, 3), np.uint16)]
    with pytest.raises(ValueError, match="slice 1 has dtype uint16, but slice 0 has uint8"):
        stack_slices(planes, "numpy", "cpu")


def test_a_reused_stack_does_not_take_values_that_it_cannot_hold() -> None:
    out = np.zeros((1, 1, 1), np.uint8)
    with pytest.raises(TypeError, match="convert_dtype"):
        stack_slices([np.full((1, 1), 300.7)], "numpy", "cpu", out=out)
    assert not out.any()
