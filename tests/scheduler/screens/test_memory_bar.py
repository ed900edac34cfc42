"""A bar shows each byte once, and what is unknown as taken."""

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from scheduler.screens.memory_bar import MemoryBar, legend, memory_parts, shares

GIB = 1 << 30


def test_parts_add_up_to_the_total(gpu):
    assert memory_parts(gpu) == (8 * GIB, 2 * GIB, 4 * GIB, 10 * GIB)


def test_a_device_without_an_answer_is_full(gpu):
    assert memory_parts(replace(gpu, free_bytes=None)) == (8 * GIB, 0, 16 * GIB, 0)


@pytest.mark.parametrize(
    ("reserved", "idle", "external", "parts"),
    [
        (30, 5, 5, (24, 0, 0, 0)),
        (20, 5, 5, (20, 0, 4, 0)),
        (20, 5, 2, (20, 2, 2, 0)),
        (0, 0, 0, (0, 0, 0, 24)),
    ],
)
def test_figures_that_exceed_the_total_are_cut(gpu, reserved, idle, external, parts):
    device = replace(gpu, reserved_bytes=reserved * GIB, idle_bytes=idle * GIB, external_bytes=external * GIB)
    assert memory_parts(device) == tuple(part * GIB for part in parts)


@given(st.lists(st.integers(0, 10**12), min_size=4, max_size=4), st.integers(0, 60))
def test_cells_fill_the_bar_and_keep_the_order_of_size(parts, width):
    cells = shares(parts, width)
    assert sum(cells) == width
    assert all(cell >= 0 for cell in cells)
    if sum(parts):
        assert all(abs(cell - part * width / sum(parts)) < 1 for cell, part in zip(cells, parts, strict=True))


@pytest.mark.parametrize(
    ("encoding", "drawn"), [("utf-8", "████████▒▒▓▓▓▓··········"), ("ascii", "########ooxxxx..........")]
)
def test_drawn(gpu, encoding, drawn):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    Console(file=stream, width=24).print(MemoryBar(gpu), end="")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding).strip() == drawn


def test_legend():
    assert legend(ascii_only=True) == "# reserved  o idle  x others  . free"
