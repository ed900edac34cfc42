"""Arrays from files: read once, for good, and as they are."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from scheduler.images.arrays import ArrayFile

MIB = 1 << 20


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<u2", "|b1", "<c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_shape_and_native_dtype_are_kept(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.asarray(np.arange(2 * 3 * 5).reshape(2, 3, 5), dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    file = ArrayFile.of(tmp_path / "a.npy")
    read = file.read()
    np.testing.assert_array_equal(read, array)
    assert read.dtype.isnative
    assert read.flags.c_contiguous
    assert (file.dtype, file.shape, file.nbytes) == (read.dtype.name, read.shape, read.nbytes)


def test_nobody_can_write_to_what_was_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 5), np.float32))
    read = ArrayFile.of(tmp_path / "a.npy").read()
    with pytest.raises(ValueError, match="read-only"):
        read[0, 0] = 2
    with pytest.raises(ValueError, match="WRITEABLE"):
        read.flags.writeable = True
    flat = read.base
    while isinstance(flat, np.ndarray):
        with pytest.raises(ValueError, match="WRITEABLE"):
            flat.flags.writeable = True
        flat = flat.base


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_reading_takes_the_bytes_of_the_array_and_no_more(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.ones((8, 1024, 1024), dtype))
    file = ArrayFile.of(tmp_path / "a.npy")
    tracemalloc.start()
    try:
        read = file.read()
        assert tracemalloc.get_traced_memory()[1] < read.nbytes + MIB
    finally:
        tracemalloc.stop()
