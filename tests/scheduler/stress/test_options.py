"""Options of a stress test, from a file and from the command line."""

import pytest

from scheduler.config import ConfigError
from scheduler.stress.modes import HogMode
from scheduler.stress.options import StressError, StressOptions, load_options

GIB = 1 << 30


def test_nothing_asked_for_is_a_small_test_of_what_is_there():
    assert load_options(None, {}) == StressOptions(
        virtual=None, jobs=200, hog=HogMode.NONE, kill_workers=0, under_estimate=0.0, faults=True, seed=0
    )


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("2x8GiB", (8 * GIB, 8 * GIB)),
        ("1x512MiB", (GIB // 2,)),
        (" 2 x 1.5 GiB , 1x4GiB", (3 * GIB // 2, 3 * GIB // 2, 4 * GIB)),
    ],
)
def test_virtual_devices(text, sizes):
    assert load_options(None, {"virtual": text}).virtual == sizes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8GiB", "such as 2x8GiB, not '8GiB'"),
        ("2x8", "such as 2x8GiB, not '2x8'"),
        ("0x8GiB", "expected 1 to 16 devices, not 0"),
        ("17x8GiB", "expected 1 to 16 devices, not 17"),
        ("2x255MiB", "less than 256 MiB"),
        ("", "such as 2x8GiB, not ''"),
    ],
)
def test_no_virtual_devices(text, said):
    with pytest.raises(StressError, match=f"^--virtual: .*{said}"):
        load_options(None, {"virtual": text})


@pytest.mark.parametrize(("text", "per_cent"), [("20%", 20.0), ("0", 0.0), ("12.5 %", 12.5), ("100%", 100.0)])
def test_under_estimates(text, per_cent):
    assert load_options(None, {"under_estimate": text}).under_estimate == per_cent


@pytest.mark.parametrize("text", ["101%", "-1%", "many", "%"])
def test_no_per_cent(text):
    with pytest.raises(StressError, match="--under-estimate: "):
        load_options(None, {"under_estimate": text})


def test_every_wrong_option_is_named():
    with pytest.raises(StressError, match=r"--kill-workers: .*; --seed: "):
        load_options(None, {"kill_workers": -1, "seed": -1})


def test_a_file_and_options_over_it(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("virtual: 2x8GiB\njobs: 30\nhog: steady\nunder_estimate: 20%\nfaults: false\n")
    options = load_options(path, {"jobs": 5, "hog": None, "seed": 3})
    assert options == StressOptions(
        virtual=(8 * GIB, 8 * GIB), jobs=5, hog=HogMode.STEADY, under_estimate=20.0, faults=False, seed=3
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jbos: 3\n", "a.yaml:1:1: unknown key 'jbos'; did you mean 'jobs'?"),
        ("jobs: 3\nhog: wild\n", "a.yaml:2:6: hog: should be 'none', 'random' or 'steady'"),
        ("virtual: 8GiB\n", "a.yaml:1:10: virtual: expected a number of devices and their size"),
        ("jobs: many\n", "a.yaml:1:7: jobs: should be a valid integer"),
        ("- 1\n", "a.yaml:1:1: "),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_place(tmp_path, text, said):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_options(path, {"jobs": 7})
    assert said in str(caught.value)
