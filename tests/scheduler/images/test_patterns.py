"""Patterns: what they match, what they refuse, how selections and natural order work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.images.errors import InputError
from scheduler.images.patterns import check_select, natural_key, parse_pattern, selected


def test_fields_in_order_of_the_pattern():
    pattern = parse_pattern("{well}_s{site}_z{z}_c{channel}.tif")
    assert pattern.fields == ("well", "site", "z", "channel")
    assert pattern.match("A01_s1_z00_c2.tif") == {"well": "A01", "site": "1", "z": "00", "channel": "2"}


@pytest.mark.parametrize(
    ("text", "name", "fields"),
    [
        ("{name}.tif", "a.b.tif", {"name": "a.b"}),
        ("{name}.tif", "a.tiff", None),
        ("{name}.tif", "aXtif", None),
        ("{name}.tif", ".tif", None),
        ("{well}/{well}_z{z}.tif", "A01/A01_z1.tif", {"well": "A01", "z": "1"}),
        ("{well}/{well}_z{z}.tif", "A01/A02_z1.tif", None),
        ("{row}{column:d}.tif", "A01.tif", {"row": "A", "column": "01"}),
        ("{site:d}.tif", "x1.tif", None),
        ("*_z{z:d}.tif", "whatever_z3.tif", {"z": "3"}),
        ("{{x}}_{z}.tif", "{x}_3.tif", {"z": "3"}),
        ("größe {z} µm.tif", "größe 1 µm.tif", {"z": "1"}),
        ("{z}.tif", "a/b.tif", None),
    ],
)
def test_match(text, name, fields):
    assert parse_pattern(text).match(name) == fields


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{well", "expected '}'"),
        ("{}.tif", "a field is a name in braces"),
        ("{0}.tif", "a field is a name in braces"),
        ("{well!r}.tif", "a field is a name in braces"),
        ("{well.x}.tif", "a field is a name in braces"),
        ("{site:03d}.tif", "a field is a name in braces"),
        ("{well}{site}.tif", r"\{well\} and \{site\} touch.*\{site:d\}"),
        ("../{z}.tif", "inside the folder"),
        ("/data/{z}.tif", "inside the folder"),
        ("a//{z}.tif", "inside the folder"),
        ("", "inside the folder"),
    ],
)
def test_unusable_patterns(text, message):
    with pytest.raises(InputError, match=message):
        parse_pattern(text)


def test_walk_descends_only_where_the_pattern_leads(tmp_path):
    for name in ("p1/A/z1.tif", "p1/B/z1.tif", "p2/z1.tif", "p1/A/deeper/z1.tif", "z1.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    walked = sorted(parse_pattern("{plate}/{well}/z{z}.tif").walk(tmp_path))
    assert [relative for relative, _ in walked] == ["p1/A/z1.tif", "p1/B/z1.tif"]
    assert walked[0][1] == {"plate": "p1", "well": "A", "z": "1"}


def test_walk_follows_links_and_ends_in_a_circle_of_them(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z1.tif").touch()
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    walked = list(parse_pattern("{x}/{y}/z{z}.tif").walk(tmp_path))
    assert [relative for relative, _ in walked] == ["a/again/z1.tif"]


def test_hidden_files_match_only_a_pattern_that_names_them(tmp_path):
    for name in ("._A01_z0.tif", ".A01_z0.tif", "A01_z0.tif"):
        (tmp_path / name).touch()
    assert [name for name, _ in parse_pattern("{well}_z{z}.tif").walk(tmp_path)] == ["A01_z0.tif"]
    assert [name for name, _ in parse_pattern("._{well}_z{z}.tif").walk(tmp_path)] == ["._A01_z0.tif"]


def test_natural_order():
    names = ["z10", "z2", "z1", "z02", "a", ""]
    assert sorted(names, key=natural_key) == ["", "a", "z1", "z2", "z02", "z10"]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ({"well": "A01"}, True),
        ({"well": ["B02", "A*"]}, True),
        ({"well": "a01"}, False),
        ({"well": []}, False),
        ({"site": 1}, True),
        ({"site": "1"}, False),
        ({"site": "01"}, True),
        ({"site": [2, 3]}, False),
        ({"well": "A01", "site": 2}, False),
        ({"well": 1}, False),
        ({}, True),
    ],
)
def test_selected(select, expected):
    assert selected({"well": "A01", "site": "01"}, select) is expected


def test_a_selected_field_must_exist():
    with pytest.raises(InputError, match="no field 'wel'; did you mean 'well'"):
        check_select({"wel": "A01"}, ["well", "site"], {})


def test_every_choice_must_choose_something():
    with pytest.raises(InputError, match="no well is 'C\\*'; there are 2: A1, A10"):
        check_select({"well": ["A1*", "C*"]}, ["well"], {"well": {"A10", "A1"}})


VALUES = st.text(st.characters(exclude_characters="/_\0", exclude_categories=("Cs",)), min_size=1)


@given(st.lists(VALUES, min_size=3, max_size=3))
def test_what_is_rendered_is_matched(values):
    pattern = parse_pattern("a{x}_b/{y}_{z}.tif")
    fields = dict(zip("xyz", values, strict=True))
    assert pattern.match(pattern.render(fields)) == fields


@given(st.lists(st.integers(0, 10**9), min_size=2))
def test_natural_order_is_the_order_of_the_numbers(numbers):
    names = [f"z{number}.tif" for number in numbers]
    assert sorted(names, key=natural_key) == [f"z{number}.tif" for number in sorted(numbers)]
