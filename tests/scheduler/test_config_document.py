"""YAML that is broken, hostile or merely odd."""

from pathlib import Path

import pytest

from scheduler.config.document import Document
from scheduler.config.errors import ConfigError


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str | bytes) -> Document:
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return Document(path)

    return read


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "", "the file is empty"),
        ("# nothing\n", "", "the file is empty"),
        ("- a\n- b\n", "1:1", "expected a mapping of keys, found a list"),
        ("hello\n", "1:1", "expected a mapping of keys, found a single value"),
        ("a: [1,\nb: 2\n", "3:1", "(while parsing a flow sequence on line 1)"),
        ("a: 1\n\tb: 2\n", "2:1", "not YAML: found character '\\t'"),
        ("a: 1\n---\nb: 2\n", "2:1", "not YAML: but found another document"),
        ("a: {b: 1, c: 2, b: 3}\n", "1:17", "key 'b' is given twice; first on line 1"),
        ("a: 1\nb: 2\n\na: 3\n", "4:1", "key 'a' is given twice; first on line 1"),
        ("? [1, 2]\n: x\n", "1:3", "a key can't be a list"),
        ("a: !!python/object/apply:os.system [ls]\n", "1:4", "could not determine a constructor"),
        ("a: !!int x\n", "", "a value can't be read"),
        ("a: *b\n", "1:4", "found undefined alias"),
        ("a: &a [*a]\n", "1:4", "an alias stands for a value that contains itself"),
        (bomb(9), "", "stands for more than 20,000 values"),
        ("a: " + "[" * 41 + "]" * 41, "1:43", "nested deeper than 40 levels"),
        ("a: " + "[" * 100_000, "1:43", "nested deeper than 40 levels"),
        ("a: " + "{b: " * 50 + "}" * 50, "1:", "nested deeper than 40 levels"),
        ("a: b\0c\n", "", "not YAML: unacceptable character"),
        (b"a: \xff\xfe\n", "", "not UTF-8 text (byte 3)"),
        ("a: 1\n" + "#" * (257 << 10), "", "larger than 256 KiB"),
    ],
)
def test_refused(read, tmp_path, text, where, what):
    with pytest.raises(ConfigError) as caught:
        read(text)
    message = str(caught.value)
    assert what in message
    assert message.startswith(f"{tmp_path / 'run.yaml'}:{where}")


def test_forty_levels_are_allowed(read):
    value = read("a: " + "[" * 39 + "]" * 39).data["a"]
    depth = 1
    while value:
        (value,) = value
        depth += 1
    assert depth == 39


def test_missing_file_folder_and_unreadable_file(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        Document(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        Document(tmp_path)


def test_scalars_mean_what_a_person_sees(read):
    data = read(
        "[no, on, 01, 2026-11-23, 1:30, 0x10, 1_000, 1e3, 1.5, -2, true, ~, .inf]".join(("a: ", "\n"))
    ).data
    assert data["a"] == [
        "no",
        "on",
        "01",
        "2026-11-23",
        "1:30",
        "0x10",
        "1_000",
        1000.0,
        1.5,
        -2,
        True,
        None,
        float("inf"),
    ]


def test_byte_order_mark_and_unicode(read):
    assert read(b"\xef\xbb\xbfpath: \xc3\xa4/\xe9\x87\x8e\n").data == {"path": "ä/野"}


def test_anchors_and_merge_keys_work_and_keep_their_places(read):
    document = read("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n")
    assert document.data["b"] == {"x": 1, "y": 3}
    assert document.place(("b", "y")) == (4, 6)
    assert document.place(("b", "x")) == (1, 11)


def test_place_of_a_value_of_its_key_and_of_what_is_not_there(read):
    document = read("steps:\n  - use: gaussian\n    with: {sigma: 2}\n")
    assert document.place(("steps", 0, "with", "sigma")) == (3, 19)
    assert document.place(("steps", 0, "with", "sigma"), of_key=True) == (3, 12)
    assert document.place(("steps", 0, "with", "gone")) == (3, 11)
    assert document.place(("steps", 7)) == (2, 3)
    assert document.place(()) == (1, 1)
