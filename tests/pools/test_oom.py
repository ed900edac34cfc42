"""Out of memory is told from every other failure, by each framework's own types and codes."""

import pickle

import pytest

from memcore import OutOfDeviceMemoryError
from pools import ArrayPool, PoolExhaustedError, PoolSet, is_oom
from tests.cuda import on_cuda


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OutOfDeviceMemoryError("full"), True),
        (PoolExhaustedError("full"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("out of memory"), False),
        (ValueError("CL_OUT_OF_RESOURCES"), False),
        (OSError(12, "Cannot allocate memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_by_type(error: BaseException, expected: bool) -> None:
    assert is_oom(error) is expected


def test_of_our_own_pools() -> None:
    with pytest.raises(PoolExhaustedError) as caught:
        ArrayPool(10).acquire(11, "uint8")
    assert is_oom(caught.value)
    assert is_oom(pickle.loads(pickle.dumps(caught.value)))


def test_of_numpy() -> None:
    import numpy as np

    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, "uint8")
    assert is_oom(caught.value)
    with pytest.raises(MemoryError) as caught:
        PoolSet(1 << 62).pool("numpy", "cpu").acquire(1 << 60, "uint8")
    assert is_oom(caught.value)


def test_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_oom(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(3).view(2)
    assert not is_oom(caught.value)


def test_of_jax() -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.numpy.zeros(1 << 44, "uint8").block_until_ready()
    assert is_oom(caught.value)


def test_of_tensorflow() -> None:
    tensorflow = pytest.importorskip("tensorflow", reason="needs tensorflow")
    with pytest.raises(tensorflow.errors.ResourceExhaustedError) as caught:
        tensorflow.zeros((1 << 44,), "uint8")
    assert is_oom(caught.value)
    with pytest.raises(tensorflow.errors.InvalidArgumentError) as invalid:
        tensorflow.reshape(tensorflow.zeros(3), (2,))
    assert not is_oom(invalid.value)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_type", ["cupy", "torch"])
def test_of_a_gpu(memory_type: str) -> None:
    framework = on_cuda(memory_type)
    device = {} if memory_type == "cupy" else {"device": "cuda"}
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        framework.empty(1 << 45, dtype=framework.uint8, **device)
    assert is_oom(caught.value)
