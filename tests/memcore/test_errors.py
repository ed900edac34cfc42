"""Errors keep their type, text and figures through pickling, process pools and Dask, and print four lines."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

import memcore
from memcore import (
    BackendUnavailableError,
    ContractError,
    ConversionDeviceError,
    ConversionDtypeError,
    DeviceError,
    DtypeError,
    MemcoreError,
    MemoryConversionError,
    OutOfDeviceMemoryError,
    StackError,
    UnknownMemoryTypeError,
    convert_memory,
)
from memcore.memory_type import GpuId

FOUR = (
    "Failed to convert torch tensor to cupy array",
    "GPU device 2 not available (only 0-1 available)",
    "torch uint16 (64, 2048, 2048), 512 MiB, on device 0",
    "cupy array on device 2",
)
ERRORS = [
    (MemoryConversionError(*FOUR), ValueError),
    (ConversionDeviceError(*FOUR), DeviceError),
    (ConversionDtypeError(*FOUR), DtypeError),
    (UnknownMemoryTypeError("what"), TypeError),
    (BackendUnavailableError("why"), ImportError),
    (DeviceError("which"), ValueError),
    (StackError("shape"), ValueError),
    (ContractError("step"), TypeError),
    (DtypeError("value"), TypeError),
    (OutOfDeviceMemoryError("full", device="cuda:0", requested=512, free=7, capacity=1024), MemoryError),
]


def raise_index(index: int) -> None:
    raise ERRORS[index][0]


@pytest.mark.parametrize(("error", "standard"), ERRORS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_error_survives_pickling(error: MemcoreError, standard: type[Exception]) -> None:
    assert isinstance(error, MemcoreError)
    assert isinstance(error, standard)
    again = pickle.loads(pickle.dumps(error))
    assert again == error
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__
    assert hash(again) == hash(error)


def test_different_errors_are_unequal() -> None:
    assert StackError("a") != StackError("b")
    assert StackError("a") != DeviceError("a")
    assert OutOfDeviceMemoryError("full", free=1) != OutOfDeviceMemoryError("full", free=2)


def test_a_conversion_error_prints_four_lines() -> None:
    assert str(ERRORS[0][0]).splitlines() == [
        "Failed to convert torch tensor to cupy array",
        "Reason: GPU device 2 not available (only 0-1 available)",
        "Source: torch uint16 (64, 2048, 2048), 512 MiB, on device 0",
        "Target: cupy array on device 2",
    ]


def test_a_real_failure_prints_four_lines_with_its_figures() -> None:
    pytest.importorskip("torch", reason="needs torch")
    stack = np.zeros((64, 2048, 2), np.uint16)
    with pytest.raises(MemoryConversionError) as caught:
        convert_memory(stack, "numpy", "torch", 2)
    assert isinstance(caught.value, DeviceError)
    assert isinstance(caught.value.__cause__, DeviceError)
    lines = str(caught.value).splitlines()
    assert lines[0] == "Failed to convert numpy array to torch tensor"
    assert lines[1].startswith("Reason: GPU device 2 not available")
    assert lines[2:] == [
        "Source: numpy uint16 (64, 2048, 2), 512 KiB, in host memory",
        "Target: torch tensor on device 2",
    ]


def test_a_traceback_names_the_public_place() -> None:
    assert type(ERRORS[0][0]).__module__ == "memcore"
    assert memcore.MemoryConversionError is MemoryConversionError


def test_errors_come_out_of_a_process_pool_intact() -> None:
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as pool:
        for index, (error, _) in enumerate(ERRORS):
            assert pool.submit(raise_index, index).exception(timeout=60) == error


def test_errors_come_out_of_a_dask_worker_intact() -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for index, (error, _) in enumerate(ERRORS):
            found = client.submit(raise_index, index, pure=False, retries=0).exception(timeout=60)
            assert found == error
            assert str(found) == str(error)


@pytest.mark.parametrize("gpu_id", [None, True, -1, 5])
def test_a_bad_device_is_named(gpu_id: GpuId) -> None:
    pytest.importorskip("torch", reason="needs torch")
    with pytest.raises(ConversionDeviceError) as caught:
        convert_memory(np.zeros(3), "numpy", "torch", gpu_id)
    assert repr(gpu_id) in str(caught.value)
    assert "'cpu' for host memory" in caught.value.reason
