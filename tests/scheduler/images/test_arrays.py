"""Arrays from files: read once, for good, and as they are."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from scheduler.images.arrays import ArrayFile
from scheduler.images.errors import ImageError
from scheduler.images.outputs import write_stack

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


def test_a_file_is_described_once_while_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((3, 5), np.uint8))
    first = ArrayFile.of(path)
    with monkeypatch.context() as patch:
        patch.setattr("scheduler.images.arrays.read_array", lambda _: pytest.fail("it was read again"))
        patch.chdir(tmp_path)
        assert ArrayFile.of(path) == first
        assert ArrayFile.of("a.npy").digest == first.digest
    np.save(path, np.ones((3, 5), np.uint8))
    os.utime(path, ns=(0, 1))
    assert ArrayFile.of(path).digest != first.digest
    with pytest.raises(ImageError, match="has changed since the run began"):
        first.read()


def test_a_folder_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    array = np.zeros((1, 8, 8), np.uint8)
    write_stack(path, array, format="ome-zarr")
    first, found = ArrayFile.of(path), path.stat()
    write_stack(path, array + 1, format="ome-zarr", overwrite=True)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert ArrayFile.of(path).digest != first.digest
