"""Aligned host memory and the owner behind lent arrays."""

from __future__ import annotations

import gc
import mmap
import weakref
from typing import Any

import numpy as np
import pytest

from memcore import HostBlock, HostBuffer, aligned_empty
from memcore.host import address_of, root_owner, writable_alias
from memcore.sharing import is_immutable


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 4096, 1 << 20, (1 << 21) + 1, 9 << 20])
def test_memory_is_aligned_at_any_size(nbytes: int) -> None:
    array = aligned_empty((nbytes,), np.uint8)
    assert array.shape == (nbytes,)
    assert address_of(array) % 64 == 0
    block = HostBlock(nbytes)
    assert block.address % 64 == 0
    view = HostBuffer(block).array((nbytes,), np.uint8)
    view[...] = 7
    assert view.nbytes == nbytes


@pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="needs Linux")
def test_a_kernel_without_huge_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_NOHUGEPAGE", 9999)  # EINVAL, as such a kernel says
    assert HostBlock(4 << 20).address % 64 == 0


@pytest.mark.parametrize("alignment", [64, 128, 4096])
def test_an_array_starts_at_the_alignment_asked_for(alignment: int) -> None:
    array = aligned_empty((3, 4, 5), np.complex128, alignment)
    assert address_of(array) % alignment == 0
    assert array.flags.carray


def test_a_buffer_refuses_more_than_its_block_holds() -> None:
    buffer = HostBuffer(HostBlock(64))
    assert buffer.array((64,), np.uint8).shape == (64,)
    with pytest.raises(ValueError, match="65 bytes"):
        buffer.array((65,), np.uint8)


def alias_of(array: np.ndarray, kind: str) -> Any:
    if kind == "slice":
        return array[1:2, ::2]
    if kind == "memoryview":
        return memoryview(array)
    if kind == "torch":
        return pytest.importorskip("torch", reason="needs torch").from_numpy(array)
    if kind == "dlpack":
        return np.from_dlpack(array)
    return array.reshape(-1).view(np.int32)


@pytest.mark.parametrize("kind", ["slice", "memoryview", "torch", "dlpack", "reshaped"])
def test_release_comes_with_the_last_alias_never_before(kind: str) -> None:
    released: list[Any] = []
    block = HostBlock(1 << 16)
    array = HostBuffer(block, on_release=released.append).array((4, 64, 64), np.float32)
    kept = alias_of(array, kind)
    owner = weakref.ref(root_owner(array))
    del array
    gc.collect()
    assert released == []
    assert owner() is not None
    del kept
    gc.collect()
    assert released == [block]


def test_a_detached_buffer_releases_nothing() -> None:
    released: list[Any] = []
    buffer = HostBuffer(HostBlock(64), on_release=released.append)
    buffer.detach()
    del buffer
    gc.collect()
    assert released == []


def test_a_frozen_buffer_lends_only_read_only_arrays() -> None:
    array = HostBuffer(HostBlock(64), frozen=True).array((8,), np.float64)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_only_memory_that_nobody_can_write_to_counts_as_immutable() -> None:
    buffer = HostBuffer(HostBlock(64))
    lent = buffer.array((8,), np.float64)
    read_only = lent.view()
    read_only.flags.writeable = False
    own = np.zeros(3)
    own.flags.writeable = False
    assert not is_immutable(lent)
    assert not is_immutable(read_only)
    assert not is_immutable(own)
    assert not is_immutable(np.frombuffer(bytearray(8), np.uint8))
    assert is_immutable(np.frombuffer(bytes(8), np.uint8))
    assert is_immutable(HostBuffer(buffer.block, frozen=True).array((8,), np.float64)[2:4])


def test_a_writable_alias_is_the_same_memory_and_keeps_it_alive() -> None:
    values = np.arange(6.0)
    values.flags.writeable = False
    alias = writable_alias(values)
    assert alias.flags.writeable
    assert np.shares_memory(alias, values)
    assert not values.flags.writeable
    assert root_owner(alias) is values
