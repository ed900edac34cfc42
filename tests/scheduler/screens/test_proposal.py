"""Names as microscopes write them give the pattern that a person would write."""

from itertools import product

import pytest

from scheduler.images.patterns import parse_pattern
from scheduler.screens.proposal import Proposal, propose_pattern


def names(template: str, *values: list[object]) -> list[str]:
    return [template.format(*row) for row in product(*values)]


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        (
            names("{}_s{}_z{:02}_c{}.tif", ["A01", "B12"], [1, 2], [*range(3)], [1, 2]),
            "{well}_s{site}_z{z}_c{channel}.tif",
        ),
        (
            names("r{:02}c{:02}f{:02}p{:02}-ch{}sk1fk1fl1.tiff", [1, 2], [3], [1, 2], [1, 2], [1, 2]),
            "r{row}c{column}f{site}p{z}-ch{channel}sk{time}fk1fl1.tiff",
        ),
        (
            names("img_channel{:03}_position{:03}_time{:09}_z{:03}.tif", [0], [0, 1], [0], [0, 1]),
            "img_channel{channel}_position{site}_time{time}_z{z}.tif",
        ),
        (names("exp_{}_{:03}.tif", ["dapi", "gfp"], [*range(30)]), "exp_{channel}_{z}.tif"),
        (names("img_{:03}_{:03}.TIF", [1, 2], [1, 2]), "img_{number}_{z}.TIF"),
        (names("{}.tif", [1, 2]), "{z}.tif"),
        (names("mouse brain ({}).tif", ["left", "right"]), "mouse brain ({name}).tif"),
        (names("{}{{x}}_{}.tif", ["a", "b"], [1, 2]), "{name}{{x}}_{z}.tif"),
        (["only one.ome.tif"], "only one.ome.tif"),
        # capital keys look like wells
        (names("{}_F{}_P{}_C{}.tif", ["A01", "C02"], *[[1, 2]] * 3), "{well}_F{site}_P{z}_C{channel}.tif"),
        (["A01_F1_P1_C1.tif"], "{well}_F{site}_P{z}_C{channel}.tif"),
        (names("P{:02}_{}_C{:02}.tif", [1], ["C01", "P24"], [1, 2]), "P{z}_{well}_C{channel}.tif"),
        (names("{}_C{:02}.tif", ["C03", "C04"], [1, 2]), "{well}_C{channel}.tif"),
        (names("img_C{}_P{}.tif", [1, 2], [1, 2]), "img_C{channel}_P{z}.tif"),
        (names("img_C{:02}.tif", [1, 12]), "img_{well}.tif"),
        (names("{}_{}.tif", ["A1", "C12"], ["z1", "z2"]), "{well}_z{z}.tif"),
    ],
)
def test_proposed(given, pattern):
    proposal = propose_pattern(given)
    assert proposal == Proposal(pattern, len(given))
    parsed = parse_pattern(pattern)
    assert all(parsed.match(name) is not None for name in given)


def test_a_number_counts_no_planes_where_files_hold_whole_stacks():
    given = ["embryo1.ome.tif", "embryo2.ome.tif"]
    assert propose_pattern(given, whole_stacks=True) == Proposal("embryo{number}.ome.tif", 2)


def test_the_largest_group_wins_and_other_files_are_not_counted():
    given = names("A01_z{}.tif", [*range(5)])
    assert propose_pattern([*given, "overview.tif", "notes.txt", ".tif", "A01_z1.tif.part"]) == Proposal(
        "{well}_z{z}.tif", 5
    )


@pytest.mark.parametrize("given", [[], ["notes.txt"], [".tif"]])
def test_no_images(given):
    assert propose_pattern(given) is None
