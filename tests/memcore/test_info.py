"""Records about arrays: sizes in bytes and the words for them."""

from __future__ import annotations

import pickle

import pytest

from memcore import ArrayInfo
from memcore.info import bytes_text, item_size


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("bool", 1),
        ("bfloat16", 2),
        ("complex128", 16),
        (">u2", 2),
        ("float8_e4m3fn", 1),
        ("int4", 1),
        ("void48", 6),
        ("object", 8),
    ],
)
def test_every_dtype_has_a_size(dtype: str, size: int) -> None:
    assert item_size(dtype) == size


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1 << 29, "512 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 41, "2 TiB"),
    ],
)
def test_bytes_are_told_in_binary_units(nbytes: int, text: str) -> None:
    assert bytes_text(nbytes) == text


def test_an_array_is_described_in_one_line() -> None:
    info = ArrayInfo("torch", (64, 2048, 2048), "uint16", 0)
    assert str(info) == "torch uint16 (64, 2048, 2048), 512 MiB, on device 0"
    assert str(ArrayInfo("numpy", (2, 3), "float64")) == "numpy float64 (2, 3), 48 bytes, in host memory"
    assert pickle.loads(pickle.dumps(info)) == info
